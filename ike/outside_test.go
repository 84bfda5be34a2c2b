package ike

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// led is a world in which a NAT leads to b, which knows its address.
func led(t *testing.T) (a, b *host, w *world, p Peer) {
	a, b, w = pairOf(t)
	b.e.cfg.Inner, b.e.cfg.Outside = true, []netip.Addr{netip.MustParseAddr("2001:db8::9"), outsideNAT}
	shift := uint16(0)
	translate(w, b, outsideNAT, &shift)
	p = peerOf(a, b)
	p.Remote = netip.AddrPortFrom(outsideNAT, portIKE)
	return a, b, w, p
}

// The address of a NAT that leads to an end is its own to the other, whoever begins, and whichever mode that asks for: in the traffic selectors and inside of a tunnel. It is so
// through rekeys of both kinds, whoever asks for them; the end's data plane is told its own address beside it.
func TestOutside(t *testing.T) {
	for what, begins := range map[string]byte{"it is asked": 'a', "it asks": 'b'} {
		a, b, w, p := led(t)
		first, second := a, b
		if begins == 'b' {
			first, second, p = b, a, peerOf(b, b)
			p.Remote, p.RemoteID, p.Auth = addrA, ID{}, Authorization{Anonymous: true}
		}
		second.authorize = func(e AuthorizationWanted) Authorization {
			if e.Inner || begins == 'b' && e.Remote.Addr() != outsideNAT {
				t.Errorf("%s: %+v", what, e)
			}
			return Authorization{Anonymous: true, Mode: ipsec.Transport}
		}
		p.Auth.Mode = ipsec.Transport
		id := w.initiate(first, p)
		if !w.until(time.Second, bothUp(a, b)) {
			t.Fatalf("%s: not up\n%s\n%s", what, a.dump(), b.dump())
		}
		e, _ := find[Established](second)
		check := func(ups int) {
			t.Helper()
			ua, _ := find[ChildUp](a)
			ub, _ := find[ChildUp](b)
			if ua.Pair.Selector != ipsec.Host(addrA.Addr(), outsideNAT) || ua.Pair.Inner.IsValid() || ua.Pair.Mode != ipsec.Tunnel || ua.Pair.Remote != netip.AddrPortFrom(outsideNAT, portNATT) {
				t.Errorf("%s: the other's %+v", what, ua.Pair)
			}
			if ub.Pair.Selector != ipsec.Host(addrB.Addr(), addrA.Addr()) || ub.Pair.Inner != outsideNAT || ub.Pair.Mode != ipsec.Tunnel || ub.Pair.Remote.Addr() != addrA.Addr() || !ub.Pair.Encapsulated() {
				t.Errorf("%s: its %+v", what, ub.Pair)
			}
			if count[ChildUp](a) != ups || count[ChildUp](b) != ups {
				t.Errorf("%s: %d and %d Child SAs, want %d", what, count[ChildUp](a), count[ChildUp](b), ups)
			}
			checkPaired(t, a, b)
			checkSound(t, a, b)
		}
		check(1)
		for i, do := range []func(c Command){
			func(c Command) { w.take(first, first.e.Do(w.now, id, c)) },
			func(c Command) { w.take(second, second.e.Do(w.now, e.SA, c)) },
		} {
			for _, c := range []Command{RekeyIKE, RekeyChild} {
				do(c)
				w.run(2 * time.Second)
			}
			check(i + 2)
		}
	}
}

// Both ends may be behind NATs: the one that is led to is where its NAT is, and assigns the other an address.
func TestOutsideAndInner(t *testing.T) {
	a, b, w, p := led(t)
	a.e.cfg.Inner = true
	before := netip.MustParseAddr("198.51.100.8")
	toB := w.tap
	w.tap = func(from *host, d *Datagram) bool {
		if from == a {
			d.Local = netip.AddrPortFrom(before, d.Local.Port()+20_000)
		} else if d.Remote.Addr() == before {
			d.Remote = netip.AddrPortFrom(addrA.Addr(), d.Remote.Port()-20_000)
		}
		return toB(from, d)
	}
	b.authorize = func(e AuthorizationWanted) Authorization { return Authorization{Anonymous: true, Inner: innerA} }
	w.initiate(a, p)
	if !w.until(time.Second, bothUp(a, b)) {
		t.Fatalf("not up\n%s\n%s", a.dump(), b.dump())
	}
	ua, _ := find[ChildUp](a)
	ub, _ := find[ChildUp](b)
	if ua.Pair.Selector != ipsec.Host(addrA.Addr(), outsideNAT) || ua.Pair.Inner != innerA {
		t.Errorf("the client's %+v", ua.Pair)
	}
	if ub.Pair.Selector != ipsec.Host(addrB.Addr(), innerA) || ub.Pair.Inner != outsideNAT || ub.Pair.Remote != netip.AddrPortFrom(before, 24_500) {
		t.Errorf("the server's %+v", ub.Pair)
	}
	checkPaired(t, a, b)
}

// TRUST.md A-28: such an address is nobody's own who is not seen at it, who has not been told so by the administrator, or whose data plane does not translate: also if the other
// asks for it in so many words.
//
//tacit:attack A-28 the address of a NAT is ours only where it leads to us and the initiator speaks to it
func TestNotOutside(t *testing.T) {
	for what, change := range map[string]func(b *host, w *world, p *Peer){
		"nobody has said so":  func(b *host, _ *world, _ *Peer) { b.e.cfg.Outside = nil },
		"another leads to it": func(b *host, _ *world, _ *Peer) { b.e.cfg.Outside = []netip.Addr{innerA} },
		"another does, and is asked for": func(b *host, _ *world, p *Peer) {
			b.e.cfg.Outside, p.Auth.Selector = []netip.Addr{innerA}, ipsec.Host(addrA.Addr(), innerA)
		},
		"its data plane does not translate":       func(b *host, _ *world, _ *Peer) { b.e.cfg.Inner = false },
		"it is asked at its own, by who sees one": func(_ *host, w *world, p *Peer) { w.tap, p.Remote = nil, addrB },
	} {
		a, b, w, p := led(t)
		p.Auth.Selector = ipsec.Host(addrA.Addr(), outsideNAT)
		change(b, w, &p)
		w.initiate(a, p)
		w.run(time.Minute)
		c, _ := find[Closed](a)
		if n := (NotifyError{}); !errors.As(c.Err, &n) || n.Type != wire.TSUnacceptable || count[ChildUp](a)+count[ChildWanted](b) > 0 {
			t.Errorf("%s: %s", what, a.dump())
		}
	}
}

// a responder that is behind a NAT is where its NAT is, and is not followed elsewhere, whoever has sent its messages on.
//
//tacit:attack A-30 a responder behind a NAT is not followed to another address
func TestOutsideIsNotFollowed(t *testing.T) {
	a, b, w, p := led(t)
	w.initiate(a, p)
	if !w.until(time.Second, bothUp(a, b)) {
		t.Fatal("not up")
	}
	s := only(t, a)
	leads := w.tap
	w.tap = func(from *host, d *Datagram) bool {
		if from == b {
			d.Local = netip.AddrPortFrom(innerA, d.Local.Port())
			return true
		}
		return leads(from, d)
	}
	e, _ := find[Established](b)
	w.take(b, b.e.Do(w.now, e.SA, Probe))
	w.run(time.Second)
	if s.remote.Addr() != outsideNAT || count[Alive](a) == 0 {
		t.Errorf("it is at %v", s.remote)
	}
}
