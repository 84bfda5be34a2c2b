package daemon

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tacit/config"
	"tacit/flows"
	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
	"tacit/pad"
	"tacit/policy"
)

// Clients behind a NAT that have a name, whose address the NAT's is.

// finds has bob find a claim for the name of a client, and nothing for others.
func (m *lodging) finds(c *end, takes time.Duration) (asked *atomic.Int32) {
	asked = &atomic.Int32{}
	m.bob.l.d.find = func(name string, remote netip.Addr) (pad.Claim, string) {
		asked.Add(1)
		if remote != theNAT {
			m.t.Errorf("%s is looked up at %v", name, remote)
		}
		time.Sleep(takes)
		if name != c.claim.Name {
			return pad.Claim{}, "nothing is proven"
		}
		claim := c.claim
		claim.Addr = remote
		return claim, ""
	}
	return asked
}

// namedOnly has bob let nobody in who is nobody.
func (m *lodging) namedOnly() {
	m.bob.do(m.t, func(time.Time) {
		f := m.bob.l.d.cfg.File
		f.Policy[0].AcceptAnonymous = false
		m.bob.l.d.obey(f)
	})
}

// speak is the first packet on every SA of bob's.
func (m *lodging) speak() {
	for id := range m.bob.Pairs() {
		m.bob.Raise(ipsec.Event{Kind: ipsec.FirstPacket, ID: id})
	}
}

// looking is how many names bob is looking up.
func (m *lodging) looking() (n int) {
	m.bob.do(m.t, func(time.Time) { n = len(m.bob.l.callers.inquiries) })
	return n
}

// row is bob's line of the i-th client.
func (m *lodging) row(i int) peerRow { return m.rows()[uint16(i+1)*10_000+4500] }

// newNamedLodger is a server with a client behind a NAT that has proved its name, and how often that was looked up.
func newNamedLodger(t *testing.T) (m *lodging, alice *end, asked *atomic.Int32) {
	t.Helper()
	m = newLodging(t, 0)
	alice = m.add("alice.example")
	asked = m.finds(alice, 0)
	if o := outcomeOf(t, alice.lookup(m.bob)); !o.ok {
		t.Fatal(o.why)
	}
	m.speak()
	await(t, "alice is proven", func() bool { return strings.Contains(m.row(0).names, "alice.example") })
	return m, alice, asked
}

// R7: the name of a client behind a NAT counts for the address that it was assigned, and not for the NAT's: no peer is at that, nothing is told to our other addresses, and
// nothing of it is kept when it has gone.
func TestLodgerHasAName(t *testing.T) {
	t.Parallel()
	for _, anonymous := range []bool{true, false} {
		m := newLodging(t, 0)
		alice := m.add("alice.example")
		m.finds(alice, 0)
		if !anonymous {
			m.namedOnly()
		}
		m.bob.l.d.host.env.Store(&pad.Environment{Own: []netip.Addr{m.bob.addr, netip.MustParseAddr("192.0.2.3")}, Pools: m.bob.l.d.cfg.File.NATPool})
		if o := outcomeOf(t, alice.lookup(m.bob)); !o.ok {
			t.Fatal(o.why)
		}
		m.speak()
		await(t, "alice is proven", func() bool { return strings.Contains(m.row(0).names, "alice.example") })
		if r := m.row(0); r.state != "protected" || r.assurance != "authenticated" || r.why != "proved the key of alice.example: behind a NAT at 198.51.100.9:14500" {
			t.Errorf("anonymous %v: %+v", anonymous, r)
		}
		for _, p := range m.bob.Pairs() {
			if !p.Authenticated || p.Mode != ipsec.Tunnel {
				t.Errorf("bob's %+v", p)
			}
		}
		m.bob.do(t, func(now time.Time) {
			for k, p := range m.bob.l.peers {
				if _, _, kept := p.proof(now); kept || k.local != m.bob.addr || !assigned(m.bob.l.d.host.environment(), k.remote) || p.last.Addr != k.remote || !p.pad.Live() {
					t.Errorf("at %v: %+v, kept %v", k, p.last, kept)
				}
			}
		})
		alice.stop()
		await(t, "nothing is left of it but a hold for what has just been said", func() bool {
			left := 0
			m.bob.do(t, func(now time.Time) {
				left = len(m.bob.l.lodgers.of) + len(m.bob.l.callers.claims) + len(m.bob.l.bySA)
				for _, p := range m.bob.l.peers {
					if p.pad.Held(now) || p.last.Name != "" || p.held.After(now.Add(armedWithin)) {
						left++
					}
				}
			})
			return left == 0
		})
	}
}

