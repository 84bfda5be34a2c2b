package ike

import (
	"crypto"
	"errors"
	"net/netip"
	"testing"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// TRUST.md A-23: one address has so many IKE SAs and no more. Nobody's go first, the oldest before the younger; another address's are
// not touched.
//
//tacit:attack A-23 one address keeps so many SAs; nobody's go first, the oldest before the younger
func TestTooManyOfAPeer(t *testing.T) {
	a, b, w := pairOf(t)
	other := newHost(t, "carol.example", netip.MustParseAddrPort("192.0.2.3:500"), nil, Config{})
	w.hosts = append(w.hosts, other)
	kept := w.initiate(other, peerOf(other, b))
	w.run(time.Second)
	a.key = testKeys()["p256"]
	a.e.cfg.Name, a.e.cfg.Public = a.name, a.key.Public()
	w.initiate(a, named(a, b)) // somebody, and the oldest of the address
	w.run(time.Second)
	b.authorize = func(AuthorizationWanted) Authorization { return Authorization{Anonymous: true} }
	var ids []SAID
	for range b.e.cfg.MaxPerPeer + 4 {
		ids = append(ids, w.initiate(a, peerOf(a, b)))
		w.run(50 * time.Millisecond)
	}
	w.run(time.Second)
	w.run(30 * time.Second)
	if n := count[Closed](a); n != 5 || count[Closed](b) != 5 || a.e.Stats().SAs != b.e.cfg.MaxPerPeer {
		t.Fatalf("%d and %d closed, %d SAs", n, count[Closed](b), a.e.Stats().SAs)
	}
	i := 0
	for _, ev := range a.events {
		if c, ok := ev.(Closed); ok {
			if c.SA != ids[i] {
				t.Errorf("closed the wrong one at %d", i)
			}
			i++
		}
	}
	if c, _ := find[Closed](b); !errors.Is(c.Err, ErrReplaced) {
		t.Errorf("closed with %v", c.Err)
	}
	if count[Closed](other) != 0 || other.e.sas[kept] == nil {
		t.Error("another peer lost its SA")
	}
	checkSound(t, a, b, other)
	w.run(20 * time.Minute)
	if len(b.e.peers) != 2 {
		t.Errorf("%d networks, want 2", len(b.e.peers))
	}
	for id := range a.e.sas {
		w.take(a, a.e.Do(w.now, id, Delete))
	}
	w.run(time.Minute)
	if len(b.e.peers) != 1 || len(a.e.peers) != 0 {
		t.Errorf("%d and %d networks are left", len(b.e.peers), len(a.e.peers))
	}
}

// All of an Endpoint's SAs together have a cap too: then nobody new comes in, and who is there is not disturbed.
func TestTooManySAs(t *testing.T) {
	a, b, w := pairWith(t, Config{}, Config{MaxSAs: 3})
	establish(t, w, a, b, peerOf(a, b))
	flood := New(Config{Rand: newSeeded(9)})
	for i := range 10 {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i), 1}), 500)
		_, o := flood.Initiate(w.now, Peer{Local: from, Remote: addrB, Auth: Authorization{Anonymous: true}})
		b.e.Receive(w.now, Datagram{addrB, from, o.Send[0].Data})
	}
	if st := b.e.Stats(); st.SAs != 3 || st.Drops["too-many-sas"] != 8 {
		t.Errorf("%+v", st)
	}
	drive(w, 2*time.Second, 10*time.Millisecond)
	if count[Closed](a)+count[Closed](b)+a.lost+b.lost != 0 {
		t.Errorf("%s", b.dump())
	}
}

// TRUST.md A-23: a network has so many IKE SAs and no more, whatever its addresses; another network's are made. A host that keys many
// of our addresses is many peers.
//
//tacit:attack A-23 a network keeps so many; another's are made
func TestTooManyOfANetwork(t *testing.T) {
	const most = 3
	b := newHost(t, "bob.example", addrB, testKeys()["ed25519"], Config{MaxPerNetwork: most, MaxPerPeer: 1})
	b.authorize = func(AuthorizationWanted) Authorization { return Authorization{Anonymous: true} }
	w := newWorld(t, b)
	for i, tt := range []struct {
		addr string
		up   bool
	}{
		{"192.0.2.11:500", true}, {"192.0.2.12:500", true}, {"192.0.2.13:500", true}, {"192.0.2.14:500", false}, {"198.51.100.1:500", true},
	} {
		a := newHost(t, "", netip.MustParseAddrPort(tt.addr), nil, Config{})
		w.hosts = append(w.hosts, a)
		w.initiate(a, peerOf(a, b))
		w.run(time.Second)
		if up := count[Established](a) == 1; up != tt.up {
			t.Errorf("client %d: up %v, want %v", i, up, tt.up)
		}
	}
	if b.e.networks()[netip.MustParsePrefix("192.0.2.0/24")].Open != most || count[Closed](b) != 0 {
		t.Errorf("networks: %v, %d closed", b.e.networks(), count[Closed](b))
	}
}

