package ike

import (
	"crypto"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// translate puts a NAT before a host: its datagrams come from outside, at a port of their own for each of its ports.
func translate(w *world, inside *host, outside netip.Addr, shift *uint16) {
	w.tap = func(from *host, d *Datagram) bool {
		if from == inside {
			d.Local = netip.AddrPortFrom(outside, d.Local.Port()+*shift)
		} else if d.Remote.Addr() == outside {
			d.Remote = netip.AddrPortFrom(inside.addr.Addr(), d.Remote.Port()-*shift)
		}
		return true
	}
}

// RFC 7296, 2.23: behind a NAT IKE goes on at port 4500 and the ESP in UDP; both ends are told who is translated. When the NAT forgets,
// the responder follows an authentic message to the new port, and nothing else (TRUST.md A-30).
//
//tacit:attack A-30 followed after an authentic message, and no other
func TestNAT(t *testing.T) {
	outside := netip.MustParseAddr("198.51.100.9")
	a, b, w := pairOf(t)
	shift := uint16(20_000)
	translate(w, a, outside, &shift)
	p := peerOf(a, b)
	b.authorize = func(AuthorizationWanted) Authorization {
		return Authorization{Anonymous: true, Selector: ipsec.Host(addrB.Addr(), addrA.Addr()), Mode: ipsec.Tunnel}
	}
	id := w.initiate(a, p)
	if !w.until(time.Second, bothUp(a, b)) {
		t.Fatalf("not up\n%s\n%s", a.dump(), b.dump())
	}
	checkPaired(t, a, b)
	ea, _ := find[Established](a)
	eb, _ := find[Established](b)
	if ea.NAT != (NAT{Local: true}) || eb.NAT != (NAT{Remote: true}) {
		t.Errorf("NAT detected: %+v and %+v", ea.NAT, eb.NAT)
	}
	ua, _ := find[ChildUp](a)
	ub, _ := find[ChildUp](b)
	if ua.Pair.Local.Port() != 4500 || ua.Pair.Remote.Port() != 4500 || ub.Pair.Remote != netip.AddrPortFrom(outside, 24500) || ub.Pair.Local.Port() != 4500 {
		t.Errorf("pairs %v -> %v and %v -> %v", ua.Pair.Local, ua.Pair.Remote, ub.Pair.Local, ub.Pair.Remote)
	}
	s := only(t, b)
	shift = 30_000
	o := a.e.Do(w.now, id, Probe)
	forged := o.Send[0]
	bad := append([]byte(nil), forged.Data...)
	bad[len(bad)-1] ^= 1
	b.e.Receive(w.now, Datagram{forged.Remote, netip.AddrPortFrom(outside, 1), bad})
	if s.remote.Port() != 24500 {
		t.Errorf("a message that is not authentic moved the peer to %v", s.remote)
	}
	w.take(a, o)
	w.run(time.Second)
	if s.remote != netip.AddrPortFrom(outside, 34500) || count[Alive](a) == 0 {
		t.Errorf("the peer is at %v", s.remote)
	}
	checkSound(t, a, b)
}

// What an end behind a NAT asks for is not what the other sees of it, and is refused: the error says which end is behind one (RFC 7296, 2.23). It is still
// the refusal that it is.
func TestNATIsTheReason(t *testing.T) {
	outside := netip.MustParseAddr("198.51.100.9")
	refuses := func(AuthorizationWanted) Authorization { return Authorization{Refuse: true} }
	foreign := func(AuthorizationWanted) Authorization {
		return Authorization{Anonymous: true, Selector: ipsec.Host(addrB.Addr(), outside)}
	}
	for _, tt := range []struct {
		what      string
		behind    byte // a, b, or neither
		wish      bool // the responder wants its ESP in UDP
		authorize func(AuthorizationWanted) Authorization
		refusal   wire.NotifyType
		want      string // empty: no NAT is to blame
	}{
		{"the initiator", 'a', false, nil, wire.TSUnacceptable, "we are behind a NAT, and our data plane does not translate"},
		{"the initiator, which is not let in", 'a', false, refuses, wire.AuthenticationFailed, "we are behind a NAT"},
		{"the responder", 'b', false, nil, wire.TSUnacceptable, "it is behind a NAT"},
		{"the responder, which wants UDP", 'b', true, nil, wire.TSUnacceptable, "it is behind a NAT"},
		{"the responder, who refuses", 'b', false, refuses, wire.AuthenticationFailed, ""},
		{"none, who refuses", 0, true, refuses, wire.AuthenticationFailed, ""},
		{"none, who has others' traffic", 0, true, foreign, wire.TSUnacceptable, ""},
	} {
		a, b, w := pairOf(t)
		if tt.authorize != nil {
			b.authorize = tt.authorize
		}
		b.e.cfg.Encapsulate = tt.wish
		p, shift := peerOf(a, b), uint16(0)
		switch tt.behind {
		case 'a':
			translate(w, a, outside, &shift)
		case 'b':
			translate(w, b, outside, &shift)
			p.Remote = netip.AddrPortFrom(outside, portIKE)
		}
		w.initiate(a, p)
		w.run(time.Minute)
		c, ok := find[Closed](a)
		if n := (NotifyError{}); !ok || !errors.As(c.Err, &n) || n.Type != tt.refusal {
			t.Errorf("%s: closed %v with %v, want %v\n%s", tt.what, ok, c.Err, tt.refusal, a.dump())
			continue
		}
		if errors.Is(c.Err, ErrNAT) != (tt.want != "") || !strings.Contains(c.Err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.what, c.Err, tt.want)
		}
		if count[ChildUp](a)+count[ChildUp](b) > 0 {
			t.Errorf("%s: an SA came up", tt.what)
		}
	}
}