// R7: "where anonymous is allowed the SA comes up anonymous at once and is promoted when the proof arrives"; where it is not it waits for that.
func TestLodgerIsPromoted(t *testing.T) {
	t.Parallel()
	m := newLodging(t, 0)
	alice := m.add("alice.example")
	m.finds(alice, 500*time.Millisecond)
	began := time.Now()
	if o := outcomeOf(t, alice.lookup(m.bob)); !o.ok || time.Since(began) > 400*time.Millisecond {
		t.Fatalf("%+v after %v", o, time.Since(began))
	}
	if r := m.row(0); r.assurance != "anonymous" {
		t.Errorf("before the proof: %+v", r)
	}
	m.speak()
	await(t, "alice is promoted", func() bool {
		r := m.row(0)
		return r.assurance == "authenticated" && strings.Contains(r.names, "alice.example")
	})

	m = newLodging(t, 0)
	alice = m.add("alice.example")
	m.finds(alice, 300*time.Millisecond)
	m.namedOnly()
	if o := outcomeOf(t, alice.lookup(m.bob)); !o.ok {
		t.Fatal(o.why)
	}
	if r := m.row(0); r.assurance != "authenticated" {
		t.Errorf("who may not be nobody is %+v", r)
	}
}

// A name that is found while connections with an earlier client are being ended is not forgotten for that.
func TestLodgerIsNamedWhileItsAddressIsFreed(t *testing.T) {
	t.Parallel()
	m := newLodging(t, 0)
	alice := m.add("alice.example")
	asked := m.finds(alice, 2*patience)
	listing := make(chan struct{})
	m.bob.l.d.cfg.Flows = func() ([]flows.Flow, error) { <-listing; return nil, nil }
	reply := alice.lookup(m.bob)
	await(t, "its name is looked up, and has been found", func() bool { return asked.Load() == 1 && m.looking() == 0 })
	close(listing)
	if o := outcomeOf(t, reply); !o.ok {
		t.Fatal(o.why)
	}
	if r := m.row(0); r.assurance != "authenticated" {
		t.Errorf("got %+v", r)
	}
}

// a name that is not the NAT's address's, or whose key the client has not, is nobody's, also if the key is the server's own; nor is one whose address the
// administrator has given to somebody. Where nobody comes in, nothing is left of it.
//
//tacit:attack A-18 behind a NAT: nobody, or refused
func TestStolenNameBehindNAT(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(m *lodging){
		"not the NAT's address": func(m *lodging) {
			m.bob.l.d.find = func(string, netip.Addr) (pad.Claim, string) {
				return pad.Claim{}, theNAT.String() + " is no address of alice.example"
			}
		},
		"another's key":    func(m *lodging) { m.finds(newEnd(t, "192.0.2.7", "alice.example"), 0) },
		"the server's key": func(m *lodging) { m.finds(&end{claim: pad.Claim{Name: "alice.example.", Keys: m.bob.claim.Keys}}, 0) },
		"another's pin": func(m *lodging) {
			f := m.bob.l.d.cfg.File
			f.Pins = config.Pins{theNAT.String(): {m.clients[0].claim.Keys[0].ID}}
			m.bob.do(t, func(time.Time) { m.bob.l.d.obey(f) })
		},
	} {
		for _, anonymous := range []bool{true, false} {
			m := newLodging(t, 0)
			alice := m.add("alice.example")
			m.finds(alice, 0)
			change(m)
			if !anonymous {
				m.namedOnly()
			}
			o := outcomeOf(t, alice.lookup(m.bob))
			m.speak()
			time.Sleep(20 * time.Millisecond)
			if r := m.row(0); o.ok != anonymous || r.assurance == "authenticated" || strings.Contains(r.names, "alice") {
				t.Errorf("%s, anonymous %v: %+v, %+v", what, anonymous, o, r)
			}
			m.bob.do(t, func(time.Time) {
				if l := m.bob.l; !anonymous && len(m.bob.Pairs())+len(l.peers)+len(l.lodgers.of) > 0 {
					t.Errorf("%s: something is left", what)
				}
			})
		}
	}
}

// of two clients behind one NAT who tell the same name the one is it that has its key, whoever comes first; the other profits by nothing.
//
//tacit:attack A-29 the name of one client behind a NAT is no other's
func TestNamesBehindOneNAT(t *testing.T) {
	t.Parallel()
	m := newLodging(t, 0)
	mallory, alice := m.add("alice.example"), m.add("alice.example")
	m.add("")
	m.finds(alice, 0)
	for _, c := range []*end{mallory, alice, m.clients[2]} {
		if o := outcomeOf(t, c.lookup(m.bob)); !o.ok {
			t.Fatal(o.why)
		}
		m.speak()
	}
	await(t, "alice is proven", func() bool { return strings.Contains(m.row(1).names, "alice.example") })
	for _, i := range []int{0, 2} {
		if r := m.row(i); r.assurance != "anonymous" || strings.Contains(r.names, "alice") {
			t.Errorf("the client %d is %+v", i, r)
		}
	}
	if r := m.row(1); r.assurance != "authenticated" {
		t.Errorf("alice is %+v", r)
	}
}

