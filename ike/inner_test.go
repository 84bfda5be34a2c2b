package ike

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

var (
	outsideNAT = netip.MustParseAddr("198.51.100.9")
	innerA     = netip.MustParseAddr("203.0.113.7")
)

// lodging is a world in which a is behind a NAT and b assigns an address to whoever asks for one.
func lodging(t *testing.T, inner netip.Addr, shift *uint16) (a, b *host, w *world) {
	a, b, w = pairOf(t)
	a.e.cfg.Inner = true
	translate(w, a, outsideNAT, shift)
	b.authorize = func(e AuthorizationWanted) Authorization {
		if !e.Inner {
			t.Errorf("not asked for an address: %+v", e)
		}
		return Authorization{Anonymous: true, Inner: inner}
	}
	return a, b, w
}

// RFC 7296, 2.19: the responder assigns an address, which is all that the initiator may use, in tunnel mode. It stays through rekeys of both kinds, whoever
// asks for them, and the initiator's data plane is told its own address beside it.
func TestInner(t *testing.T) {
	shift := uint16(20_000)
	a, b, w := lodging(t, innerA, &shift)
	p := peerOf(a, b)
	p.Auth.Mode = ipsec.Transport
	idA := w.initiate(a, p)
	if !w.until(time.Second, bothUp(a, b)) {
		t.Fatalf("not up\n%s\n%s", a.dump(), b.dump())
	}
	eb, _ := find[Established](b)
	check := func(when string, ups int) {
		t.Helper()
		if count[ChildUp](a) != ups || count[ChildUp](b) != ups {
			t.Errorf("%s: %d and %d Child SAs, want %d", when, count[ChildUp](a), count[ChildUp](b), ups)
		}
		ua, _ := find[ChildUp](a)
		ub, _ := find[ChildUp](b)
		if ua.Pair.Selector != ipsec.Host(addrA.Addr(), addrB.Addr()) || ua.Pair.Inner != innerA || ua.Pair.Mode != ipsec.Tunnel || !ua.Pair.Encapsulated() {
			t.Errorf("%s: the initiator's %+v", when, ua.Pair)
		}
		if ub.Pair.Selector != ipsec.Host(addrB.Addr(), innerA) || ub.Pair.Inner.IsValid() || ub.Pair.Mode != ipsec.Tunnel || ub.Pair.Remote.Addr() != outsideNAT {
			t.Errorf("%s: the responder's %+v", when, ub.Pair)
		}
		checkPaired(t, a, b)
		checkSound(t, a, b)
	}
	check("first", 1)
	for i, do := range []func(){
		func() { w.take(a, a.e.Do(w.now, idA, RekeyChild)) },
		func() { w.take(b, b.e.Do(w.now, eb.SA, RekeyChild)) },
		func() {
			w.take(a, a.e.Do(w.now, idA, RekeyIKE))
			w.run(time.Second)
			w.take(a, a.e.Do(w.now, idA, RekeyChild))
		},
		func() {
			w.take(b, b.e.Do(w.now, eb.SA, RekeyIKE))
			w.run(time.Second)
			w.take(b, b.e.Do(w.now, eb.SA, RekeyChild))
		},
	} {
		do()
		w.run(2 * time.Second)
		check([]string{"rekeyed by the initiator", "by the responder", "both by the initiator", "both by the responder"}[i], i+2)
	}
}

// A responder that assigns nothing, or what must never be taken for us, or lets us have another address than it says, gets no Child SA.
func TestSillyInner(t *testing.T) {
	for what, auth := range map[string]Authorization{
		"nothing":                 {Selector: ipsec.Host(addrB.Addr(), innerA)},
		"the NAT's address":       {},
		"loopback":                {Inner: netip.MustParseAddr("127.0.0.1")},
		"multicast":               {Inner: netip.MustParseAddr("224.0.0.1")},
		"unspecified":             {Inner: netip.MustParseAddr("0.0.0.0")},
		"broadcast":               {Inner: netip.MustParseAddr("255.255.255.255")},
		"link-local":              {Inner: netip.MustParseAddr("169.254.1.1")},
		"our own":                 {Inner: addrA.Addr()},
		"the responder's":         {Inner: addrB.Addr()},
		"one, and allows another": {Inner: innerA, Selector: ipsec.Host(addrB.Addr(), netip.MustParseAddr("203.0.113.8"))},
		"one, and allows all":     {Inner: innerA, Selector: ipsec.Selector{Local: single(addrB.Addr()), Remote: netip.MustParsePrefix("0.0.0.0/0")}},
		"of the other family":     {Inner: netip.MustParseAddr("2001:db8::7"), Selector: ipsec.Host(addrB.Addr(), innerA)},
	} {
		shift := uint16(20_000)
		a, b, w := lodging(t, innerA, &shift)
		auth.Anonymous = true
		b.authorize = func(AuthorizationWanted) Authorization { return auth }
		w.initiate(a, peerOf(a, b))
		w.run(10*time.Second + closedLife)
		if c, ok := find[Closed](a); !ok || c.Err == nil || count[ChildUp](a)+count[ChildWanted](a) > 0 {
			t.Errorf("%s: %s", what, a.dump())
		}
		if len(b.in)+len(b.e.peers) > 0 {
			t.Errorf("%s: the responder keeps something\n%s", what, b.dump())
		}
		checkSound(t, a, b)
	}
}

