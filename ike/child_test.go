package ike

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// Either end asks for more Child SAs on an IKE SA that is up: each is a Pair of its own, within what the Authorization allows, and lives and
// is rekeyed for itself.
func TestMoreChildren(t *testing.T) {
	for who := range 2 {
		a, b, w := pairOf(t)
		establish(t, w, a, b, peerOf(a, b))
		h, other := []*host{a, b}[who], []*host{b, a}[who]
		id := only(t, h).id
		ssh := ipsec.Host(h.addr.Addr(), other.addr.Addr())
		ssh.Proto, ssh.RemotePort = 6, 22
		w.take(h, h.e.AddChild(w.now, id, ssh))
		w.take(h, h.e.AddChild(w.now, id, ipsec.Selector{}))
		w.run(time.Second)
		want := ssh
		want.Local, want.Remote, want.LocalPort, want.RemotePort = ssh.Remote, ssh.Local, 22, 0
		var got []ipsec.Selector
		for _, ev := range other.events {
			if up, ok := ev.(ChildUp); ok {
				got = append(got, up.Pair.Selector)
			}
		}
		if len(got) != 3 || got[1] != want || got[2] != got[0] || len(a.out) != 3 || len(b.out) != 3 {
			t.Fatalf("%v", got)
		}
		w.take(h, h.e.Do(w.now, id, RekeyChild))
		w.run(time.Minute)
		settled(t, a, b)
		if n := count[ChildUp](a); n != 6 || count[ChildDown](a)+count[ChildDown](b) != 0 {
			t.Errorf("%d times up\n%s", n, a.dump())
		}
		w.take(h, h.e.Do(w.now, id, RekeyIKE))
		w.run(time.Minute)
		settled(t, a, b)
		w.take(h, h.e.Do(w.now, id, Delete))
		w.run(time.Minute)
		if count[ChildDown](a) != 3 || count[ChildDown](b) != 3 || len(a.in)+len(b.in)+len(a.e.spis)+len(b.e.spis) != 0 {
			t.Errorf("%s", a.dump())
		}
	}
}

// What the peer may not have it is refused, and there are not more than maxChildren (TRUST.md ).
func TestChildRefused(t *testing.T) {
	a, b, w := pairOf(t)
	id := establish(t, w, a, b, peerOf(a, b))
	foreign := ipsec.Host(netip.MustParseAddr("198.51.100.1"), addrB.Addr())
	w.take(a, a.e.AddChild(w.now, id, foreign))
	w.run(time.Second)
	if r, ok := find[ChildRefused](a); !ok || r.Err != (NotifyError{wire.TSUnacceptable}) || r.Selector != foreign {
		t.Errorf("%s", a.dump())
	}
	for range maxChildren {
		w.take(a, a.e.AddChild(w.now, id, ipsec.Selector{}))
		w.run(time.Second)
	}
	if r, _ := find[ChildRefused](a); r.Err != (NotifyError{wire.NoAdditionalSAs}) || len(b.out) != maxChildren || len(a.out) != maxChildren {
		t.Errorf("%d Pairs\n%s", len(b.out), a.dump())
	}
	w.run(time.Minute)
	settled(t, a, b)
}

// RFC 7296, 2.25: a Child SA that the peer does not know is deleted silently, and another is created from scratch in its place: the same Pair.
func TestChildNotFound(t *testing.T) {
	a, b, w := pairOf(t)
	id := establish(t, w, a, b, peerOf(a, b))
	s := only(t, b)
	old := only(t, a).child.all[0].sas[0]
	b.remove(s.child.all[0].id)
	s.child.all = nil // it has forgotten it
	w.take(a, a.e.Do(w.now, id, RekeyChild))
	w.run(time.Minute)
	settled(t, a, b)
	up, _ := find[ChildUp](a)
	if !up.Rekey || up.Pair.ID != 1 || up.Pair.In.SPI == old.in || count[ChildDown](a) != 0 || len(a.in) != 1 {
		t.Errorf("%s", a.dump())
	}
	checkPaired(t, a, b)
}

// The same when the peer takes no Child SA any more: then the Pair ends, and the IKE SA with it.
func TestChildNotFoundNorCreated(t *testing.T) {
	a, b, w := pairOf(t)
	id := establish(t, w, a, b, peerOf(a, b))
	only(t, b).child.all, b.e.offer.esp = nil, nil
	w.take(a, a.e.Do(w.now, id, RekeyChild))
	w.run(time.Second)
	if d, ok := find[ChildDown](a); !ok || d.Err != (NotifyError{wire.NoProposalChosen}) {
		t.Errorf("%s", a.dump())
	}
	w.run(time.Minute)
	if count[Closed](a) != 1 || len(a.e.sas)+len(b.e.sas) != 0 {
		t.Errorf("%s", a.dump())
	}
}

