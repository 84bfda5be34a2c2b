package e2e

import (
	"os"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// apart keeps what is measured and what measures it on a processor each, so that neither waits for the other's.
type apart struct {
	t        *testing.T
	measured unix.CPUSet // of the process that is measured
	own      unix.CPUSet // of this one
}

// newApart takes two processors. Where there is but one, both share it.
func newApart(t *testing.T) *apart {
	t.Helper()
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	a := &apart{t: t, measured: all, own: all}
	if all.Count() < 2 {
		t.Log("one processor: what is measured shares it with what measures")
		return a
	}
	a.measured.Zero()
	a.own.Zero()
	for cpu, free := 0, []*unix.CPUSet{&a.measured, &a.own}; len(free) > 0; cpu++ {
		if all.IsSet(cpu) {
			free[0].Set(cpu)
			free = free[1:]
		}
	}
	procs := runtime.GOMAXPROCS(1)
	t.Cleanup(func() {
		runtime.GOMAXPROCS(procs)
		a.all(&all)
	})
	return a
}

// children: the processes that are started from now on are what is measured.
func (a *apart) children() { a.all(&a.measured) }

// self: they are started, and this process goes on where they are not.
func (a *apart) self() { a.all(&a.own) }

// all moves the threads of this process; each new one begins where the one is that starts it, as a process does.
func (a *apart) all(to *unix.CPUSet) {
	a.t.Helper()
	for range 2 { // again for those that were started meanwhile
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			a.t.Fatal(err)
		}
		for _, thread := range threads {
			id, err := strconv.Atoi(thread.Name())
			if err != nil {
				a.t.Fatal(err)
			}
			if err := unix.SchedSetaffinity(id, to); err != nil && err != unix.ESRCH {
				a.t.Fatal(err)
			}
		}
	}
}
