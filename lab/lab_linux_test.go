package lab

import (
	"context"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newLab makes a lab with alice and bob and removes it with the test.
func newLab(t *testing.T) (l *Lab, alice, bob *Host) {
	t.Helper()
	needLab(t)
	l, err := New("test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	if alice, err = l.Host("alice", Prefixes("192.0.2.1/24", "2001:db8::1/64")...); err != nil {
		t.Fatal(err)
	}
	if bob, err = l.Host("bob", Prefixes("192.0.2.2/24", "2001:db8::2/64")...); err != nil {
		t.Fatal(err)
	}
	return l, alice, bob
}

func TestHostsTalkAndTapCounts(t *testing.T) {
	l, alice, bob := newLab(t)
	tap, err := l.Tap()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"192.0.2.2:80", "[2001:db8::2]:80"} {
		ln, err := bob.Listen("tcp", a)
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello\n") })}
		go srv.Serve(ln)
		t.Cleanup(func() { srv.Close() })
		out, err := alice.Fetch(t.Context(), "tcp", "http://"+a+"/").Output()
		if err != nil || string(out) != "hello\n" {
			t.Fatalf("fetch from %s: got %q, %v", a, out, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := tap.Wait(ctx, func() bool {
		return tap.Between(alice.Addr4(), bob.Addr4()).Clear() >= 8 && tap.Between(alice.Addr6(), bob.Addr6()).Clear() >= 8
	}); err != nil {
		t.Fatalf("tap: %v; saw %v", err, tap.BetweenHosts(alice, bob))
	}
	seen := map[string]int{}
	for _, p := range tap.Packets() {
		seen[p.Class.String()]++
		if p.Length > 1514 {
			t.Errorf("a frame of %d bytes on the cable", p.Length)
		}
		if d := time.Since(p.Time); d < 0 || d > 10*time.Second {
			t.Errorf("time stamp %v off", d)
		}
	}
	t.Log(seen, tap.BetweenHosts(alice, bob))
	if n, err := tap.Dropped(); n != 0 || err != nil {
		t.Errorf("dropped: got %d, %v", n, err)
	}
	file := t.TempDir() + "/x.pcap"
	if err := tap.WritePcap(file); err != nil {
		t.Fatal(err)
	}
}

func TestInjectIsSeenAsIKE(t *testing.T) {
	l, alice, bob := newLab(t)
	tap, err := l.Tap()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := bob.ListenPacket("udp", "192.0.2.2:500")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	msg := make([]byte, 28)
	msg[17], msg[18], msg[19] = 0x20, 34, 8
	p := UDPPacket(mustAddrPort("203.0.113.9:500"), mustAddrPort("192.0.2.2:500"), msg)
	if err := alice.Inject(p); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := tap.Wait(ctx, func() bool {
		return tap.From(mustAddr("203.0.113.9"), bob.Addr4())[ClassIKE].Packets == 1
	}); err != nil {
		t.Fatal(err)
	}
	for _, p := range tap.Packets() {
		if h, ok := p.IKEHeader(); ok && (h.Exchange != 34 || !h.Initiator || h.Response) {
			t.Errorf("header: got %+v", h)
		}
	}
	if err := bob.Netlink().RouteAdd(defaultRoute(bob)); err != nil {
		t.Fatal(err)
	}
	if err := alice.Inject(p); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	buf := make([]byte, 100)
	if n, addr, err := conn.ReadFrom(buf); err != nil || n != 28 || addr.String() != "203.0.113.9:500" {
		t.Errorf("bob read %d from %v, %v", n, addr, err)
	}
}

func TestPrivateFiles(t *testing.T) {
	_, alice, bob := newLab(t)
	for _, h := range []*Host{alice, bob} {
		if err := h.SetFile("/etc/resolv.conf", "nameserver "+h.Addr4().String()+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	out, err := alice.Command(t.Context(), "sh", "-c", "cat /etc/resolv.conf; echo x > /run/x; ls /run").Output()
	if err != nil || string(out) != "nameserver 192.0.2.1\nx\n" {
		t.Errorf("alice: got %q, %v", out, err)
	}
	out, err = bob.Command(t.Context(), "sh", "-c", "cat /etc/resolv.conf; ls /run").Output()
	if err != nil || string(out) != "nameserver 192.0.2.2\n" {
		t.Errorf("bob: got %q, %v", out, err)
	}
	if b, err := os.ReadFile(alice.File("/run/x")); err != nil || string(b) != "x\n" {
		t.Errorf("outside: got %q, %v", b, err)
	}
	if b, _ := os.ReadFile("/etc/resolv.conf"); strings.Contains(string(b), "192.0.2.1\n") {
		t.Error("the machine's resolv.conf was changed")
	}
}

func TestCloseEndsProcesses(t *testing.T) {
	l, alice, bob := newLab(t)
	c := alice.Command(t.Context(), "sleep", "1000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	stubborn := bob.Command(t.Context(), "sh", "-c", "trap '' TERM; sleep 1000 & wait; sleep 1000")
	stubborn.Survive = true
	if err := stubborn.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	pid := c.Process.Pid
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, 0); err == nil {
		t.Error("sleep still runs")
	}
	for _, s := range Standing() {
		if s == l.Name() {
			t.Error("the lab's directory stands")
		}
	}
	if _, err := os.Stat("/run/netns/" + alice.Namespace()); err == nil {
		t.Error("the namespace has its name still")
	}
}

func TestSweepRemovesDeadLabs(t *testing.T) {
	l, _, _ := newLab(t)
	if gone, err := Sweep(); err != nil || len(gone) != 0 {
		t.Fatalf("with a living owner: got %v, %v", gone, err)
	}
	if err := os.WriteFile(l.Dir()+"/"+ownerFile, []byte("1 77\n"), 0o644); err != nil { // init did not start then
		t.Fatal(err)
	}
	gone, err := Sweep()
	if err != nil || len(gone) != 1 || gone[0] != l.Name() {
		t.Fatalf("got %v, %v, want %s", gone, err, l.Name())
	}
	if err := Remove(l.Name()); err == nil {
		t.Error("it could be removed once more")
	}
}
