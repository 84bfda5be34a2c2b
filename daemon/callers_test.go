package daemon

import (
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tacit/config"
	"tacit/dnssec"
	"tacit/ike"
	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
	"tacit/ipseckey"
	"tacit/pad"
	"tacit/policy"
	"tacit/resolver"
)

// meeting is a named initiator and a responder that looks it up.
type meeting struct {
	t          *testing.T
	alice, bob *end
}

// newMeeting has bob find what answer says after a while.
func newMeeting(t *testing.T, takes time.Duration, answer func(alice *end) (pad.Claim, string)) *meeting {
	t.Helper()
	m := &meeting{t, newEnd(t, "192.0.2.1", "alice.example"), newEnd(t, "192.0.2.2", "bob.example")}
	m.alice.l.d.cfg.File.Identify = "all"
	m.bob.l.d.find = func(name string, remote netip.Addr) (pad.Claim, string) {
		if name != "alice.example." || remote != m.alice.addr {
			t.Errorf("looked up %s at %v", name, remote)
		}
		time.Sleep(takes)
		return answer(m.alice)
	}
	ipsectest.Wire(m.alice.Fake, m.bob.Fake)
	close(m.alice.gate)
	close(m.bob.gate)
	return m
}

// arrives is the first packet of the initiator on every SA of bob's.
func (m *meeting) arrives() {
	for id := range m.bob.Pairs() {
		m.bob.Raise(ipsec.Event{Kind: ipsec.FirstPacket, ID: id})
	}
}

// row is bob's line of alice in status.
func (m *meeting) row() (r peerRow) {
	if err := m.bob.l.ask(m.t.Context(), func(now time.Time) {
		for _, p := range m.bob.l.peers {
			c, a := p.row(now)
			r = peerRow{string(c.State), string(c.Assurance), strings.Join(c.Names, " "), c.Why, p.pad.Live(), !p.held.IsZero(), a != nil && a.initiator}
		}
	}); err != nil {
		m.t.Fatal(err)
	}
	return r
}

type peerRow struct {
	state, assurance, names, why string
	live, held, begun            bool
}

func theClaim(alice *end) (pad.Claim, string) { return alice.claim, "" }

// R7: the name of an initiator counts when DNS says that it is the address's. R10: and enforces nothing before its first packet.
func TestInitiatorIsLookedUp(t *testing.T) {
	t.Parallel()
	m := newMeeting(t, 0, theClaim)
	if o := outcomeOf(t, m.alice.lookup(m.bob)); !o.ok {
		t.Fatalf("withheld: %s", o.why)
	}
	if r := m.row(); r.assurance != "authenticated" || r.live || r.held {
		t.Errorf("before the first packet: %+v", r)
	}
	m.arrives()
	await(t, "alice is proven", func() bool { return m.row().live })
	if r := m.row(); r.names != "alice.example" || r.why != "proved the key of alice.example" {
		t.Errorf("got %+v", r)
	}
	if o := outcomeOf(t, m.bob.lookup(m.alice)); !o.ok {
		t.Errorf("bob's own lookup: %s", o.why)
	}
	if r := m.row(); r.begun {
		t.Error("bob has begun an SA of his own")
	}
}

// R7: "where anonymous is allowed the SA comes up anonymous at once and is promoted when the proof arrives".
func TestInitiatorIsPromoted(t *testing.T) {
	t.Parallel()
	m := newMeeting(t, 500*time.Millisecond, theClaim)
	began := time.Now()
	if o := outcomeOf(t, m.alice.lookup(m.bob)); !o.ok || time.Since(began) > 400*time.Millisecond {
		t.Fatalf("%+v after %v", o, time.Since(began))
	}
	if r := m.row(); r.assurance != "anonymous" {
		t.Errorf("before the proof: %+v", r)
	}
	m.arrives()
	await(t, "alice is promoted", func() bool { r := m.row(); return r.live && r.names == "alice.example" })
	await(t, "the Pair is an authenticated one", func() bool {
		for _, p := range m.bob.Pairs() {
			return p.Authenticated
		}
		return false
	})
}