// TRUST.md A-23: a storm of requests on an established IKE SA is served at a rate, and what is over it is not lost, only late.
//
//tacit:attack A-23 a storm of requests is served at a rate, and nothing is lost
func TestRequestBudget(t *testing.T) {
	f := newFragmenter(t)
	served := 0
	storm := func(from uint32, n int) uint32 {
		for i := range uint32(n) {
			data, err := f.sa.keys.seal.seal(f.sa.header(wire.CreateChildSA, from, false), []wire.Payload{
				defaultOffer.espProposal(ipsec.SPI(i+300), groupNone), &wire.Nonce{Data: make([]byte, 32)}})
			if err != nil {
				t.Fatal(err)
			}
			if f.give(data) == 1 {
				served++
				from++
			}
		}
		return from
	}
	next := storm(2, 10*requestBurst)
	if served != requestBurst {
		t.Errorf("%d requests served at once, want %d", served, requestBurst)
	}
	if f.b.e.Stats().Drops["over-budget"] == 0 {
		t.Error("nothing was over the budget")
	}
	f.w.now = f.w.now.Add(5 * requestEvery)
	if storm(next, 20); served != requestBurst+5 {
		t.Errorf("%d more after a while, want 5", served-requestBurst)
	}
}

// TRUST.md A-54: INITIAL_CONTACT ends the older SAs of the same name, key and address, and no others.
//
//tacit:attack A-54 the same name, key and address, and no others
func TestInitialContactIsScoped(t *testing.T) {
	p256, p384 := testKeys()["p256"], testKeys()["p384"]
	for name, c := range map[string]struct {
		key    crypto.Signer
		addr   string
		host   string
		wait   time.Duration
		null   bool
		closes bool
	}{
		"the same":        {p256, "[2001:db8::1]:500", "alice.example", 15 * time.Second, false, true},
		"another key":     {p384, "[2001:db8::1]:500", "alice.example", 15 * time.Second, false, false},
		"another name":    {p256, "[2001:db8::1]:500", "mallory.example", 15 * time.Second, false, false},
		"another address": {p256, "[2001:db8::3]:500", "alice.example", 15 * time.Second, false, false},
		"nobody":          {p256, "[2001:db8::1]:500", "alice.example", 15 * time.Second, true, false},
		"at once":         {p256, "[2001:db8::1]:500", "alice.example", 5 * time.Second, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newHost(t, "bob.example", netip.MustParseAddrPort("[2001:db8::2]:500"), testKeys()["ed25519"], Config{})
			a := newHost(t, "alice.example", netip.MustParseAddrPort("[2001:db8::1]:500"), p256, Config{})
			w := newWorld(t, a, b)
			first := named(a, b)
			b.authorize = func(AuthorizationWanted) Authorization {
				return Authorization{Keys: []crypto.PublicKey{p256.Public(), p384.Public()}, Anonymous: true}
			}
			w.initiate(a, first)
			w.run(time.Second)
			old, ok := find[Established](b)
			if !ok || old.Key == nil {
				t.Fatal("not up")
			}
			w.run(c.wait)
			again := newHost(t, c.host, netip.MustParseAddrPort(c.addr), c.key, Config{Rand: newSeeded(99)})
			w.hosts = []*host{again, b}
			p := first
			p.Local = again.addr
			p.LocalID = ID{IDFQDN, c.host}
			if c.null {
				p.LocalID = ID{Kind: IDNull}
			}
			w.tap = rewrite(t, again, func(ps []wire.Payload) []wire.Payload {
				return append(ps, status(wire.InitialContact, nil))
			})
			w.initiate(again, p)
			w.run(time.Second)
			if count[Established](b) != 2 {
				t.Fatalf("not up\n%s", b.dump())
			}
			got, closed := find[Closed](b)
			if closed != c.closes || closed && (got.SA != old.SA || !errors.Is(got.Err, ErrReplaced)) {
				t.Errorf("closed %v: %+v", closed, got)
			}
			checkSound(t, again, b)
		})
	}
}

