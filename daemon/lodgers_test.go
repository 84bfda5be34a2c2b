package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tacit/flows"
	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
	"tacit/pad"
	"tacit/policy"
)

var theNAT = netip.MustParseAddr("198.51.100.9")

// lodging is a server and its clients, who all have the same address, behind one NAT.
type lodging struct {
	t       *testing.T
	bob     *end
	clients []*end
}

func newLodging(t *testing.T, n int) *lodging {
	t.Helper()
	return newLodgingAt(t, n, newEnd(t, "192.0.2.2", "bob.example"))
}

// newLodgingAt is newLodging at a server.
func newLodgingAt(t *testing.T, n int, bob *end) *lodging {
	t.Helper()
	m := &lodging{t: t, bob: bob}
	m.bob.do(t, func(time.Time) { m.bob.s.routed = func(netip.Addr) error { return nil } })
	close(m.bob.gate)
	for range n {
		m.add("")
	}
	m.bob.OnSend(func(d ipsectest.Datagram) {
		i := d.Local.Port()/10_000 - 1
		d.Local = netip.AddrPortFrom(m.clients[i].addr, d.Local.Port()-(i+1)*10_000)
		m.clients[i].Deliver(d)
	})
	return m
}

// add adds a client. One with a name tells it, since it publishes the NAT's address.
func (m *lodging) add(name string) *end {
	m.t.Helper()
	c := newEnd(m.t, "10.0.0.1", name)
	if name != "" {
		c.l.d.cfg.File.Identify = "all"
		c.l.d.published.Store(&published{theNAT})
	}
	close(c.gate)
	m.clients = append(m.clients, c)
	port := uint16(len(m.clients)) * 10_000
	c.OnSend(func(d ipsectest.Datagram) {
		d.Remote = netip.AddrPortFrom(theNAT, d.Remote.Port()+port)
		m.bob.Deliver(d)
	})
	return c
}

// rows are bob's lines of status of clients behind NATs, by the port that they are seen at.
func (m *lodging) rows() map[uint16]peerRow {
	rows := map[uint16]peerRow{}
	m.bob.do(m.t, func(now time.Time) {
		for _, p := range m.bob.l.peers {
			if c, _ := p.row(now); c.Outer.IsValid() {
				rows[c.Outer.Port()] = peerRow{state: string(c.State), assurance: string(c.Assurance), names: fmt.Sprint(c.Names, c.Address), why: c.Why}
			}
		}
	})
	return rows
}

// two clients of one NAT that have the same address are at one each that the server has assigned: in what its data plane does, in status, and
// in theirs. They are nobody, and the NAT's own address is nobody's. Who ends gives the address back, and the next one gets another.
//
//tacit:attack A-29 each client has a flow of its own; an address is not soon another's
func TestLodgersAreApart(t *testing.T) {
	t.Parallel()
	m := newLodging(t, 2)
	for _, c := range m.clients {
		if o := outcomeOf(t, c.lookup(m.bob)); !o.ok {
			t.Fatalf("withheld: %s", o.why)
		}
	}
	var inner []netip.Addr
	for _, p := range m.bob.Pairs() {
		if p.Mode != ipsec.Tunnel || p.Remote.Addr() != theNAT || p.Inner.IsValid() || p.Authenticated {
			t.Errorf("bob's %+v", p)
		}
		inner = append(inner, p.Selector.Remote.Addr())
		m.bob.Raise(ipsec.Event{Kind: ipsec.FirstPacket, ID: p.ID})
	}
	if len(inner) != 2 || inner[0] == inner[1] || !m.bob.l.d.cfg.File.NATPool[0].Contains(inner[0]) {
		t.Fatalf("assigned: %v", inner)
	}
	for _, c := range m.clients {
		for _, p := range c.Pairs() {
			if p.Selector != ipsec.Host(c.addr, m.bob.addr) || !slices.Contains(inner, p.Inner) {
				t.Errorf("a client's %+v", p)
			}
		}
	}
	rows := m.rows()
	for _, port := range []uint16{14_500, 24_500} {
		if r := rows[port]; r.state != "protected" || r.assurance != "anonymous" || r.why != fmt.Sprintf("anonymous: behind a NAT at 198.51.100.9:%d", port) {
			t.Errorf("at port %d: %+v", port, r)
		}
	}
	await(t, "what has no SA is shut", func() bool { return len(m.bob.Rules()) == 2 && m.bob.Rules()[0].Action == ipsec.Block })
	m.bob.do(t, func(time.Time) {
		if m.bob.l.peers[key{m.bob.addr, theNAT}] != nil || len(m.bob.l.peers) != 2 {
			t.Errorf("bob's peers: %v", m.bob.l.peers)
		}
	})

	m.clients[0].stop()
	await(t, "it has given its address back", func() bool {
		n := 0
		m.bob.do(t, func(time.Time) { n = len(m.bob.l.lodgers.taken) })
		return n == 1
	})
	m.bob.do(t, func(time.Time) {
		if at, why := m.bob.l.assign(m.bob.addr, theNAT); why != "" || slices.Contains(inner, at) {
			t.Errorf("the next one gets %v, %q", at, why)
		}
	})
}