// a name that DNS does not give to this address and key is nobody's. Where nobody comes in, it is refused.
//
//tacit:attack A-18 nobody, or refused; no claim is made
func TestStolenNameIsNobody(t *testing.T) {
	t.Parallel()
	other, err := ipseckey.GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	for what, answer := range map[string]func(*end) (pad.Claim, string){
		"not his address": func(*end) (pad.Claim, string) { return pad.Claim{}, "192.0.2.1 is no address of alice.example" },
		"another key": func(alice *end) (pad.Claim, string) {
			c := alice.claim
			c.Keys = []pad.Key{pad.KeyOf(other.Public())}
			return c, ""
		},
	} {
		for _, anonymous := range []bool{true, false} {
			m := newMeeting(t, 0, answer)
			if !anonymous {
				f := m.bob.l.d.cfg.File
				f.Policy[0].AcceptAnonymous = false
				m.bob.l.d.obey(f)
			}
			o := outcomeOf(t, m.alice.lookup(m.bob))
			m.arrives()
			time.Sleep(20 * time.Millisecond)
			if r := m.row(); o.ok != anonymous || r.assurance == "authenticated" || r.live || r.names != "" {
				t.Errorf("%s, anonymous %v: %+v, %+v", what, anonymous, o, r)
			}
		}
	}
}

// An alias is no way around the rule of the name that it leads to, however late that is found: who has come in as nobody meanwhile is not let stay.
func TestAliasOfClosedName(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} {
		for _, class := range []policy.Class{policy.Block, policy.Clear} {
			answer := make(chan struct{})
			m := newMeeting(t, 0, func(alice *end) (pad.Claim, string) {
				<-answer
				c := alice.claim
				c.Name = "closed.example."
				return c, ""
			})
			f := m.bob.l.d.cfg.File
			f.Policy = append([]policy.Rule{{Names: []string{"closed.example."}, Class: class}}, f.Policy...)
			m.bob.l.d.obey(f)
			reply := m.alice.lookup(m.bob)
			if !late {
				close(answer)
			}
			if o := outcomeOf(t, reply); o.ok != late {
				t.Errorf("%v, found late %v: %+v", class, late, o)
			}
			if late {
				if r := m.row(); r.assurance != "anonymous" {
					t.Errorf("%v, before its name is found: %+v", class, r)
				}
				m.arrives()
				close(answer)
			}
			await(t, "nothing is left of it", func() bool {
				r := m.row()
				if r.assurance == "authenticated" || r.live || r.names != "" {
					t.Fatalf("%v, found late %v: %+v", class, late, r)
				}
				return len(m.bob.Pairs()) == 0
			})
		}
	}
}

// Who may not be nobody waits for the proof of his name.
func TestNamedOnlyWaitsForItsName(t *testing.T) {
	t.Parallel()
	m := newMeeting(t, 300*time.Millisecond, theClaim)
	f := m.bob.l.d.cfg.File
	f.Policy[0].AcceptAnonymous = false
	m.bob.l.d.obey(f)
	if o := outcomeOf(t, m.alice.lookup(m.bob)); !o.ok {
		t.Fatalf("withheld: %s", o.why)
	}
	m.arrives()
	await(t, "alice is proven", func() bool { return m.row().live })
}

