package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 looks for named namespaces, so that `ip netns exec NAME sh` works on ours.
const netnsDir = "/run/netns"

// space is a network namespace with a name.
type space struct {
	name string
	fd   int

	once  sync.Once
	spawn chan func() // runs on a thread that stays in the namespace as long as the space is open
}

// newSpace makes a namespace and its name under /run/netns.
func newSpace(name string) (*space, error) {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(netnsDir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return nil, fmt.Errorf("namespace %s: %w", name, err)
	}
	f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		return unix.Mount(self, path, "none", unix.MS_BIND, "")
	})
	if err != nil {
		_ = os.Remove(path)
		return nil, fmt.Errorf("namespace %s: %w", name, err)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("namespace %s: %w", name, err), removeSpace(name))
	}
	return &space{name: name, fd: fd, spawn: make(chan func())}, nil
}

// removeSpace takes the name away; the namespace ends with its last process.
func removeSpace(name string) error {
	path := filepath.Join(netnsDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("namespace %s: %w", name, err)
	}
	return nil
}

// onThread runs f on a thread of its own, which ends with f: whatever f does to its thread dies with it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread with the goroutine
		err := errors.New("ended by runtime.Goexit")
		defer func() { done <- err }()
		err = f()
	}()
	return <-done
}

func (s *space) enter() error {
	if err := unix.Setns(s.fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", s.name, err)
	}
	return nil
}

// do runs f inside the namespace.
func (s *space) do(f func() error) error {
	return onThread(func() error {
		if err := s.enter(); err != nil {
			return err
		}
		return f()
	})
}

// stay runs f inside the namespace on a thread that lives as long as the space: a child process started there with a
// parent-death signal is not ended by the end of a passing thread.
func (s *space) stay(f func() error) error {
	s.once.Do(func() {
		ready := make(chan error, 1)
		go func() {
			runtime.LockOSThread()
			ready <- s.enter()
			for f := range s.spawn {
				f()
			}
		}()
		<-ready
	})
	done := make(chan error, 1)
	s.spawn <- func() { done <- f() }
	return <-done
}

// sysctl writes a value inside the namespace; key is dotted, a slash stands for a dot inside an interface's name.
func (s *space) sysctl(key, value string) error {
	return s.do(func() error { return os.WriteFile(sysctlPath(key), []byte(value), 0o644) })
}

func sysctlPath(key string) string {
	return "/proc/sys/" + strings.NewReplacer(".", "/", "/", ".").Replace(key)
}

func (s *space) close() {
	s.once.Do(func() {})
	close(s.spawn)
	unix.Close(s.fd)
}