// R7: a name is bound to the address that it was proven of. A client that has one is followed to another port, and to no other address: one that says itself that it is
// there ends. Who is there when its name is found is not who told it.
func TestNamedLodgerMoves(t *testing.T) {
	t.Parallel()
	elsewhere := netip.MustParseAddrPort("198.51.100.10:14501")
	m, alice, _ := newNamedLodger(t)
	alice.OnSend(func(ipsectest.Datagram) {}) // no message moves it back
	var said atomic.Int32
	m.bob.OnSend(func(ipsectest.Datagram) { said.Add(1) })
	m.bob.do(t, func(now time.Time) {
		l := m.bob.l
		for _, to := range []netip.AddrPort{netip.AddrPortFrom(theNAT, 14_501), elsewhere} {
			for id := range l.pairs {
				l.moved(now, ipsec.Event{Kind: ipsec.Moved, ID: id, Remote: to})
			}
		}
		for _, p := range l.peers {
			if p.outer != netip.AddrPortFrom(theNAT, 14_501) || p.sas[0].deleting {
				t.Errorf("followed to %v", p.outer)
			}
		}
		said.Store(0)
		for sa := range l.lodgers.of {
			l.output(now, l.engine.Follow(now, sa, elsewhere))
		}
	})
	await(t, "it is told the end", func() bool { return said.Load() > 0 })
}

// A client that has moved when its name is found is not promoted: nothing is known of where it is now.
func TestLodgerMovesBeforeItsNameIsFound(t *testing.T) {
	t.Parallel()
	m := newLodging(t, 0)
	alice := m.add("alice.example")
	asked := m.finds(alice, 300*time.Millisecond)
	if o := outcomeOf(t, alice.lookup(m.bob)); !o.ok {
		t.Fatal(o.why)
	}
	alice.OnSend(func(ipsectest.Datagram) {})
	await(t, "it is known what DNS says", func() bool {
		if asked.Load() == 1 && m.looking() == 0 {
			return true
		}
		m.bob.do(t, func(now time.Time) {
			if len(m.bob.l.callers.inquiries) == 0 {
				return
			}
			for sa := range m.bob.l.lodgers.of { // messages that were under way may move it back
				m.bob.l.output(now, m.bob.l.engine.Follow(now, sa, netip.MustParseAddrPort("198.51.100.10:14500")))
			}
		})
		return false
	})
	m.speak()
	if r := m.row(0); r.assurance != "anonymous" || !strings.Contains(r.why, "198.51.100.10") {
		t.Errorf("got %+v", r)
	}
}

// R9: when what DNS said of the name has ended it is asked again, of the NAT's address. What is not said again makes the SA lame.
func TestNameOfLodgerEnds(t *testing.T) {
	t.Parallel()
	m, alice, asked := newNamedLodger(t)
	later := func(in time.Duration) (st state) {
		m.bob.do(t, func(now time.Time) {
			for _, p := range m.bob.l.peers {
				p.pad.Alive(now.Add(in))
				p.sas[0].usage.in = readingOf(now.Add(in))
				m.bob.l.step(now.Add(in), p, evTick{})
				st = p.state
			}
		})
		return st
	}
	if s := later(2 * time.Hour); s != lame {
		t.Errorf("it is %v", s)
	}
	await(t, "it was asked again", func() bool { return asked.Load() == 2 && m.looking() == 0 })
	alice.claim.Until = time.Now().Add(10 * time.Hour)
	await(t, "it is said again", func() bool { return later(3*time.Hour) == protected })
}

// The rule of a client with a name is that of the NAT's address, where none names the name: at a reload, too.
func TestNamedLodgerObeysItsRule(t *testing.T) {
	t.Parallel()
	m, _, _ := newNamedLodger(t)
	d := m.bob.l.d
	for i, r := range []policy.Rule{
		{Prefixes: []netip.Prefix{netip.PrefixFrom(theNAT, 32)}, Class: policy.PrivateOrClear}, // nobody is let in, but it is somebody
		{Prefixes: []netip.Prefix{netip.PrefixFrom(theNAT, 32)}, Class: policy.Block},
	} {
		f := *d.cfg.File
		f.Policy = append([]policy.Rule{r}, f.Policy...)
		if err := d.Reload(t.Context(), &f); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			time.Sleep(20 * time.Millisecond)
			if n := len(m.bob.Pairs()); n != 1 {
				t.Error("it has ended, though it may be there")
			}
		}
	}
	await(t, "it has ended", func() bool { return len(m.bob.Pairs()) == 0 })
}

// What becomes of such a client is said with its name, its address, and where it is.
func TestAuditOfNamedLodger(t *testing.T) {
	t.Parallel()
	m, _, _ := newNamedLodger(t)
	said := ""
	for _, e := range m.bob.l.d.trail.after(t.Context(), 0).Events {
		said += fmt.Sprintln(e.Kind, e.Name, e.Assurance, e.Why)
		if !assigned(m.bob.l.d.host.environment(), e.Address) {
			t.Errorf("an event of %v", e.Address)
		}
	}
	if want := "sa-up alice.example authenticated proved the key of alice.example: behind a NAT at 198.51.100.9:14500\n"; said != want {
		t.Errorf("said %q, want %q", said, want)
	}
}
