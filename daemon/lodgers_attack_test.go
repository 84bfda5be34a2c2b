package daemon

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"tacit/ike"
	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
	"tacit/pad"
	"tacit/policy"
)

// Where the NAT's address is closed nobody comes in, whatever name he tells: that name has a rule of its own is no word for the address, for
// nobody has proven it.
func TestClosedNATStaysClosed(t *testing.T) {
	t.Parallel()
	for _, class := range []policy.Class{policy.Block, policy.Clear} {
		m := newLodging(t, 0)
		c := m.add("alice.example")
		m.bob.do(t, func(time.Time) {
			r, named := policy.Default(), policy.Default()
			r.Prefixes, r.Class = []netip.Prefix{netip.PrefixFrom(theNAT, 32)}, class
			named.Names = []string{"alice.example."}
			d := m.bob.l.d
			d.cfg.File.Policy = append([]policy.Rule{named, r}, d.cfg.File.Policy...)
			if err := d.obey(d.cfg.File); err != nil {
				t.Fatal(err)
			}
		})
		m.bob.l.d.find = func(string, netip.Addr) (pad.Claim, string) { return pad.Claim{}, "nothing is proven" }
		if o := outcomeOf(t, c.lookup(m.bob)); o.ok {
			t.Errorf("%v: let in", class)
		}
		if n := len(m.rows()); n > 0 {
			t.Errorf("%v: %d clients", class, n)
		}
	}
}

// A client does not get by moving where it could not begin: its packets are not followed, and if it says itself that it is there, it ends. How many there are at
// an address is counted where they are.
func TestLodgerMovesWhereItMayNotBe(t *testing.T) {
	t.Parallel()
	elsewhere := netip.MustParseAddr("198.51.100.10")
	m := newLodging(t, 1)
	if o := outcomeOf(t, m.clients[0].lookup(m.bob)); !o.ok {
		t.Fatal(o.why)
	}
	var sa ike.SAID
	var said atomic.Int32
	m.bob.OnSend(func(d ipsectest.Datagram) {
		said.Add(1)
		d.Local = netip.AddrPortFrom(m.clients[0].addr, d.Local.Port()-10_000)
		m.clients[0].Deliver(d)
	})
	m.bob.do(t, func(now time.Time) {
		l := m.bob.l
		for sa = range l.lodgers.of {
			l.output(now, l.engine.Follow(now, sa, netip.AddrPortFrom(elsewhere, 14_500)))
		}
		if l.lodgers.at[elsewhere] != 1 || l.lodgers.at[theNAT] != 0 || l.lodgers.of[sa].outer != elsewhere {
			t.Errorf("counted at %v", l.lodgers.at)
		}
		l.output(now, l.engine.Follow(now, sa, netip.AddrPortFrom(theNAT, 14_500)))
		r := policy.Default()
		r.Prefixes, r.Class = []netip.Prefix{netip.PrefixFrom(elsewhere, 32)}, policy.Block
		l.d.cfg.File.Policy = append([]policy.Rule{r}, l.d.cfg.File.Policy...)
		if err := l.d.obey(l.d.cfg.File); err != nil {
			t.Fatal(err)
		}
		said.Store(0)
		for _, to := range []netip.Addr{elsewhere, netip.MustParseAddr("127.0.0.1")} {
			for id := range l.pairs {
				l.moved(now, ipsec.Event{Kind: ipsec.Moved, ID: id, Remote: netip.AddrPortFrom(to, 14_500)})
			}
		}
		for _, p := range l.peers {
			if p.outer.Addr() != theNAT || said.Load() > 0 {
				t.Errorf("its packets are followed to %v, %d messages", p.outer, said.Load())
			}
		}
		l.output(now, l.engine.Follow(now, sa, netip.AddrPortFrom(elsewhere, 14_500)))
	})
	await(t, "it has ended", func() bool {
		left := 1
		m.bob.do(t, func(time.Time) { left = len(m.bob.l.lodgers.of) + len(m.bob.l.lodgers.at) + len(m.bob.l.lodgers.taken) })
		return left == 0
	})
}