// R8: strangers who tell names of theirs cost a bounded number of lookups, and one each.
func TestInquiriesAreBounded(t *testing.T) {
	p := newPlay(t)
	l := idleLoop(t, p)
	var asked atomic.Int32
	block := make(chan struct{})
	defer close(block)
	defer close(l.ended)
	l.d.find = func(string, netip.Addr) (pad.Claim, string) {
		asked.Add(1)
		<-block
		return pad.Claim{}, "no answer"
	}
	for i := range 200 {
		remote := netip.AddrFrom4([4]byte{198, 51, 100, byte(i%20 + 1)})
		l.admit(p.now, ike.AuthorizationWanted{SA: ike.SAID(i), ID: ike.ID{Kind: ike.IDFQDN, Value: "n" + string(rune('a'+i%2)) + ".example"},
			Local: netip.AddrPortFrom(p.p.local, 500), Remote: netip.AddrPortFrom(remote, 500)})
	}
	if n := len(l.callers.inquiries); n != maxNetInquiries {
		t.Errorf("%d lookups for one network, want %d", n, maxNetInquiries)
	}
	for i := range 4 * maxInquiries {
		remote := netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 1})
		l.admit(p.now, ike.AuthorizationWanted{SA: ike.SAID(1000 + i), ID: ike.ID{Kind: ike.IDFQDN, Value: "n.example"},
			Local: netip.AddrPortFrom(p.p.local, 500), Remote: netip.AddrPortFrom(remote, 500)})
	}
	if n := len(l.callers.inquiries); n != maxInquiries {
		t.Errorf("%d lookups, want %d", n, maxInquiries)
	}
	for c, q := range l.callers.inquiries {
		if len(q.sas) > maxInquiryCalled {
			t.Errorf("%d wait for %v", len(q.sas), c)
		}
		l.inquired(p.now, c, pad.Claim{}, "no answer")
	}
	if len(l.callers.inquiries)+len(l.callers.networks)+len(l.callers.claims) != 0 {
		t.Errorf("left: %+v", l.callers)
	}
}

// R3: where the administrator says who is at an address nobody is asked for a name, and no other name or key comes in; elsewhere names are looked up.
func TestPinnedInitiatorIsNotLookedUp(t *testing.T) {
	p := newPlay(t)
	l := idleLoop(t, p)
	defer close(l.ended)
	pinned, other, at := netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("198.51.100.8"), netip.MustParseAddr("198.51.100.9")
	l.d.now = func() time.Time { return p.now }
	f := *l.d.cfg.File
	f.Peer = []config.Peer{{Name: "alice.example.", Address: pinned, Pin: []string{"SHA256:x"}}, {Name: "bob.example.", Pin: []string{"SHA256:y"}}}
	f.Pins = config.Pins{"198.51.100.9": {"SHA256:z"}}
	l.d.pins = pinsOf(f.Peer)
	l.d.obey(&f)
	l.d.find = func(string, netip.Addr) (pad.Claim, string) { return pad.Claim{}, "no answer" }
	for i, tt := range []struct {
		name   string
		from   netip.Addr
		lookup int
	}{{"alice.example", pinned, 0}, {"alice.example", other, 1}, {"bob.example", pinned, 1}, {"carol.example", at, 1}} {
		l.admit(p.now, ike.AuthorizationWanted{SA: ike.SAID(i), ID: ike.ID{Kind: ike.IDFQDN, Value: tt.name},
			Local: netip.AddrPortFrom(p.p.local, 500), Remote: netip.AddrPortFrom(tt.from, 500)})
		if n := len(l.callers.inquiries); n != tt.lookup {
			t.Errorf("%s at %v: %d lookups, want %d", tt.name, tt.from, n, tt.lookup)
		}
	}
	for sa, want := range map[ike.SAID]string{0: "alice.example. SHA256:x", 2: "198.51.100.7. SHA256:x", 3: "198.51.100.9. SHA256:z"} {
		if c := l.callers.claims[sa]; len(c.Keys) != 1 || c.Name+" "+c.Keys[0].ID != want {
			t.Errorf("claim %+v, want %s", c, want)
		}
	}
}

