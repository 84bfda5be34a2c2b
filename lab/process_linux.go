package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bind is a file or directory of the host's own, seen by its processes in place of the machine's.
type bind struct{ From, To string }

// privateFiles gives the host a /run of its own, and an /etc/hosts and /etc/resolv.conf to be filled by SetFile.
func (h *Host) privateFiles() error {
	if _, err := h.PrivateDir("/run"); err != nil {
		return err
	}
	if err := h.SetFile("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"); err != nil {
		return err
	}
	return h.SetFile("/etc/resolv.conf", "# no name server\n")
}

// PrivateDir gives the host's processes an empty directory of their own in place of path, which must exist on the
// machine, and returns where it really lies. Processes that run already do not see it.
func (h *Host) PrivateDir(path string) (string, error) {
	from := filepath.Join(h.dir, path)
	if err := os.MkdirAll(from, 0o755); err != nil {
		return "", err
	}
	h.addBind(from, path)
	return from, nil
}

// SetFile gives the host's processes a file with this text in place of the machine's file. A second call changes the
// text for the processes that run too. Where path is a symbolic link, its target is replaced; where that lies in /run
// (systemd's resolv.conf), it is made in the host's own /run.
func (h *Host) SetFile(path, text string) error {
	target := path
	for range 8 {
		link, err := os.Readlink(target)
		if err != nil {
			break
		}
		if !filepath.IsAbs(link) {
			link = filepath.Join(filepath.Dir(target), link)
		}
		target = link
	}
	from := filepath.Join(h.dir, target)
	if err := os.MkdirAll(filepath.Dir(from), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(from, []byte(text), 0o644); err != nil {
		return err
	}
	if !strings.HasPrefix(target, "/run/") {
		h.addBind(from, target)
	}
	return nil
}

// File is where a path of the host's own really lies, for example File("/run/tacit/tacit.sock").
func (h *Host) File(path string) string { return filepath.Join(h.dir, path) }

func (h *Host) addBind(from, to string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.binds {
		if h.binds[i].To == to {
			h.binds[i].From = from
			return
		}
	}
	h.binds = append(h.binds, bind{from, to})
}

// Cmd is an external command that runs on a host. Its exec.Cmd may be filled as usual before Start (Stdout, Env, Dir).
type Cmd struct {
	*exec.Cmd
	host *Host
	task task
	// Survive lets the process outlive this one (Lab.Keep); otherwise the kernel ends it with us.
	Survive bool

	once sync.Once
	said said          // on standard error, where nobody else listens to it
	done chan struct{} // closed when the process has ended and err is set
	err  error
}

// Command is exec.CommandContext for a process in the host's namespace with the host's own files (SetFile, PrivateDir).
// The name is looked for in PATH. It needs MaybeChild to be called first thing in main or TestMain.
func (h *Host) Command(ctx context.Context, name string, args ...string) *Cmd {
	return h.command(ctx, task{Do: "exec", Args: append([]string{name}, args...)})
}

func (h *Host) command(ctx context.Context, t task) *Cmd {
	c := exec.CommandContext(ctx, "/proc/self/exe")
	c.Args = append([]string{t.Args[0]}, t.Args[1:]...)
	c.Cancel = func() error { return c.Process.Signal(unix.SIGTERM) }
	c.WaitDelay = 5 * time.Second
	return &Cmd{Cmd: c, host: h, task: t, done: make(chan struct{})}
}

// said keeps the beginning of what a process says, for the error when it ends.
type said struct {
	mu   sync.Mutex // the process writes while the test looks
	text []byte
}

const maxSaid = 1024

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = append(s.text, b[:min(len(b), maxSaid-len(s.text))]...)
	return len(b), nil
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.TrimSpace(string(s.text))
}

// Start starts the process and notes it, so that Lab.Close ends it.
func (c *Cmd) Start() error {
	h := c.host
	h.mu.Lock()
	c.task.Binds = append([]bind(nil), h.binds...)
	h.mu.Unlock()
	c.task.Survive = c.Survive
	spec, err := json.Marshal(c.task)
	if err != nil {
		return err
	}
	if c.Env == nil {
		c.Env = os.Environ()
	}
	c.Env = append(c.Env, childEnv+"="+string(spec))
	if c.Stderr == nil && !c.Survive { // a pipe would break when we end before it
		c.Stderr = &c.said
	}
	attr := &syscall.SysProcAttr{Setpgid: true, Cloneflags: unix.CLONE_NEWNS}
	if !c.Survive {
		attr.Pdeathsig = unix.SIGKILL
	}
	c.SysProcAttr = attr
	if err := h.stay(c.Cmd.Start); err != nil {
		return fmt.Errorf("host %s: start %s: %w", h.Name, c.task.Args[0], err)
	}
	h.mu.Lock()
	h.procs[c] = true
	h.mu.Unlock()
	go func() {
		c.err = c.Cmd.Wait()
		h.mu.Lock()
		delete(h.procs, c)
		h.mu.Unlock()
		close(c.done)
	}()
	return nil
}

// Wait waits for the end of the process. It may be called more than once and from anywhere.
func (c *Cmd) Wait() error {
	<-c.done
	return c.err
}

// Done is closed when the process has ended.
func (c *Cmd) Done() <-chan struct{} { return c.done }

// Run starts the process and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the command and returns what it wrote to its standard output; an error carries what it wrote to its
// standard error.
func (c *Cmd) Output() ([]byte, error) {
	var out, errOut strings.Builder
	c.Stdout = &out
	if c.Stderr == nil {
		c.Stderr = &errOut
	}
	if err := c.Run(); err != nil {
		return []byte(out.String()), fmt.Errorf("%s: %w: %s", strings.Join(c.task.Args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return []byte(out.String()), nil
}

// Signal sends a signal to the process.
func (c *Cmd) Signal(sig os.Signal) error { return c.Process.Signal(sig) }

// Stop asks the process to end (SIGTERM), makes it end after grace, and waits. A process that has ended by then, or by
// the signal, is no error.
func (c *Cmd) Stop(grace time.Duration) error {
	c.once.Do(func() { _ = c.Process.Signal(unix.SIGTERM) })
	select {
	case <-c.done:
	case <-time.After(grace):
		_ = c.Process.Kill()
		<-c.done
	}
	var exit *exec.ExitError
	if c.err == nil || errors.As(c.err, &exit) {
		return nil
	}
	return c.err
}

// stopAll ends the host's processes.
func (h *Host) stopAll() {
	h.mu.Lock()
	var list []*Cmd
	for c := range h.procs {
		list = append(list, c)
	}
	h.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range list {
		wg.Go(func() { _ = c.Stop(2 * time.Second) })
	}
	wg.Wait()
}