// What no SA carries to the addresses of clients is refused, to port 53 as well: as soon as there is one, when that failed as soon as it can be done, and when
// a process before us had some.
func TestPoolsAreShut(t *testing.T) {
	t.Parallel()
	shut := func(e *end) func() bool {
		return func() bool {
			r := e.Rules()
			return len(r) == 2 && r[0].Action == ipsec.Block && r[0].ProtectDNS && e.l.d.cfg.File.NATPool[0] == r[0].Remote
		}
	}
	m := newLodging(t, 1)
	m.bob.FailOn("SetRules", ipsectest.ErrInjected)
	if o := outcomeOf(t, m.clients[0].lookup(m.bob)); !o.ok {
		t.Fatal(o.why)
	}
	await(t, "it was tried", func() bool {
		c := m.bob.Calls("SetRules")
		return len(c) > 0 && c[len(c)-1].Err != nil
	})
	m.bob.FailOn("SetRules", nil)
	await(t, "they are shut, though nobody else has come", shut(m.bob))

	e := newEnd(t, "192.0.2.1", "")
	remote := e.l.d.cfg.File.NATPool[0].Addr().Next()
	e.SetExisting(ipsec.Pair{Selector: ipsec.Host(e.addr, remote), Until: time.Now().Add(time.Hour)})
	if err := e.l.d.takeOver(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !shut(e)() {
		t.Errorf("after a process before us: %v", e.Rules())
	}
}

// slowRules is a data plane that sets rules when the test lets it, once slow is set.
type slowRules struct {
	gatedPlane
	slow        *atomic.Bool
	asked, done chan struct{}
}

func (p slowRules) SetRules(r []ipsec.Rule) error {
	if p.slow.Load() {
		p.asked <- struct{}{}
		<-p.done
	}
	return p.gatedPlane.SetRules(r)
}

// The rules that a stop leaves are the last: it waits for those that a client's address has asked for.
func TestStopWaitsForPoolsToBeShut(t *testing.T) {
	t.Parallel()
	p := slowRules{slow: &atomic.Bool{}, asked: make(chan struct{}, 10), done: make(chan struct{})}
	m := newLodgingAt(t, 1, newEndOn(t, "192.0.2.2", "bob.example", 1, func(g gatedPlane) ipsec.Dataplane { p.gatedPlane = g; return p }))
	p.slow.Store(true)
	if o := outcomeOf(t, m.clients[0].lookup(m.bob)); !o.ok {
		t.Fatal(o.why)
	}
	<-p.asked
	m.clients[0].stop()
	stopped := make(chan struct{})
	go func() { m.bob.stop(); close(stopped) }()
	select {
	case <-stopped:
		t.Error("it has stopped, and rules are yet to be set")
	case <-time.After(700 * time.Millisecond):
	}
	close(p.done)
	<-stopped
}

// Where the data plane could not follow a client it is asked again when the client speaks from there again: the engine knew the place already.
func TestLodgerIsFollowedAfterAFailure(t *testing.T) {
	t.Parallel()
	m := newLodging(t, 1)
	if o := outcomeOf(t, m.clients[0].lookup(m.bob)); !o.ok {
		t.Fatal(o.why)
	}
	m.clients[0].OnSend(func(ipsectest.Datagram) {}) // no message moves it back
	to := netip.AddrPortFrom(theNAT, 24_500)
	followed := func(err error) bool {
		for id := range m.bob.Pairs() {
			m.bob.Raise(ipsec.Event{Kind: ipsec.Moved, ID: id, Remote: to})
		}
		c := m.bob.Calls("Redirect")
		return len(c) > 0 && c[len(c)-1].Remote == to && errors.Is(c[len(c)-1].Err, err)
	}
	m.bob.FailOn("Redirect", ipsectest.ErrInjected)
	await(t, "it cannot follow", func() bool { return followed(ipsectest.ErrInjected) })
	m.bob.FailOn("Redirect", nil)
	await(t, "it has followed", func() bool { return followed(nil) })
}

// What is found of the name of a client that is not there any more lets nobody in: it has no address, and counts nowhere.
func TestLodgerIsGoneWhenItsNameIsFound(t *testing.T) {
	t.Parallel()
	m := newLodging(t, 0)
	alice := m.add("alice.example")
	m.namedOnly()
	found := make(chan struct{})
	m.bob.l.d.find = func(_ string, remote netip.Addr) (pad.Claim, string) {
		<-found
		c := alice.claim
		c.Addr = remote
		return c, ""
	}
	alice.lookup(m.bob)
	await(t, "its name is looked up", func() bool { return m.looking() == 1 })
	alice.OnSend(func(ipsectest.Datagram) {}) // it does not begin again
	m.bob.do(t, func(now time.Time) {
		for sa := range m.bob.l.refusals.asked {
			m.bob.l.output(now, m.bob.l.engine.Do(now, sa, ike.Delete))
		}
	})
	close(found)
	await(t, "it is found", func() bool { return m.looking() == 0 })
	m.bob.do(t, func(time.Time) {
		if l := m.bob.l; len(l.lodgers.of)+len(l.lodgers.taken)+len(l.lodgers.at)+len(l.callers.claims) > 0 {
			t.Errorf("left: %v at %v, %v", l.lodgers.of, l.lodgers.at, l.callers.claims)
		}
	})
}
