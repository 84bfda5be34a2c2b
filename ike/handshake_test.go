package ike

import (
	"crypto"
	crand "crypto/rand"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// pairOf is an anonymous client and a server with an Ed25519 key.
func pairOf(t testing.TB) (*host, *host, *world) {
	return pairWith(t, Config{}, Config{})
}

func pairWith(t testing.TB, ca, cb Config) (*host, *host, *world) {
	a := newHost(t, "alice.example", addrA, nil, ca)
	b := newHost(t, "bob.example", addrB, testKeys()["ed25519"], cb)
	return a, b, newWorld(t, a, b)
}

func bothUp(a, b *host) func() bool {
	return func() bool { return count[ChildUp](a) > 0 && count[ChildUp](b) > 0 }
}

// establish brings an SA up in exactly two round trips.
func establish(t testing.TB, w *world, a, b *host, p Peer) SAID {
	t.Helper()
	sent := w.sent
	id := w.initiate(a, p)
	if !w.until(time.Second, bothUp(a, b)) || w.sent-sent != 4 {
		t.Fatalf("not up, or not in 4 messages (%d)\n%s\n%s", w.sent-sent, a.dump(), b.dump())
	}
	checkPaired(t, a, b)
	checkSound(t, a, b)
	return id
}

func TestHandshake(t *testing.T) {
	a, b, w := pairOf(t)
	id := establish(t, w, a, b, peerOf(a, b))
	ea, _ := find[Established](a)
	eb, _ := find[Established](b)
	if ea.SA != id || !ea.Initiator || ea.RemoteID != (ID{IDFQDN, "bob.example"}) || ea.RTT != 10*time.Millisecond {
		t.Errorf("initiator: %+v", ea)
	}
	if k, ok := ea.Key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(b.key.Public()) {
		t.Errorf("initiator: key %v", ea.Key)
	}
	if eb.Initiator || eb.RemoteID != (ID{Kind: IDNull}) || eb.Key != nil {
		t.Errorf("responder: %+v", eb)
	}
	if ea.Summary != "chacha20-poly1305 prf-sha256 x25519" {
		t.Errorf("summary %q", ea.Summary)
	}
	ua, _ := find[ChildUp](a)
	want := ipsec.Host(addrA.Addr(), addrB.Addr())
	if p := ua.Pair; p.Mode != ipsec.Transport || p.Selector != want || p.Encapsulated() || !p.In.ESN {
		t.Errorf("pair %+v", p)
	}
	if st := b.e.Stats(); st.SAs != 1 || st.HalfOpen != 0 || st.Retransmitted != 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestHandshakeAllWays(t *testing.T) {
	for kind, key := range testKeys() {
		for _, named := range []bool{false, true} {
			for _, mode := range [][2]ipsec.Mode{{ipsec.Transport, ipsec.Transport}, {ipsec.Tunnel, ipsec.Transport}, {ipsec.Transport, ipsec.Tunnel}} {
				t.Run(fmt.Sprintf("%s/named=%v/%v-%v", kind, named, mode[0], mode[1]), func(t *testing.T) {
					a := newHost(t, "alice.example", addrA, key, Config{})
					b := newHost(t, "bob.example", addrB, key, Config{})
					w := newWorld(t, a, b)
					p := peerOf(a, b)
					p.Auth.Mode = mode[0]
					b.authorize = func(q AuthorizationWanted) Authorization {
						if q.Asked != p.RemoteID || q.Null == named {
							t.Errorf("asked %+v", q)
						}
						if named {
							return Authorization{Keys: []crypto.PublicKey{key.Public()}, Mode: mode[1]}
						}
						return Authorization{Anonymous: true, Mode: mode[1]}
					}
					if named {
						p.LocalID = ID{IDFQDN, "alice.example"}
					}
					establish(t, w, a, b, p)
					want := ipsec.Tunnel
					if mode[0] == ipsec.Transport && mode[1] == ipsec.Transport {
						want = ipsec.Transport
					}
					ua, _ := find[ChildUp](a)
					ub, _ := find[ChildUp](b)
					if ua.Pair.Mode != want || ub.Pair.Mode != want {
						t.Errorf("modes %v and %v, want %v", ua.Pair.Mode, ub.Pair.Mode, want)
					}
					if eb, _ := find[Established](b); named != (eb.Key != nil) || named != (eb.RemoteID.Value == "alice.example") {
						t.Errorf("responder: %+v", eb)
					}
				})
			}
		}
	}
}

// offering is an offer of one suite and one group.
func offering(c cipherSuite, group uint16) offer {
	only := []cipherSuite{{cipher: c.cipher, bits: c.bits}}
	return offer{only, only, []ipsec.Integrity{c.integ}, []uint16{group}}
}

// Every cipher, and every group, is agreed upon where a peer has nothing else, and again at a rekey with a key exchange and without.
func TestHandshakeSuites(t *testing.T) {
	try := func(c cipherSuite, g uint16) {
		for _, pfs := range []bool{false, true} {
			a, b, w := pairOf(t)
			b.e.offer = offering(c, g)
			id := w.initiate(a, peerOf(a, b))
			if !w.until(time.Second, bothUp(a, b)) {
				t.Fatalf("%v %s: not up\n%s\n%s", c, groupName(g), a.dump(), b.dump())
			}
			checkPaired(t, a, b)
			a.e.find(id).child.all[0].noPFS = !pfs
			w.take(a, a.e.Do(w.now, id, RekeyChild))
			w.run(3 * time.Second)
			checkPaired(t, a, b)
			up, _ := find[ChildUp](a)
			if !up.Rekey || up.Pair.In.Cipher != c.cipher || up.Pair.In.Integrity != c.integ {
				t.Errorf("%v %s: %+v", c, groupName(g), up)
			}
			if got := a.e.find(id).keys.suite; got.group != g || got.cipher != c {
				t.Errorf("%v %s: agreed on %v", c, groupName(g), got)
			}
			if n := len(b.work); slow(g) && n != 1+int(b2u(pfs)) || !slow(g) && n != 0 {
				t.Errorf("%v %s: the responder computed %d times, with PFS %v", c, groupName(g), n, pfs)
			}
			w.run(30 * time.Second)
			w.take(a, a.e.Do(w.now, id, RekeyIKE))
			w.run(3 * time.Second)
			if r, _ := find[Rekeyed](b); count[Rekeyed](a) != 1 || !strings.HasPrefix(r.Summary, c.String()) || !strings.HasSuffix(r.Summary, groupName(g)) {
				t.Errorf("%v %s: rekeyed %+v", c, groupName(g), r)
			}
			checkPaired(t, a, b)
			checkSound(t, a, b)
		}
	}
	for _, c := range suites() {
		try(c, groupX25519)
	}
	for _, g := range groups {
		try(espCiphers[0], g)
	}
}

func TestHandshakeIPv6(t *testing.T) {
	a, b, w := pairOf(t)
	a.addr, b.addr = netip.MustParseAddrPort("[2001:db8::1]:500"), netip.MustParseAddrPort("[2001:db8::2]:500")
	establish(t, w, a, b, peerOf(a, b))
}

func TestEncapsulate(t *testing.T) {
	for name, cfg := range map[string][2]Config{
		"initiator": {{Encapsulate: true}, {}},
		"responder": {{}, {Encapsulate: true}},
		"both":      {{Encapsulate: true}, {Encapsulate: true}},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, w := pairWith(t, cfg[0], cfg[1])
			establish(t, w, a, b, peerOf(a, b))
			for _, h := range []*host{a, b} {
				up, _ := find[ChildUp](h)
				if up.Pair.Local.Port() != 4500 || up.Pair.Remote.Port() != 4500 {
					t.Errorf("%s: %v -> %v", h.name, up.Pair.Local, up.Pair.Remote)
				}
			}
		})
	}
}

