package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	ownerFile = "owner" // "PID STARTTIME": a pid alone may be somebody else's by now
	keepFile  = "keep"
	madeFile  = "made-netns" // the machine had no /run/netns before this lab
)

func writeOwner(dir string) error {
	start, err := startTime(os.Getpid())
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, ownerFile), fmt.Appendf(nil, "%d %s\n", os.Getpid(), start), 0o644)
}

// startTime is field 22 of /proc/PID/stat, counted behind the command's name, which may hold blanks and brackets.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat: short", pid)
	}
	return fields[19], nil
}

// ownerLives says whether the process that made the lab still runs.
func ownerLives(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, ownerFile))
	if err != nil {
		return false
	}
	pidText, start, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	pid, err := strconv.Atoi(pidText)
	if err != nil {
		return false
	}
	now, err := startTime(pid)
	return err == nil && now == start
}

// Sweep removes the labs whose makers are dead, but for those that were kept. It returns their names.
func Sweep() ([]string, error) {
	var gone []string
	var errs []error
	for _, name := range Standing() {
		dir := filepath.Join(stateRoot, name)
		if _, err := os.Stat(filepath.Join(dir, keepFile)); err == nil || ownerLives(dir) {
			continue
		}
		gone = append(gone, name)
		errs = append(errs, removeNamed(name))
	}
	return gone, errors.Join(errs...)
}

// Standing are the names of all labs on this machine.
func Standing() []string {
	list, err := os.ReadDir(stateRoot)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// Remove removes a lab that was kept (Keep), with every process in it.
func Remove(name string) error {
	if strings.ContainsAny(name, "/.") || !strings.HasPrefix(name, "tacit-") {
		return fmt.Errorf("%q is not the name of a lab", name)
	}
	if _, err := os.Stat(filepath.Join(stateRoot, name)); err != nil {
		return fmt.Errorf("no lab %q here", name)
	}
	return removeNamed(name)
}

// removeNamed ends the processes in the lab's namespaces and removes the namespaces and the lab's directory.
func removeNamed(name string) error {
	var errs []error
	files, _ := filepath.Glob(filepath.Join(netnsDir, name+".*"))
	inside := map[[2]uint64]bool{}
	for _, f := range files {
		if id, ok := fileID(f); ok {
			inside[id] = true
		}
	}
	errs = append(errs, endInside(inside))
	for _, f := range files {
		errs = append(errs, removeSpace(filepath.Base(f)))
	}
	if _, err := os.Stat(filepath.Join(stateRoot, name, madeFile)); err == nil {
		_ = os.Remove(netnsDir) // stays if somebody else uses it by now
	}
	errs = append(errs, os.RemoveAll(filepath.Join(stateRoot, name)))
	_ = os.Remove(stateRoot) // stays as long as another lab stands
	return errors.Join(errs...)
}

func fileID(path string) ([2]uint64, bool) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return [2]uint64{}, false
	}
	return [2]uint64{uint64(st.Dev), st.Ino}, true
}

// endInside asks every process in the namespaces to end (SIGTERM), and makes it end after a second.
func endInside(inside map[[2]uint64]bool) error {
	if len(inside) == 0 {
		return nil
	}
	for i := range 60 {
		pids := pidsInside(inside)
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			switch {
			case i == 0:
				_ = unix.Kill(pid, unix.SIGTERM)
			case i >= 20:
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("processes %v do not end", pidsInside(inside))
}

// pidsInside lists the processes whose network namespace is one of those, but never ourselves or our ancestors (a
// user may call Remove from a shell inside), and no zombies.
func pidsInside(inside map[[2]uint64]bool) []int {
	own := map[int]bool{os.Getpid(): true}
	for pid := os.Getppid(); pid > 1 && !own[pid]; pid = parentOf(pid) {
		own[pid] = true
	}
	list, _ := os.ReadDir("/proc")
	var pids []int
	for _, e := range list {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || own[pid] {
			continue
		}
		if id, ok := fileID(fmt.Sprintf("/proc/%d/ns/net", pid)); ok && inside[id] {
			pids = append(pids, pid)
		}
	}
	return pids
}

func parentOf(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(fields[1])
	return ppid
}