// Without a NAT nobody is behind one, and hashes that a peer leaves out are no NAT.
func TestNoNAT(t *testing.T) {
	for name, without := range map[string]bool{"both hashes": false, "none": true} {
		a, b, w := pairOf(t)
		if without {
			w.tap = stranger(t, b, func(ps []wire.Payload) []wire.Payload { return drop[*wire.Notify](ps) })
		}
		establish(t, w, a, b, peerOf(a, b))
		e, _ := find[Established](a)
		if up, _ := find[ChildUp](a); e.NAT != (NAT{}) || up.Pair.Encapsulated() {
			t.Errorf("%s: %+v, pair %+v", name, e.NAT, up.Pair)
		}
	}
}

// A name may have several keys, as at a roll-over (TRUST.md A-40): the one that was proved is told.
//
//tacit:attack A-40 either of two keys is accepted, and told
func TestProvedKeyIsTold(t *testing.T) {
	a, b, w := pairOf(t)
	p := peerOf(a, b)
	keys := testKeys()
	p.Auth.Keys = []crypto.PublicKey{keys["rsa"].Public(), keys["other"].Public(), b.key.Public(), keys["p256"].Public(), keys["p384"].Public()}
	establish(t, w, a, b, p)
	if e, _ := find[Established](a); !sameKey(e.Key, b.key.Public()) {
		t.Errorf("told %v", e.Key)
	}
}

// Behind a NAT the port that the peer has begun to use is kept open from then on, even if it was only asked whether we are there.
func TestProbeAtAnotherPort(t *testing.T) {
	a, b, w := classic(t)
	id := establish(t, w, a, b, peerOf(a, b))
	w.run(time.Minute)
	s := only(t, b)
	s.nat = nat{supported: true, local: true}
	d := back(a.e.Do(w.now, id, Probe).Send[0])
	d.Local = netip.AddrPortFrom(d.Local.Addr(), 4500)
	w.take(b, b.e.Receive(w.now, d))
	if wake := b.e.timers[s.slot].wake; wake == 0 || wake.After(b.e.now.Add(keepAliveEvery)) {
		t.Errorf("the next keepalive would be in %v", wake.Sub(b.e.now))
	}
}

// victim is an address that has asked for nothing.
var victim = netip.MustParseAddr("203.0.113.66")

// claimsNAT is an initiator that says that a NAT is before it, as everybody can, and is at no address of ours.
func claimsNAT(t *testing.T) (a, b *host, w *world) {
	a, b, w = pairOf(t)
	shift := uint16(20_000)
	translate(w, a, outsideNAT, &shift)
	b.authorize = func(AuthorizationWanted) Authorization {
		return Authorization{Anonymous: true, Selector: ipsec.Host(addrB.Addr(), addrA.Addr()), Mode: ipsec.Tunnel}
	}
	return a, b, w
}

// TRUST.md A-30: that a NAT is before it does not let a peer be at another address than that of its first message, whatever it signs: neither where it is
// authorized, nor later, nor in an heir. There would be no end to what is held against somebody who never asked, or is sent to him.
//
//tacit:attack A-30 who says that a NAT is before it is nowhere else than where it began
func TestClaimedNATMovesNobody(t *testing.T) {
	for _, from := range []wire.ExchangeType{wire.IKEAuth, wire.Informational, wire.CreateChildSA} {
		a, b, w := claimsNAT(t)
		nat := w.tap
		w.tap = func(h *host, d *Datagram) bool {
			if h == b && d.Remote.Addr() == victim {
				t.Errorf("%v: %v is sent %d octets", from, victim, len(d.Data))
			}
			nat(h, d)
			if x, err := wire.ParseHeader(d.Data); h == a && err == nil && x.Exchange == from {
				d.Local = netip.AddrPortFrom(victim, d.Local.Port())
			}
			return true
		}
		id := w.initiate(a, peerOf(a, b))
		if !w.until(time.Second, bothUp(a, b)) {
			t.Fatalf("%v: not up\n%s\n%s", from, a.dump(), b.dump())
		}
		for _, c := range []Command{Probe, RekeyChild, RekeyIKE, Probe} {
			w.take(a, a.e.Do(w.now, id, c))
			w.run(time.Second)
		}
		if count[Rekeyed](b) != 1 || count[ChildUp](b) != 2 {
			t.Errorf("%v: %s", from, b.dump())
		}
		for _, s := range b.e.sas {
			if s.remote.Addr() != outsideNAT || s.state == established && s.hosts().remote != outsideNAT {
				t.Errorf("%v: a peer in state %v is at %v", from, s.state, s.remote)
			}
		}
		for _, e := range b.events {
			if e, ok := e.(AuthorizationWanted); ok && e.Remote.Addr() != outsideNAT {
				t.Errorf("%v: asked about %v", from, e.Remote)
			}
		}
	}
}