// A data plane that does not answer is taken to have refused, on either side: the old Child SA serves on, the next rekey is made, and should
// the answer come yet, the SA that nobody knows is taken back.
func TestDataplaneDoesNotAnswer(t *testing.T) {
	for who := range 2 {
		a, b, w := pairOf(t)
		id := establish(t, w, a, b, peerOf(a, b))
		h := []*host{a, b}[who]
		h.held = true
		w.take(a, a.e.Do(w.now, id, RekeyChild))
		drive(w, installWithin+time.Second, 100*time.Millisecond)
		wanted, _ := find[ChildWanted](h)
		if r, ok := find[ChildRetired](h); !ok || r.In != wanted.Pair.In.SPI || count[ChildUp](a) > 2 {
			t.Fatalf("%s: the SA is not taken back\n%s", h.name, h.dump())
		}
		h.held = false
		w.take(h, h.e.Supply(w.now, wanted.SA, Installed{Token: wanted.Token}))
		drive(w, 3*time.Minute, 100*time.Millisecond)
		w.run(time.Minute)
		settled(t, a, b)
		if count[ChildUp](a) < 2 || count[Closed](a)+count[Closed](b)+count[ChildDown](a)+count[ChildDown](b)+a.lost+b.lost != 0 {
			t.Errorf("%s: %d lost\n%s\n%s", h.name, a.lost+b.lost, a.dump(), b.dump())
		}
	}
}

// The first Child SA's data plane does not answer: the SA is deleted.
func TestDataplaneDoesNotAnswerAtFirst(t *testing.T) {
	for who := range 2 {
		a, b, w := pairOf(t)
		[]*host{a, b}[who].held = true
		w.initiate(a, peerOf(a, b))
		w.run(2 * time.Minute)
		if len(a.e.sas)+len(b.e.sas)+len(a.e.spis)+len(b.e.spis) != 0 || count[Closed](a) != 1 {
			t.Errorf("%s\n%s", a.dump(), b.dump())
		}
		if c, _ := find[Closed](a); who == 0 && !errors.Is(c.Err, ErrInstall) {
			t.Errorf("closed with %v", c.Err)
		}
	}
}

// A rekey changes neither the outbound SA of a responder before the peer uses the new one, nor the inbound SAs of either before the other's
// last packet (RFC 7296, 2.8).
func TestMakeBeforeBreak(t *testing.T) {
	a, b, w := pairOf(t)
	id := establish(t, w, a, b, peerOf(a, b))
	oldA, oldB := a.out[1].SPI, b.out[1].SPI
	w.take(a, a.e.Do(w.now, id, RekeyChild))
	w.run(7 * time.Millisecond) // b has answered
	if len(b.in) != 2 || b.out[1].SPI != oldB || len(a.in) != 1 {
		t.Fatalf("%d inbound SAs", len(b.in))
	}
	w.run(6 * time.Millisecond) // a has the answer, and has sent the DELETE
	if len(a.in) != 2 || a.out[1].SPI == oldA || b.out[1].SPI != oldB {
		t.Fatalf("%d inbound SAs", len(a.in))
	}
	w.run(400 * time.Millisecond)
	if len(b.in) != 2 || len(a.in) != 2 {
		t.Fatalf("late packets are not taken any more: %d and %d", len(a.in), len(b.in))
	}
	w.run(time.Second)
	if len(b.in) != 1 || len(a.in) != 1 || b.out[1].SPI == oldB {
		t.Fatalf("%d and %d inbound SAs", len(a.in), len(b.in))
	}
}

// Two rekeys by the peer follow each other so fast that nothing was sent in between: we send with the first new SA, which the peer has shown to
// have, not with the second, when the old one ends.
func TestRekeysWithoutTraffic(t *testing.T) {
	a, b, w := pairOf(t)
	id := establish(t, w, a, b, peerOf(a, b))
	w.take(a, a.e.Do(w.now, id, RekeyChild))
	w.run(100 * time.Millisecond)
	first := a.out[1].SPI
	w.tap = func(from *host, _ *Datagram) bool { return from == a } // b's next answer is late
	w.take(a, a.e.Do(w.now, id, RekeyChild))
	w.run(600 * time.Millisecond)
	if p, ok := find[ChildPreferred](b); !ok || !p.Rekey || p.Pair.In.SPI != first || count[ChildUp](b) != 3 || len(b.in) != 2 {
		t.Fatalf("%s", b.dump())
	}
	w.traffic()
	w.run(10 * time.Millisecond)
	if a.lost != 0 {
		t.Error("a packet came on an SA that the peer does not have yet")
	}
	w.tap = nil
	w.run(time.Minute)
	settled(t, a, b)
}

