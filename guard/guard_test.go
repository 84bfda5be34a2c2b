package guard

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// newNamespace gives the test a thread in a network namespace of its own. The thread is never unlocked, so that it ends
// with the test, and the namespace with it.
func newNamespace(t *testing.T) {
	t.Helper()
	if os.Getenv("TACIT_E2E") != "1" {
		t.Skip("needs root and network namespaces: set TACIT_E2E=1")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v", err)
	}
}

// newNetwork is a namespace with the own address of key4, whose network leads nowhere.
func newNetwork(t *testing.T) {
	t.Helper()
	newNamespace(t)
	link := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "eth1"}
	link.Name = "eth0"
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: key4.Own.AsSlice(), Mask: net.CIDRMask(24, 32)}}
	if err := errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link)); err != nil {
		t.Fatal(err)
	}
}

var (
	key4 = Key{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}
	key6 = Key{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")}
)

func verdicts(t *testing.T, g *Guard) map[Key]Verdict {
	t.Helper()
	listed, err := g.Elements()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[Key]Verdict)
	for _, e := range listed {
		out[e.Key] = e.Verdict
	}
	return out
}

func TestApply(t *testing.T) {
	newNamespace(t)
	g, left, err := Open(Config{Device: "tacit0"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = g.Close(false) }()
	if len(left) != 0 {
		t.Fatalf("left over: got %v, want none", left)
	}
	apply := func(c ...Change) {
		t.Helper()
		if err := g.Apply(c); err != nil {
			t.Fatal(err)
		}
	}
	apply(Change{key4, Divert, time.Minute}, Change{key6, Block, time.Minute})
	if got := verdicts(t, g); got[key4] != Divert || got[key6] != Block {
		t.Fatalf("got %v", got)
	}
	apply(Change{key4, Block, time.Minute}, Change{key6, Divert, 50 * time.Millisecond})
	if got := verdicts(t, g); got[key4] != Block || got[key6] != Divert || len(got) != 2 {
		t.Fatalf("after the change: got %v", got)
	}
	time.Sleep(120 * time.Millisecond)
	if got := verdicts(t, g); len(got) != 1 {
		t.Fatalf("after the timeout: got %v", got)
	}
	apply(Change{Key: key6, Verdict: Pass}) // the kernel has it no more
	apply(Change{Key: key4, Verdict: Pass}, Change{Key: key4, Verdict: Pass})
	if got := verdicts(t, g); len(got) != 0 {
		t.Fatalf("at the end: got %v", got)
	}
	if err := g.Apply([]Change{{Key{key4.Own, key6.Peer}, Divert, time.Minute}}); !errors.Is(err, errKey) {
		t.Fatalf("two families: got %v, want a key error", err)
	}
}

func TestOpenKeepsWhatADeadProcessLeft(t *testing.T) {
	newNamespace(t)
	g, _, err := Open(Config{Device: "tacit0"})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Apply([]Change{{key4, Divert, 30 * time.Second}, {key6, Block, 30 * time.Second}}); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(true); err != nil {
		t.Fatal(err)
	}
	g, left, err := Open(Config{Device: "tacit0"})
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 2 || left[0].Left <= 0 || left[0].Left > 30*time.Second {
		t.Fatalf("left over: got %v", left)
	}
	if got := verdicts(t, g); got[key4] != Divert || got[key6] != Block {
		t.Fatalf("kernel: got %v", got)
	}
	if err := errors.Join(g.Close(true), Cleanup(), Cleanup()); err != nil {
		t.Fatal(err)
	}
}

func TestManyElements(t *testing.T) {
	newNamespace(t)
	g, _, err := Open(Config{Device: "tacit0"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = g.Close(false) }()
	var changes []Change
	for i := range 3000 {
		peer := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		changes = append(changes, Change{Key{key4.Own, peer}, Divert, time.Minute})
	}
	for range 2 { // the second time everything is there already
		if err := g.Apply(changes); err != nil {
			t.Fatal(err)
		}
		if got := len(verdicts(t, g)); got != len(changes) {
			t.Fatalf("got %d elements, want %d", got, len(changes))
		}
	}
}

func TestKeyEncoding(t *testing.T) {
	for _, k := range []Key{key4, key6} {
		b := encodeKey(k)
		got, err := DecodeKey(b)
		if err != nil || got != k {
			t.Errorf("%v: got %v, %v", k, got, err)
		}
		for i := range b {
			if got, err := DecodeKey(b[:i]); err == nil && (i != 8 || !got.Own.Is4()) {
				t.Errorf("%v cut to %d octets: got %v", k, i, got)
			}
		}
	}
	want := []byte{unix.IPPROTO_UDP, 0, 0, 0, 0x11, 0x94, 0, 0}
	if got := portElements([]port{{unix.IPPROTO_UDP, 4500}})[0].Key; !slices.Equal(got, want) {
		t.Errorf("port element: got %x, want %x", got, want)
	}
}

func FuzzDecodeKey(f *testing.F) {
	f.Add(encodeKey(key4))
	f.Add(encodeKey(key6))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := DecodeKey(b); err == nil && !slices.Equal(encodeKey(k), b) {
			t.Errorf("%x: decoded to %v, which encodes to %x", b, k, encodeKey(k))
		}
	})
}
