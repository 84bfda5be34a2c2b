package daemon

import (
	"net/netip"
	"testing"
	"time"

	"tacit/flows"
	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
)

// slowFlows are a host's connections whose list takes until the test lets it come.
type slowFlows struct {
	aborted
	asked, listed chan struct{}
}

func (f *slowFlows) flows() ([]flows.Flow, error) {
	f.asked <- struct{}{}
	<-f.listed
	return f.aborted.flows()
}

// shutting is alice with an address that is held, and whose connections the kernel is being asked for.
func shutting(t *testing.T) (alice, bob *end, f *slowFlows, remote netip.Addr) {
	t.Helper()
	alice, bob = newEnd(t, "192.0.2.1", ""), newEnd(t, "192.0.2.2", "bob.example")
	ipsectest.Wire(alice.Fake, bob.Fake)
	close(alice.gate)
	close(bob.gate)
	remote = netip.MustParseAddr("192.0.2.9")
	f = &slowFlows{aborted{list: []netip.Addr{remote}}, make(chan struct{}, 8), make(chan struct{})}
	alice.do(t, func(now time.Time) {
		alice.l.d.cfg.Flows = f.flows
		p := alice.l.peerOf(now, alice.addr, remote)
		for _, a := range []action{doHold{now.Add(time.Minute)}, doEnd{}, doUnhold{}} {
			alice.l.do(now, p, a)
		}
	})
	<-f.asked
	return alice, bob, f, remote
}

func (e *end) holds(remote netip.Addr) bool {
	a, ok := e.Policy(ipsec.Host(e.addr, remote))
	return ok && a.Action == ipsec.Hold
}

// However long the kernel takes to list connections, an SA with another address is installed meanwhile. The address itself stays shut until they have ended, and
// what is asked of the data plane for it comes after that, in order.
func TestEndingConnectionsDelaysNobodyElse(t *testing.T) {
	t.Parallel()
	alice, bob, f, remote := shutting(t)
	if o := outcomeOf(t, alice.lookup(bob)); !o.ok {
		t.Fatalf("%+v", o)
	}
	installed := make(chan []netip.Addr, 1)
	alice.do(t, func(now time.Time) { // as an SA with the same address is
		alice.l.jobAt(ipsec.Host(alice.addr, remote), installing, func() error { return nil }, func(time.Time, error) { installed <- f.ended })
	})
	late := make(chan error, 1)
	go func() { late <- alice.l.acknowledged(t.Context()) }()
	time.Sleep(50 * time.Millisecond)
	if !alice.holds(remote) || len(installed)+len(late) > 0 {
		t.Errorf("before they have ended: held %v, %d installed, %d told that all is done", alice.holds(remote), len(installed), len(late))
	}
	close(f.listed)
	if ended := <-installed; len(ended) != 1 {
		t.Errorf("an SA with the address came before the end of %v", ended)
	}
	if err := <-late; err != nil || alice.holds(remote) {
		t.Errorf("%v; held %v", err, alice.holds(remote))
	}
}

// What a list does not show that was begun before it is of no use: who ends while one is being made has the next one.
func TestEndingTakesAListOfItsOwn(t *testing.T) {
	t.Parallel()
	alice, _, f, _ := shutting(t)
	next := netip.MustParseAddr("192.0.2.10")
	alice.do(t, func(now time.Time) {
		alice.l.do(now, alice.l.peerOf(now, alice.addr, next), doEnd{})
		f.aborted.list = append(f.aborted.list, next)
	})
	time.Sleep(20 * time.Millisecond)
	if len(f.asked) != 0 {
		t.Error("two lists are made at once")
	}
	f.listed <- struct{}{}
	<-f.asked
	close(f.listed)
	if err := alice.l.acknowledged(t.Context()); err != nil || len(f.ended) != 2 || f.aborted.asked != 2 {
		t.Errorf("%v; ended %v with %d lists", err, f.ended, f.aborted.asked)
	}
}

// A stop (R11) does not wait for a list that is being made: it makes its own, and nothing is opened before.
func TestStopEndsWhatIsBeingEnded(t *testing.T) {
	t.Parallel()
	alice, _, f, remote := shutting(t)
	var ended []netip.Addr
	quick := &aborted{list: []netip.Addr{remote}}
	alice.do(t, func(time.Time) { alice.l.d.cfg.Flows = quick.flows })
	alice.stop()
	if ended = quick.ended; len(ended) != 1 || !alice.holds(remote) {
		t.Errorf("ended %v, held %v", ended, alice.holds(remote))
	}
	if err := alice.l.clear(); err != nil || alice.holds(remote) {
		t.Errorf("%v; held %v at the end", err, alice.holds(remote))
	}
	close(f.listed)
}