// DELETE, from either end, in every state that an IKE SA can be in: both ends come to an end and nothing is left of it.
func TestDeleteInEveryState(t *testing.T) {
	seen := map[saState]bool{}
	for who := range 2 {
		for step := range 120 {
			for _, c := range []Command{0, RekeyChild, RekeyIKE} {
				a, b, w := pairOf(t)
				a.key = testKeys()["other"]
				a.e.cfg.Name, a.e.cfg.Public = a.name, a.key.Public()
				p := peerOf(a, b)
				p.LocalID = ID{IDFQDN, a.name}
				id := w.initiate(a, p)
				at := time.Duration(step) * time.Millisecond / 2
				if c != 0 {
					w.run(25 * time.Millisecond)
					w.take(a, a.e.Do(w.now, id, c))
				}
				w.run(at)
				h, known := []*host{a, b}[who], false
				for said, s := range h.e.sas {
					seen[s.state], known = true, known || !s.quiet
					w.take(h, h.e.Do(w.now, said, Delete))
				}
				w.take(h, h.e.Do(w.now, id, Delete))
				w.run(2 * time.Minute)
				if !known { // a responder's caller has not heard of it yet
					continue
				}
				if len(a.e.sas)+len(b.e.sas)+len(a.in)+len(b.in)+len(a.e.spis)+len(b.e.spis)+len(a.e.half)+len(b.e.half) != 0 || len(a.alive())+len(b.alive()) != 0 {
					t.Fatalf("%s, command %d, after %v\n%s\n%s", h.name, c, at, a.dump(), b.dump())
				}
				checkSound(t, a, b)
			}
		}
	}
	for _, s := range []saState{initSent, authSent, initReceived, established, rekeying, replaced, deleting} {
		if !seen[s] {
			t.Errorf("state %v was not met", s)
		}
	}
}

// The states that last while the caller, or the peer, thinks: DELETE in each, from either end, and the answer comes late all the same.
func TestDeleteWhileWaiting(t *testing.T) {
	holds := func(h *host, is func(Event) bool) { h.holds = is }
	signature := func(ev Event) bool { _, ok := ev.(SignatureWanted); return ok }
	for _, tt := range []struct {
		what  string
		at    int // whose state it is: 0 the initiator's
		state saState
		tell  Tell
		pq    PostQuantum
		setup func(a, b *host, w *world)
	}{
		{"our signature, as the initiator", 0, signing, TellFirst, Off, func(a, _ *host, _ *world) { holds(a, signature) }},
		{"our second signature", 0, signing, TellAfter, Off, func(a, _ *host, _ *world) { holds(a, signature) }},
		{"the authorization", 1, authWaiting, TellFirst, Off, func(_, b *host, _ *world) {
			holds(b, func(ev Event) bool { _, ok := ev.(AuthorizationWanted); return ok })
		}},
		{"the second authorization", 1, authWaiting, TellAfter, Off, func(_, b *host, _ *world) {
			holds(b, func(ev Event) bool { e, ok := ev.(AuthorizationWanted); return ok && !e.More })
		}},
		{"our signature, as the responder", 1, authWaiting, TellFirst, Off, func(_, b *host, _ *world) { holds(b, signature) }},
		{"the data plane", 1, authWaiting, TellFirst, Off, func(_, b *host, _ *world) {
			holds(b, func(ev Event) bool { _, ok := ev.(ChildWanted); return ok })
		}},
		{"the initiator's second proof", 1, authAgain, TellAfter, Off, func(a, _ *host, _ *world) { holds(a, signature) }},
		{"the other half of ML-KEM", 0, mixing, TellFirst, Before, func(a, b *host, w *world) {
			w.tap = func(from *host, d *Datagram) bool {
				h, _ := wire.ParseHeader(d.Data)
				return from == a || h.Exchange != wire.Intermediate || w.now.Sub(start) > 100*time.Millisecond
			}
		}},
	} {
		for who := range 2 {
			a := newHost(t, "alice.example", addrA, testKeys()["p256"], Config{PostQuantum: tt.pq})
			b := newHost(t, "bob.example", addrB, testKeys()["ed25519"], Config{PostQuantum: tt.pq})
			w := newWorld(t, a, b)
			p := named(a, b)
			p.Tell = tt.tell
			tt.setup(a, b, w)
			id := w.initiate(a, p)
			w.run(60 * time.Millisecond)
			at := []*host{a, b}[tt.at]
			if s := only(t, at); s.state != tt.state {
				t.Fatalf("%s: it is %v, not %v\n%s", tt.what, s.state, tt.state, at.dump())
			}
			h, name, known := []*host{a, b}[who], id, true
			if who == 1 { // a responder's caller has not heard of it before IKE_AUTH has come
				name, known = only(t, b).id, !only(t, b).quiet
			}
			w.take(h, h.e.Do(w.now, name, Delete))
			w.run(50 * time.Millisecond)
			for _, h := range []*host{a, b} {
				if h.holds != nil {
					waiting, is := h.events, h.holds
					h.holds = nil
					for _, ev := range waiting {
						if c, ok := ev.(ChildWanted); ok && is(ev) { // a data plane that comes too late
							w.take(h, h.e.Supply(w.now, c.SA, Installed{Token: c.Token}))
						} else if is(ev) {
							h.handle(w, ev)
						}
					}
				}
			}
			w.run(2 * time.Minute)
			if known && (len(a.e.sas)+len(b.e.sas)+len(a.in)+len(b.in)+len(a.e.spis)+len(b.e.spis)+len(a.e.half)+len(b.e.half) != 0 ||
				len(a.alive())+len(b.alive()) != 0 || count[Closed](a) != 1) {
				t.Errorf("%s, deleted by %s\n%s\n%s", tt.what, h.name, a.dump(), b.dump())
			}
			if c, _ := find[Closed](a); known && who == 1 && tt.state == authWaiting && c.Err != (NotifyError{wire.AuthenticationFailed}) {
				t.Errorf("%s, deleted by %s: closed with %v", tt.what, h.name, c.Err)
			}
			checkSound(t, a, b)
		}
	}
}