// A peer may move to 4500 by itself (MOBIKE): IKE follows, the ESP stays what it was.
func TestFollowsPort(t *testing.T) {
	a, b, w := pairOf(t)
	id := establish(t, w, a, b, peerOf(a, b))
	moved := netip.AddrPortFrom(addrA.Addr(), 4500)
	w.tap = func(from *host, d *Datagram) bool {
		if from == a {
			d.Local = moved
		}
		return true
	}
	w.take(a, a.e.Do(w.now, id, Probe))
	w.run(time.Second)
	for _, s := range b.e.sas {
		if s.remote != moved {
			t.Errorf("remote %v, want %v", s.remote, moved)
		}
	}
	if count[Alive](a) == 0 || count[Alive](b) == 0 {
		t.Error("no Alive")
	}
}

// A message of the peer's that comes from elsewhere is somebody's who has caught it: a peer that is behind no NAT stays where it is, and is
// answered there (RFC 7296, 2.23; TRUST.md A-30).
//
//tacit:attack A-30 a peer behind no NAT stays where it is
func TestAddressStays(t *testing.T) {
	a, b, w := pairOf(t)
	id := establish(t, w, a, b, peerOf(a, b))
	elsewhere := netip.MustParseAddrPort("198.51.100.66:4500")
	w.tap = func(from *host, d *Datagram) bool {
		if from == a {
			d.Local = elsewhere
		} else if d.Remote.Addr() != addrA.Addr() {
			t.Errorf("an answer to %v", d.Remote)
		}
		return true
	}
	w.take(a, a.e.Do(w.now, id, Probe))
	w.run(time.Second)
	if s := only(t, b); s.remote.Addr() != addrA.Addr() || count[Alive](b) == 0 {
		t.Errorf("the peer is at %v", s.remote)
	}
}