// Only who is behind a NAT asks for an address, if the data plane translates; and only who is behind one gets any.
func TestInnerOnlyBehindNAT(t *testing.T) {
	for what, translates := range map[string]bool{"no NAT": true, "a data plane that does not translate": false} {
		a, b, w := pairOf(t)
		a.e.cfg.Inner = translates
		shift := uint16(20_000)
		if !translates {
			translate(w, a, outsideNAT, &shift)
		}
		w.initiate(a, peerOf(a, b))
		w.run(time.Second)
		if e, ok := find[AuthorizationWanted](b); !ok || e.Inner {
			t.Errorf("%s: %+v", what, e)
		}
		if up, ok := find[ChildUp](a); ok && (up.Pair.Inner.IsValid() || !translates) {
			t.Errorf("%s: %+v", what, up)
		}
	}
}

// A NAT may forget a mapping. The responder follows valid ESP, as the data plane saw it, and authentic messages: to another address too, and with all
// Pairs (TRUST.md A-30). Who has no address of ours is not followed by his ESP.
//
//tacit:attack A-30 followed after valid ESP, and only behind a NAT
func TestInnerMoves(t *testing.T) {
	shift := uint16(20_000)
	a, b, w := lodging(t, innerA, &shift)
	id := w.initiate(a, peerOf(a, b))
	if !w.until(time.Second, bothUp(a, b)) {
		t.Fatal("not up")
	}
	s := only(t, b)
	to := netip.AddrPortFrom(netip.MustParseAddr("198.51.100.10"), 40_000)
	w.take(b, b.e.Follow(w.now, s.id, to))
	if r, ok := find[Redirected](b); !ok || r.Pair.Remote != to || r.Pair.Selector.Remote.Addr() != innerA || s.remote != to {
		t.Errorf("followed ESP to %v: %+v", s.remote, r)
	}
	w.take(b, b.e.Follow(w.now, s.id, to))
	if n := count[Redirected](b); n != 2 { // the data plane would not say it if it had followed
		t.Errorf("%d times redirected to the same, want 2", n)
	}
	shift = 30_000
	w.take(a, a.e.Do(w.now, id, Probe))
	w.run(time.Second)
	if r, _ := find[Redirected](b); r.Pair.Remote != netip.AddrPortFrom(outsideNAT, 34_500) || count[Alive](a) == 0 {
		t.Errorf("followed a message to %v", r.Pair.Remote)
	}

	a, b, w = pairOf(t)
	establish(t, w, a, b, peerOf(a, b))
	s = only(t, b)
	b.e.Follow(w.now, s.id, to)
	if s.remote == to || count[Redirected](b) > 0 {
		t.Error("somebody behind no NAT is followed")
	}
}

// The NAT may forget while a request is on its way: the answer has gone to where nobody is any more, and the repeat, which comes from elsewhere, is answered there.
func TestInnerMovesBetweenRepeats(t *testing.T) {
	shift := uint16(20_000)
	a, b, w := lodging(t, innerA, &shift)
	id := w.initiate(a, peerOf(a, b))
	if !w.until(time.Second, bothUp(a, b)) {
		t.Fatal("not up")
	}
	nat, to := w.tap, netip.MustParseAddr("198.51.100.10")
	w.tap = func(from *host, d *Datagram) bool {
		if from == b && d.Remote.Addr() == outsideNAT { // to the mapping that there was
			translate(w, a, to, &shift)
			return false
		}
		return nat(from, d)
	}
	w.take(a, a.e.Do(w.now, id, Probe))
	w.run(time.Second)
	if count[Alive](a) == 0 || b.e.Stats().Retransmitted == 0 {
		t.Errorf("%s\n%s", a.dump(), b.dump())
	}
}

