package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// childEnv tells a process of this binary that it is a lab's child, and what to do.
const childEnv = "TACIT_LAB_CHILD"

// task is what a child does after it has put the host's files in place.
type task struct {
	Do      string // exec, fetch, web, dns
	Args    []string
	Binds   []bind
	Survive bool
}

// MaybeChild must be the first call of main and of TestMain in every binary that starts processes on hosts. In such a
// process it does the process's work and never returns; in any other it does nothing.
func MaybeChild() {
	spec, ok := os.LookupEnv(childEnv)
	if !ok {
		return
	}
	_ = os.Unsetenv(childEnv)
	if err := child(spec); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(127)
	}
	os.Exit(0)
}

func child(spec string) error {
	var t task
	if err := json.Unmarshal([]byte(spec), &t); err != nil {
		return err
	}
	if err := mountAll(t.Binds); err != nil {
		return err
	}
	switch t.Do {
	case "exec":
		path, err := exec.LookPath(t.Args[0])
		if err != nil {
			return err
		}
		if err := unix.Exec(path, t.Args, os.Environ()); err != nil {
			return fmt.Errorf("exec %s: %w", path, err)
		}
	case "fetch":
		return fetch(t.Args[1], t.Args[2])
	case "web":
		return web(t.Args[1], t.Args[2:])
	case "dns":
		return serveZoneFiles(t.Args[1:])
	}
	return fmt.Errorf("unknown task %q", t.Do)
}

// mountAll puts the host's files over the machine's, in this process's own mount namespace.
func mountAll(binds []bind) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	// The host's files lie in /run themselves: they are reached by descriptors taken before /run is covered.
	type open struct {
		fd int
		to string
	}
	var list []open
	for _, b := range binds {
		fd, err := unix.Open(b.From, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("%s: %w", b.From, err)
		}
		list = append(list, open{fd, b.To})
	}
	for _, o := range list {
		if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", o.fd), o.to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount over %s: %w", o.to, err)
		}
		unix.Close(o.fd)
	}
	return nil
}
