package e2e

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tacit/lab"
)

// world is the lab that most tests need: alice and bob, a plain host, an authoritative server (ns) and a forwarder (up).
type world struct {
	t                         *testing.T
	lab                       *lab.Lab
	tap                       *lab.Tap
	alice, bob, plain, ns, up *lab.Host
	anchor                    string // the private root's key, in zone-file form
}

// newWorld makes the hosts. After a failed test the tap's packets are written where the log says.
func newWorld(t *testing.T) *world {
	t.Helper()
	l, err := lab.New("e2e")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, lab: l}
	t.Cleanup(func() {
		if t.Failed() && w.tap != nil {
			file := filepath.Join(os.TempDir(), l.Name()+".pcap")
			t.Logf("the tap's packets: %s (%v)", file, w.tap.WritePcap(file))
		}
		if err := l.Close(); err != nil {
			t.Errorf("remove the lab: %v", err)
		}
	})
	for _, h := range []struct {
		host  **lab.Host
		name  string
		addrs []string
	}{
		{&w.alice, "alice", []string{"192.0.2.1/24", "2001:db8::1/64"}},
		{&w.bob, "bob", []string{"192.0.2.2/24", "2001:db8::2/64"}},
		{&w.plain, "plain", []string{"192.0.2.3/24", "2001:db8::3/64"}},
		{&w.ns, "ns", []string{"192.0.2.53/24", "2001:db8::53/64"}},
		{&w.up, "up", []string{"192.0.2.54/24", "2001:db8::54/64"}},
	} {
		if *h.host, err = l.Host(h.name, lab.Prefixes(h.addrs...)...); err != nil {
			t.Fatal(err)
		}
	}
	if w.tap, err = l.Tap(); err != nil {
		t.Fatal(err)
	}
	return w
}

// put writes a file of the host's own; paths in /run are the easiest.
func put(t *testing.T, h *lab.Host, path, text string) {
	t.Helper()
	if err := h.SetFile(path, text); err != nil {
		t.Fatal(err)
	}
}

// start starts a process on a host with its output in a file of the host's /run, shown when the test fails.
func start(t *testing.T, h *lab.Host, name string, args ...string) *lab.Cmd {
	t.Helper()
	return startEnv(t, h, nil, name, args...)
}

// startEnv is start with more of an environment.
func startEnv(t *testing.T, h *lab.Host, env []string, name string, args ...string) *lab.Cmd {
	t.Helper()
	base := filepath.Base(name)
	log, err := os.OpenFile(h.File("/run/"+base+".log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	c := h.Command(context.Background(), name, args...)
	c.Stdout, c.Stderr, c.Env = log, log, append(os.Environ(), env...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(5 * time.Second); err != nil {
			t.Errorf("%s on %s: %v", base, h.Name, err)
		}
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s on %s wrote:\n%s", base, h.Name, tail(string(text), 60))
		}
		log.Close()
	})
	return c
}

// logOf is what a process started by start has written so far.
func logOf(t *testing.T, h *lab.Host, name string) string {
	t.Helper()
	b, err := os.ReadFile(h.File("/run/" + filepath.Base(name) + ".log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// output runs a command on a host to its end.
func output(t *testing.T, h *lab.Host, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := h.Command(ctx, name, args...).Output()
	if err != nil {
		t.Fatalf("%s: %v", h.Name, err)
	}
	return string(out)
}

// eventually waits until cond holds.
func eventually(t *testing.T, d time.Duration, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", d, what)
		}
	}
}

// onlyProtected fails the test unless the tap saw ESP between the two hosts and nothing but ESP, IKE and neighbour
// discovery, and missed nothing.
func (w *world) onlyProtected(a, b *lab.Host) {
	w.t.Helper()
	w.protectedBut(0, a, b)
}

// protectedBut is onlyProtected but for so many packets, of which it is known why they were in clear.
func (w *world) protectedBut(known int, a, b *lab.Host) {
	w.t.Helper()
	w.sync()
	c := w.tap.BetweenHosts(a, b)
	w.t.Logf("tap between %s and %s: %v", a.Name, b.Name, c)
	if c.ESP() == 0 {
		w.t.Errorf("tap between %s and %s: no ESP", a.Name, b.Name)
	}
	if n := c.Clear() + c[lab.ClassDNS].Packets; n != known {
		w.t.Errorf("tap between %s and %s: %d packets in clear, and why is known of %d", a.Name, b.Name, n, known)
		w.showClear(a, b)
	}
	if n, err := w.tap.Dropped(); n != 0 || err != nil {
		w.t.Errorf("the tap missed %d frames (%v): nothing is proven", n, err)
	}
}

// sync waits until the tap has seen all that was sent before.
func (w *world) sync() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := w.tap.Sync(ctx); err != nil && !errors.Is(err, context.Canceled) {
		w.t.Fatalf("tap: %v", err)
	}
}

// showClear logs the first packets in clear between two hosts.
func (w *world) showClear(a, b *lab.Host) {
	w.t.Helper()
	addrs := map[netip.Addr]bool{}
	for _, p := range append(a.Addrs(), b.Addrs()...) {
		addrs[p.Addr()] = true
	}
	shown := 0
	for _, p := range w.tap.Packets() {
		if (p.Class == lab.ClassClear || p.Class == lab.ClassDNS) && addrs[p.Src] && addrs[p.Dst] && shown < 10 {
			shown++
			w.t.Logf("in clear at %s: %v -> %v protocol %d ports %d %d, %d bytes", p.Time.Format("15:04:05.000000"),
				p.Src, p.Dst, p.Proto, p.SrcPort, p.DstPort, p.Length)
		}
	}
}