// Where nobody may be anonymous, no address is to be had, or connections with an earlier client stay, a client is refused and told so in time: its names are withheld.
func TestNoLodging(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(d *Daemon){
		"nobody anonymous": func(d *Daemon) { d.cfg.File.Policy[0].AcceptAnonymous = false; d.obey(d.cfg.File) },
		"a rule of the NAT's address": func(d *Daemon) {
			r := policy.Default()
			r.Prefixes, r.Class = []netip.Prefix{netip.PrefixFrom(theNAT, 32)}, policy.Clear
			d.cfg.File.Policy = append([]policy.Rule{r}, d.cfg.File.Policy...)
			d.obey(d.cfg.File)
		},
		"no pool":  func(d *Daemon) { d.host.env.Store(&pad.Environment{}) },
		"no route": func(d *Daemon) { d.shards.routed = func(netip.Addr) error { return errors.New("no route") } },
		"connections": func(d *Daemon) {
			d.cfg.Flows = func() ([]flows.Flow, error) { return nil, errors.New("cannot be listed") }
		},
		"of one NAT": func(d *Daemon) { d.shards.loops[0].lodgers.at[theNAT] = maxLodgers },
		"a pool that peers have taken": func(d *Daemon) {
			d.host.env.Store(&pad.Environment{Pools: []netip.Prefix{netip.MustParsePrefix("198.19.0.0/30")}})
			for i := range byte(3) {
				d.shards.loops[0].lodgers.taken[netip.AddrFrom4([4]byte{198, 19, 0, i + 1})] = 1
			}
		},
	} {
		m := newLodging(t, 1)
		m.bob.do(t, func(time.Time) { change(m.bob.l.d) })
		if o := outcomeOf(t, m.clients[0].lookup(m.bob)); o.ok || !strings.Contains(o.why, "AUTHENTICATION_FAILED") {
			t.Errorf("%s: %+v", what, o)
		}
		m.bob.do(t, func(time.Time) {
			if l := m.bob.l; len(m.bob.Pairs())+len(l.peers)+len(l.lodgers.of) > 0 {
				t.Errorf("%s: something is left", what)
			}
		})
	}
}

// A small pool is given out to its end, and each loop gives out what is its own.
func TestAssign(t *testing.T) {
	t.Parallel()
	own := netip.MustParseAddr("192.0.2.2")
	s := newTestShards(t, ipsectest.NewFake(), own, "", nil, time.Now, 4)
	s.d.shards = s
	s.routed = func(netip.Addr) error { return nil }
	s.d.host.env.Store(&pad.Environment{Pools: []netip.Prefix{netip.MustParsePrefix("198.19.0.0/24")}})
	given := map[netip.Addr]bool{}
	held := netip.MustParseAddr("198.19.0.99") // of a client that has gone, and is not over
	s.of(held).peers[key{own, held}] = &peer{}
	for _, l := range s.loops {
		for {
			at, why := l.assign(own, theNAT)
			if why != "" {
				if !strings.Contains(why, "free") {
					t.Error(why)
				}
				break
			}
			if given[at] || s.of(at) != l {
				t.Fatalf("%v: given before %v", at, given[at])
			}
			given[at], l.lodgers.taken[at] = true, 1
		}
	}
	if len(given) != 254 || given[held] {
		t.Errorf("%d addresses, want all but the first and %v", len(given), held)
	}
	if _, why := s.loops[0].assign(netip.MustParseAddr("2001:db8::2"), theNAT); !strings.Contains(why, "family") {
		t.Errorf("of the other family: %q", why)
	}
}

// A pool that a network of the host's overlaps is none, and none that a route leads into: its addresses have hosts. A route to all of it, and more, may be there for the pool.
func TestPoolsOf(t *testing.T) {
	pools := []netip.Prefix{netip.MustParsePrefix("198.19.0.0/16"), netip.MustParsePrefix("2001:2:0:7ac1::/64")}
	for network, want := range map[string]int{"192.0.2.0/24": 2, "198.19.3.0/24": 1, "198.18.0.0/15": 1, "2001:2:0:7ac1::1/128": 1, "198.20.0.0/16": 2} {
		if got := poolsOf(pools, []netip.Prefix{netip.MustParsePrefix(network)}, nil); len(got) != want {
			t.Errorf("%s: %v", network, got)
		}
	}
	for route, want := range map[string]int{"0.0.0.0/0": 2, "::/0": 2, "198.18.0.0/15": 2, "198.19.0.0/16": 2, "198.19.3.0/24": 1, "2001:2:0:7ac1::8/128": 1, "198.20.0.0/24": 2} {
		if got := poolsOf(pools, nil, []netip.Prefix{netip.MustParsePrefix(route)}); len(got) != want {
			t.Errorf("a route to %s: %v", route, got)
		}
	}
	if len(pools) != 2 {
		t.Error("the configuration has changed")
	}
}