// A rekey of the IKE SA changes nothing of that: the SA is as old as it was, counts once, and has no new budget.
func TestRekeyKeepsAge(t *testing.T) {
	a, b, w := pairOf(t)
	establish(t, w, a, b, peerOf(a, b))
	w.run(20 * time.Second)
	for id := range a.alive() {
		w.take(a, a.e.Do(w.now, id, RekeyIKE))
	}
	w.run(time.Second)
	all := b.e.peers[pairOfHosts{addrB.Addr(), addrA.Addr()}]
	if count[Rekeyed](b) != 1 || len(all) != 1 || all[0].initiator || !all[0].guest || b.e.now.Sub(all[0].since) < 20*time.Second {
		t.Errorf("%d SAs of the peer: %+v", len(all), all)
	}
	w.run(time.Minute)
	closeAll(w, a)
	w.run(time.Minute)
	if len(b.e.peers)+len(b.e.networks()) != 0 || len(a.e.peers)+len(a.e.networks()) != 0 {
		t.Errorf("%d and %d peers are left", len(b.e.peers), len(a.e.peers))
	}
}

// A peer may delete its own Child SAs, named by its own SPIs: those of another SA, though it knows their SPIs, are not found.
//
//tacit:attack A-54 its own Child SAs, by its own SPIs
func TestDeleteIsScoped(t *testing.T) {
	a, b, w := pairOf(t)
	establish(t, w, a, b, peerOf(a, b))
	victim, _ := find[ChildUp](b)
	m := newHost(t, "mallory.example", netip.MustParseAddrPort("192.0.2.3:500"), nil, Config{})
	w.hosts = []*host{m, b}
	id := w.initiate(m, peerOf(m, b))
	w.run(time.Second)
	s := m.e.sas[id]
	data, err := s.keys.seal.seal(s.header(wire.Informational, 2, false), []wire.Payload{
		&wire.Delete{Protocol: wire.ProtocolESP, SPIs: []uint32{uint32(victim.Pair.In.SPI), uint32(victim.Pair.Out.SPI)}}})
	if err != nil {
		t.Fatal(err)
	}
	o := b.e.Receive(w.now, Datagram{addrB, m.addr, data})
	w.take(b, o)
	w.run(time.Second)
	if len(o.Send) != 1 || count[ChildDown](b) != 0 || count[ChildRetired](b) != 0 {
		t.Errorf("a stranger deleted a Child SA\n%s", b.dump())
	}
}

// REDIRECT (RFC 5685) is ignored wherever it comes (TRUST.md A-54): before the SA, in IKE_AUTH and later.
//
//tacit:attack A-54 ignored, wherever it comes
func TestRedirectIsIgnored(t *testing.T) {
	to := append([]byte{1, 4}, 198, 51, 100, 7)
	redirect := status(wire.Redirect, to)
	a, b, w := pairOf(t)
	inner := rewrite(t, b, func(ps []wire.Payload) []wire.Payload { return append(ps, redirect) })
	w.tap = func(from *host, d *Datagram) bool {
		if h, _ := wire.ParseHeader(d.Data); from == a && h.Exchange == wire.IKESAInit {
			w.queue = append(w.queue, flight{at: w.now.Add(time.Millisecond), d: Datagram{addrA, addrB, forge(d, redirect)}})
		}
		if d.Remote.Addr() != addrA.Addr() && d.Remote.Addr() != addrB.Addr() {
			t.Errorf("a message to %v", d.Remote)
		}
		return inner(from, d)
	}
	w.initiate(a, peerOf(a, b))
	if !w.until(time.Second, bothUp(a, b)) {
		t.Fatalf("not up\n%s", a.dump())
	}
	w.tap = nil
	if _, o := talk(t, w, a, b, wire.Informational, 2, redirect); len(o.Send) != 1 || len(o.Events) != 1 {
		t.Errorf("%+v", o)
	}
	w.run(time.Second)
	if count[Closed](a)+count[Closed](b) != 0 {
		t.Error("closed")
	}
}