// Clients of one NAT are not one peer: what one may have at once does not bound them together, and the word of one that it has begun anew ends nobody else's.
func TestInnersAreApart(t *testing.T) {
	shift := uint16(20_000)
	a, b, w := lodging(t, innerA, &shift)
	b.e.cfg.MaxPerPeer = 1
	next := innerA
	b.authorize = func(AuthorizationWanted) Authorization {
		next = next.Next()
		return Authorization{Anonymous: true, Inner: next}
	}
	for i := range 3 {
		w.initiate(a, peerOf(a, b))
		w.run(contactAge)
		if n := count[ChildUp](b); n != i+1 || count[Closed](b) > 0 || len(b.e.peers) != n {
			t.Fatalf("%d up, %d peers\n%s", n, len(b.e.peers), b.dump())
		}
	}
	if n := b.e.networks()[network(netip.AddrPortFrom(outsideNAT, 0))].Open; n != 3 {
		t.Errorf("the network has %d SAs, want 3", n)
	}
	for _, s := range b.e.sas {
		s.fail(nil)
	}
	w.take(b, b.e.Advance(w.now.Add(10*time.Hour)))
	if len(b.e.networks())+len(b.e.peers) > 0 {
		t.Errorf("left: %v, %v", b.e.networks(), b.e.peers)
	}
}

// TRUST.md A-52: a name that has the NAT's address, and none of ours, is told from behind the NAT only, and where an address can be asked for.
//
//tacit:attack A-52 a name that publishes the address of a NAT is told from behind one only
func TestNameToldBehindNAT(t *testing.T) {
	for what, tt := range map[string]struct{ behind, inner, told bool }{
		"behind a NAT": {true, true, true}, "no NAT": {false, true, false}, "a data plane that does not translate": {true, false, false},
	} {
		for _, tell := range []Tell{TellFirst, TellAfter} {
			a, b, w, p := toldPair(t, tell)
			a.e.cfg.Inner, p.TellBehindNAT = tt.inner, true
			shift := uint16(20_000)
			if tt.behind {
				translate(w, a, outsideNAT, &shift)
			}
			told, asked := false, false
			b.authorize = func(e AuthorizationWanted) Authorization {
				told, asked = told || e.ID.Kind == IDFQDN, true
				auth := Authorization{Anonymous: true}
				if e.Inner {
					auth.Inner = innerA
				}
				return auth
			}
			w.initiate(a, p)
			w.run(time.Second)
			if up := count[ChildUp](a) > 0; told != tt.told || !asked || up != tt.inner {
				t.Errorf("%s, tell %d: told %v, up %v\n%s", what, tell, told, up, a.dump())
			}
		}
	}
}

// Whichever way the peer's move becomes known, its Pairs are told of: also if it is by the first message of an heir that the peer has decided for before us.
func TestInnerMovesWithHeir(t *testing.T) {
	to := netip.MustParseAddr("198.51.100.10")
	moved := 0
	for seed := uint64(0); seed < 8; seed++ {
		a, b, w := classic(t)
		a.e.cfg.Rand, b.e.cfg.Rand, a.e.cfg.Inner = newSeeded(seed), newSeeded(seed+1000), true
		b.authorize = func(AuthorizationWanted) Authorization { return Authorization{Anonymous: true, Inner: innerA} }
		shift := uint16(20_000)
		translate(w, a, outsideNAT, &shift)
		id := w.initiate(a, peerOf(a, b))
		if !w.until(time.Second, bothUp(a, b)) {
			t.Fatal("not up")
		}
		old, bID := only(t, a), only(t, b).id
		nat := w.tap
		w.take(a, a.e.Do(w.now, id, RekeyIKE))
		w.take(b, b.e.Do(w.now, bID, RekeyIKE))
		drive(w, time.Millisecond, time.Millisecond)
		w.queue = slices.DeleteFunc(w.queue, func(f flight) bool { return f.spi == 0 && f.d.Local.Addr() == addrB.Addr() }) // a's answer
		w.tap = func(from *host, d *Datagram) bool {
			h, _ := wire.ParseHeader(d.Data)
			if from == a && h.InitiatorSPI == old.spiI {
				return false
			}
			nat(from, d)
			if from == a {
				d.Local = netip.AddrPortFrom(to, d.Local.Port())
			} else if d.Remote.Addr() == to {
				d.Remote = netip.AddrPortFrom(addrA.Addr(), d.Remote.Port()-shift)
			}
			return true
		}
		drive(w, 10*time.Millisecond, time.Millisecond)
		w.take(a, a.e.Do(w.now, id, Probe))
		drive(w, 100*time.Millisecond, time.Millisecond)
		s := b.e.find(bID)
		r, _ := find[Redirected](b)
		if s.remote.Addr() == to {
			if moved++; r.Pair.Remote != s.remote {
				t.Errorf("seed %d: the peer is at %v, and its Pairs at %v", seed, s.remote, r.Pair.Remote)
			}
		}
	}
	if moved == 0 {
		t.Error("it has never moved")
	}
}