// TestClaimOf: everything that a name's claim on the address that its host stands at needs.
func TestClaimOf(t *testing.T) {
	remote := netip.MustParseAddr("192.0.2.1")
	good := func() resolver.Found {
		return resolver.Found{Asked: "alice.example.", Owner: "alice.example.", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.9"), remote},
			AddrStatus: dnssec.Secure, KeyStatus: dnssec.Secure, Keys: []ipseckey.Record{{Key: testKey(1)}}, Until: time.Now().Add(time.Hour)}
	}
	if c, why := claimOf(nil, good(), pad.Environment{}, remote); len(c.Keys) != 1 || c.Name != "alice.example." || c.Addr != remote || why != "" {
		t.Errorf("got %+v, %q", c, why)
	}
	for what, spoil := range map[string]func(f *resolver.Found){
		"no address of alice.example":             func(f *resolver.Found) { f.Addrs = f.Addrs[:1] },
		"the addresses of alice.example are inse": func(f *resolver.Found) { f.AddrStatus = dnssec.Insecure },
		"the key of alice.example is bogus":       func(f *resolver.Found) { f.KeyStatus = dnssec.Bogus },
		"the key of alice.example is indetermina": func(f *resolver.Found) { f.KeyStatus = dnssec.Indeterminate },
		"publishes no key for its address":        func(f *resolver.Found) { f.Keys, f.Denied = nil, true },
		"its gateway is a name":                   func(f *resolver.Found) { f.Keys[0].GatewayType = ipseckey.GatewayName },
		"a private address": func(f *resolver.Found) {
			remote = netip.MustParseAddr("10.0.0.1")
			f.Addrs = []netip.Addr{remote}
		},
	} {
		f := good()
		spoil(&f)
		if c, why := claimOf(nil, f, pad.Environment{}, remote); len(c.Keys) != 0 || !strings.Contains(why, what) {
			t.Errorf("want %q: got %+v, %q", what, c, why)
		}
		remote = netip.MustParseAddr("192.0.2.1")
	}
}

// R2, R3: a host rolls its key over where every name behind the live one publishes the new one too; a set that lists somebody's key beside one
// of its own is no way to take his address.
func TestKeyBesideTheLiveOne(t *testing.T) {
	roll := func(names ...string) (*play, ike.SAID) {
		p := newProven(t) // bob.example., key 1
		for _, n := range names {
			p.p.pad.Ask(p.now, p.claim(n, 1, 2))
		}
		p.event(ike.Established{SA: 7, Key: testKey(2), RemoteID: ike.ID{Kind: ike.IDFQDN, Value: "x"}})
		p.event(evNamed{7, p.claim(names[0], 1, 2)})
		p.event(ike.ChildUp{SA: 7, Pair: ipsec.Pair{ID: 107}})
		p.event(evFirst{107})
		return p, 7
	}
	p, _ := roll("bob.example.")
	if k, _, _ := p.p.pad.Key(); k.ID != pad.KeyOf(testKey(2)).ID {
		t.Error("the new key is not the live one")
	}
	p, sa := roll("evil.example.", "evil.example.")
	if k, _, _ := p.p.pad.Key(); k.ID != pad.KeyOf(testKey(1)).ID {
		t.Error("a name that lists bob's key has taken the address")
	}
	if a := p.p.sa(sa); a != nil && a.up && !a.deleting {
		t.Error("its SA stays")
	}
}

// R9: the name of a client is looked up again when its claim ends, and what does not hold any more is lame.
func TestInitiatorsNameIsAskedAgain(t *testing.T) {
	p := newPlay(t)
	c := p.claim("alice.example.", 1)
	c.Until = p.now.Add(30 * time.Second)
	p.event(ike.Established{SA: 7, Key: testKey(1), RemoteID: ike.ID{Kind: ike.IDFQDN, Value: "alice.example"}})
	p.event(evNamed{7, c})
	p.event(ike.ChildUp{SA: 7, Pair: ipsec.Pair{ID: 107}})
	p.event(evFirst{107})
	p.pass(29 * time.Second)
	if p.wantState(protected); count[doAsk](p) != 0 {
		t.Error("asked while the claim holds")
	}
	p.pass(2 * time.Minute)
	if p.wantState(lame); count[doAsk](p) != 2 {
		t.Errorf("asked %d times within two minutes", count[doAsk](p))
	}
	p.event(evClaim{p.claim("alice.example.", 1)})
	p.pass(time.Second)
	p.wantState(protected)
}