// RFC 7296, 2.5: implementations "MUST NOT reject as invalid a message with those payloads in any other order". That of IKE_SA_INIT is in TestGoodFirstMessages.
func TestPayloadsInAnyOrder(t *testing.T) {
	for who := range 2 {
		for _, x := range []wire.ExchangeType{wire.IKEAuth, wire.CreateChildSA} {
			for seed := range uint64(8) {
				a, b, w := pairOf(t)
				h, rng, changed := []*host{a, b}[who], rand.New(rand.NewPCG(seed, 1)), 0
				w.tap = rewriteIn(t, h, x, func(ps []wire.Payload) []wire.Payload {
					changed++
					rng.Shuffle(len(ps), func(i, j int) { ps[i], ps[j] = ps[j], ps[i] })
					return ps
				})
				id := establish(t, w, a, b, peerOf(a, b))
				for _, c := range []Command{RekeyChild, RekeyIKE, RekeyChild} {
					w.take(a, a.e.Do(w.now, id, c))
					w.run(2 * time.Second)
				}
				up, _ := find[ChildUp](b)
				if changed == 0 || count[ChildUp](a) != 3 || count[Rekeyed](b) != 1 || up.Pair.Mode != ipsec.Transport {
					t.Errorf("%s, %v, seed %d: %d changed\n%s\n%s", h.name, x, seed, changed, a.dump(), b.dump())
				}
				checkPaired(t, a, b)
				checkSound(t, a, b)
			}
		}
	}
}

func TestNarrowing(t *testing.T) {
	sel := ipsec.Host(addrA.Addr(), addrB.Addr())
	sel.Proto, sel.RemotePort = 6, 443
	a, b, w := pairOf(t)
	p := peerOf(a, b)
	p.Auth.Selector = sel
	establish(t, w, a, b, p)
	ub, _ := find[ChildUp](b)
	if s := ub.Pair.Selector; s.Proto != 6 || s.LocalPort != 443 || s.RemotePort != 0 {
		t.Errorf("responder's selector %v", s)
	}
}

// TRUST.md A-28: somebody else's address is refused, the IKE SA then has no use and goes.
//
//tacit:attack A-28 TS_UNACCEPTABLE, and no SA is left
func TestForeignSelector(t *testing.T) {
	a, b, w := pairOf(t)
	p := peerOf(a, b)
	p.Auth.Selector = ipsec.Selector{Local: netip.MustParsePrefix("198.51.100.7/32"), Remote: netip.MustParsePrefix("192.0.2.2/32")}
	w.initiate(a, p)
	w.run(time.Second)
	c, _ := find[Closed](a)
	if n, ok := c.Err.(NotifyError); !ok || n.Type != 38 {
		t.Errorf("closed with %v, want TS_UNACCEPTABLE", c.Err)
	}
	if len(b.in) != 0 || count[Closed](b) != 1 {
		t.Errorf("responder: %s", b.dump())
	}
}

//tacit:attack A-28 narrowed to the peer's own address
func TestWideSelectorIsNarrowed(t *testing.T) {
	a, b, w := pairOf(t)
	p := peerOf(a, b)
	p.Auth.Selector = ipsec.Selector{Local: netip.MustParsePrefix("0.0.0.0/0"), Remote: netip.MustParsePrefix("0.0.0.0/0")}
	w.initiate(a, p)
	w.run(time.Second)
	wanted, ok := find[ChildWanted](b)
	if want := ipsec.Host(addrB.Addr(), addrA.Addr()); !ok || wanted.Pair.Selector != want {
		t.Errorf("responder: %+v, want %v", wanted.Pair.Selector, want)
	}
	// Our initiator asked for a prefix and does not take a host for it.
	if c, _ := find[Closed](a); c.Err == nil {
		t.Error("initiator took a narrower answer")
	}
}

func BenchmarkHandshake(b *testing.B) {
	x, y, w := pairOf(b)
	b.ReportAllocs()
	for b.Loop() {
		x.events, y.events, w.queue = x.events[:0], y.events[:0], w.queue[:0]
		id := w.initiate(x, peerOf(x, y))
		if !w.until(time.Second, bothUp(x, y)) {
			b.Fatal("not up")
		}
		y.e.forget(y.e.sas[SAID(x.e.sas[id].spiR)])
		x.e.forget(x.e.sas[id])
	}
}

// BenchmarkSAMemory reports what an established IKE SA with its Child SA keeps at a responder, in octets of heap.
func BenchmarkSAMemory(b *testing.B) {
	const n = 1000
	for b.Loop() {
		y := newHost(b, "bob.example", addrB, testKeys()["ed25519"], Config{CookieAbove: 2 * n, MaxHalfOpen: 8 * n, MaxPerPeer: 2 * n})
		heap := func() uint64 {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		before := heap()
		for range n {
			x := newHost(b, "alice.example", addrA, nil, Config{Rand: crand.Reader})
			w := newWorld(b, x, y)
			y.wake = time.Time{}
			w.initiate(x, peerOf(x, y))
			if !w.until(time.Second, func() bool { return count[ChildUp](y) > 0 }) {
				b.Fatal(y.dump())
			}
			y.events, y.plane = nil, newPlane()
		}
		b.ReportMetric(float64(heap()-before)/n, "B/SA")
		runtime.KeepAlive(y)
	}
}
