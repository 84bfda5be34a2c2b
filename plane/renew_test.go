package plane

import (
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tacit/guard"
)

// Every element is renewed once in an interval, a few at a turn; what is gone since is not.
func TestRenewInPieces(t *testing.T) {
	if os.Getenv("TACIT_E2E") != "1" {
		t.Skip("needs root and network namespaces: set TACIT_E2E=1")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and the namespace with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	g, _, err := guard.Open(guard.Config{Device: "tacit0"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = g.Close(false) }()
	const many = 2*renewedAtOnce + 10
	begun := time.Unix(1000, 0)
	p := Policies[*traffic]{Guard: g, Linger: time.Minute, Now: func() time.Time { return begun }, Made: func(k guard.Key) *traffic { return &traffic{Flow: Flow{Key: k}} }}
	for i := range many {
		p.Flow(guard.Key{Own: alice, Peer: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}).armed = true
	}
	standing := func() int {
		t.Helper()
		elements, err := g.Elements()
		if err != nil {
			t.Fatal(err)
		}
		return len(elements)
	}
	turn := func(now time.Time, want int) {
		t.Helper()
		if err := p.RenewDue(now); err != nil {
			t.Fatal(err)
		}
		if got := standing(); got != want {
			t.Fatalf("%v after the beginning %d elements stand, want %d", now.Sub(begun), got, want)
		}
	}
	turn(begun, 0)
	turn(begun.Add(p.Interval()-tick), 0)
	turn(begun.Add(p.Interval()), renewedAtOnce)
	turn(begun.Add(p.Interval()+tick), 2*renewedAtOnce)
	gone := p.renewal.left[0]
	gone.armed = false
	p.Forget(gone)
	turn(begun.Add(p.Interval()+2*tick), many-1)
	turn(begun.Add(2*p.Interval()-tick), many-1)
	if n := testing.AllocsPerRun(10, func() { _ = p.RenewDue(begun.Add(2*p.Interval() - tick)) }); n > 0 {
		t.Errorf("%v allocations for a turn in which nothing is due", n)
	}
	if err := g.Apply([]guard.Change{{Key: guard.Key{Own: alice, Peer: netip.AddrFrom4([4]byte{10, 0, 0, 1})}}}); err != nil {
		t.Fatal(err)
	}
	p.Linger = time.Second // an interval has no time for more than a turn
	turn(begun.Add(3*time.Minute), many-1)
	if err := p.Renew(begun.Add(3 * time.Minute)); err != nil || len(p.renewal.left) > 0 {
		t.Errorf("at once: %v, %d left", err, len(p.renewal.left))
	}
}