// a client whose NAT has given it another port is followed by the data plane. Who is behind no NAT is not.
//
//tacit:attack A-30 the data plane follows clients behind a NAT, and nobody else
func TestLodgerMoves(t *testing.T) {
	t.Parallel()
	m := newLodging(t, 1)
	if o := outcomeOf(t, m.clients[0].lookup(m.bob)); !o.ok {
		t.Fatal(o.why)
	}
	to := netip.MustParseAddrPort("198.51.100.10:14501")
	for id := range m.bob.Pairs() {
		m.bob.Raise(ipsec.Event{Kind: ipsec.Moved, ID: id, Remote: to})
	}
	await(t, "the Pair has moved", func() bool {
		c := m.bob.Calls("Redirect")
		return len(c) > 0 && c[0].Remote == to && c[0].Local.Port() == 4500
	})
	await(t, "status says where it is", func() bool { // messages that were under way may have moved it back
		c := m.bob.Calls("Redirect")
		_, ok := m.rows()[c[len(c)-1].Remote.Port()]
		return ok
	})
	n := newMeeting(t, 0, theClaim)
	if o := outcomeOf(t, n.alice.lookup(n.bob)); !o.ok {
		t.Fatal(o.why)
	}
	for id := range n.bob.Pairs() {
		n.bob.Raise(ipsec.Event{Kind: ipsec.Moved, ID: id, Remote: to})
	}
	n.arrives()
	await(t, "the events were read", func() bool { return n.row().live })
	if len(n.bob.Calls("Redirect")) > 0 {
		t.Error("somebody behind no NAT is followed")
	}
}

// The rule of a client is that of the NAT's address: at a reload, too.
func TestLodgerObeysTheRuleOfItsNAT(t *testing.T) {
	t.Parallel()
	m := newLodging(t, 1)
	if o := outcomeOf(t, m.clients[0].lookup(m.bob)); !o.ok {
		t.Fatal(o.why)
	}
	d := m.bob.l.d
	f := *d.cfg.File
	r := policy.Default()
	r.Prefixes, r.AcceptAnonymous = []netip.Prefix{netip.PrefixFrom(theNAT, 32)}, false
	f.Policy = append([]policy.Rule{r}, f.Policy...)
	if err := d.Reload(t.Context(), &f); err != nil {
		t.Fatal(err)
	}
	await(t, "it is gone", func() bool { return len(m.bob.Pairs()) == 0 })
}

// an address is another client's when the data plane has no Pair of the one before any more, also where the pool is small and the Pair hard to remove:
// what the one before still sends would be taken for the other's.
//
//tacit:attack A-29 the address of a client that has gone waits for the end of its Pair
func TestLodgingIsVacatedFirst(t *testing.T) {
	t.Parallel()
	m := newLodging(t, 1)
	pool := netip.MustParsePrefix("198.19.0.0/30")
	m.bob.l.d.host.env.Store(&pad.Environment{Own: []netip.Addr{m.bob.addr}, Pools: []netip.Prefix{pool}})
	m.bob.FailOn("Remove", errors.New("busy"))
	if o := outcomeOf(t, m.clients[0].lookup(m.bob)); !o.ok {
		t.Fatal(o.why)
	}
	var inner netip.Addr
	for _, p := range m.bob.Pairs() {
		inner = p.Selector.Remote.Addr()
	}
	free := func() (all map[netip.Addr]bool) {
		all = map[netip.Addr]bool{}
		m.bob.do(t, func(time.Time) {
			for range 8 {
				if at, why := m.bob.l.assign(m.bob.addr, theNAT); why == "" {
					all[at] = true
				}
			}
		})
		return all
	}
	m.clients[0].stop()
	await(t, "it has gone, and its Pair is to be removed", func() bool {
		left := 0
		m.bob.do(t, func(time.Time) { left = len(m.bob.l.lodgers.of) + len(m.bob.l.peers) })
		return left == 0 && m.bob.did("Remove")
	})
	if all := free(); all[inner] || len(all) != 2 {
		t.Errorf("while %v is in the data plane these are free: %v", inner, all)
	}
	m.bob.FailOn("Remove", nil)
	await(t, "the Pair has gone", func() bool { return len(m.bob.Pairs()) == 0 })
	await(t, "its address is free", func() bool { return free()[inner] })
}