// Message ids far ahead, of the past, and replays of what was answered long ago change nothing and are not answered (RFC 7296, 2.2, 2.3).
func TestMessageIDs(t *testing.T) {
	a, b, w := pairOf(t)
	id := establish(t, w, a, b, peerOf(a, b))
	s := only(t, a)
	for range 3 {
		w.take(a, a.e.Do(w.now, id, Probe))
		w.run(time.Second)
	}
	before := shape(b.e)
	for _, n := range []uint32{0, 1, 2, 3, 6, 7, 1000, 1 << 31, 1<<32 - 1} { // 4 was the last, 5 is the next
		data, err := s.keys.seal.seal(s.header(wire.Informational, n, false), nil)
		if err != nil {
			t.Fatal(err)
		}
		if o := b.e.Receive(w.now, Datagram{addrB, addrA, data}); len(o.Send)+len(o.Events) != 0 {
			t.Errorf("message %d: %+v", n, o)
		}
	}
	if before != shape(b.e) || only(t, b).in.next != 5 {
		t.Errorf("next is %d", only(t, b).in.next)
	}
}

// RFC 3948, 4: who is behind a NAT sends an octet when it has said nothing for 20 s, from the SA's port; who is not does not.
func TestKeepalive(t *testing.T) {
	a, b, w := pairOf(t)
	nat := netip.MustParseAddrPort("192.0.2.1:1024")
	var alive []time.Duration
	w.tap = func(from *host, d *Datagram) bool {
		if len(d.Data) == 1 && d.Data[0] == 0xff {
			if from != a || d.Local.Port() != portNATT || d.Remote.Port() != portNATT {
				t.Errorf("%s: keepalive from %v to %v", from.name, d.Local, d.Remote)
			}
			alive = append(alive, w.now.Sub(start))
			return false
		}
		to := Datagram{Local: d.Remote, Remote: d.Local, Data: d.Data}
		if from == a { // the NAT changes the source
			to.Remote = netip.AddrPortFrom(nat.Addr(), d.Local.Port()+1000)
		} else {
			to.Local = netip.AddrPortFrom(addrA.Addr(), d.Remote.Port()-1000)
		}
		w.queue = append(w.queue, flight{at: w.now.Add(w.delay), d: Datagram{to.Local, to.Remote, append([]byte(nil), d.Data...)}})
		return false
	}
	id := w.initiate(a, peerOf(a, b))
	w.run(50 * time.Second)
	if !bothUp(a, b)() || len(alive) != 2 || alive[0].Round(time.Second) != 20*time.Second || alive[1].Round(time.Second) != 40*time.Second {
		t.Fatalf("%v\n%s", alive, a.dump())
	}
	w.take(a, a.e.Do(w.now, id, Probe)) // which is a sign of life as well
	w.run(15 * time.Second)
	if len(alive) != 2 {
		t.Errorf("%v", alive)
	}
	for range 60 { // and so is ESP
		a.e.Spoke(id, w.now)
		w.run(time.Second)
	}
	if len(alive) != 2 {
		t.Errorf("beside ESP: %v", alive)
	}
	w.run(25 * time.Second)
	w.take(a, a.e.Do(w.now, id, Delete))
	w.run(2 * time.Minute)
	if len(alive) != 3 || len(a.e.sas) != 0 {
		t.Errorf("%v", alive)
	}
}
