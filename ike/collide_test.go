package ike

import (
	"fmt"
	"os"
	"testing"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// The rows of RFC 7296, 2.25.1 and 2.25.2: what a peer is answered whose request meets one of ours. One of the two ends (b) is brought
// into the state that the row speaks of, the other's request is written by hand.

// only is the one SA that a host has.
func only(t testing.TB, h *host) *sa {
	t.Helper()
	if len(h.e.sas) != 1 {
		t.Fatalf("%s has %d SAs", h.name, len(h.e.sas))
	}
	for _, s := range h.e.sas {
		return s
	}
	return nil
}

// collision brings b to where its request is out and has not arrived.
func collision(t *testing.T, busy func(w *world, b *host, s *sa)) (a, b *host, w *world) {
	t.Helper()
	a, b, w = pairOf(t)
	establish(t, w, a, b, peerOf(a, b))
	s := only(t, b)
	b.e.begin(w.now)
	busy(w, b, s)
	s.pump()
	b.e.schedule(s)
	b.events = append(b.events, b.e.finish().Events...)
	return a, b, w
}

// What b may be doing.
var (
	rekeysChild  = func(_ *world, b *host, s *sa) { s.child.rekeyNow(b.e.now) }
	closesChild  = func(_ *world, _ *host, s *sa) { s.deleteChild(s.child.all[0].current()) }
	createsChild = func(_ *world, b *host, s *sa) {
		s.child.wishes = append(s.child.wishes, wish{selector: s.child.grant.selector, at: b.e.now})
	}
	rekeysIKE = func(_ *world, b *host, s *sa) { s.timer.rekey = b.e.now }
	closesIKE = func(_ *world, _ *host, s *sa) { s.out.wantDelete = true }
	nothing   = func(*world, *host, *sa) {}
)

func heirRequest() []wire.Payload {
	sap := defaultOffer.ikeProposal(groupX25519)
	sap.Proposals[0].SPI = spiBytes(77)
	return []wire.Payload{sap, &wire.Nonce{Data: append([]byte{1}, make([]byte, 31)...)}, &wire.KE{Group: groupX25519, Data: append([]byte{9}, make([]byte, 31)...)}}
}

func deleteRequest(spi ipsec.SPI) []wire.Payload {
	return []wire.Payload{&wire.Delete{Protocol: wire.ProtocolESP, SPIs: []uint32{uint32(spi)}}}
}

// wants says what the answer of a row is.
type wants struct {
	notify wire.NotifyType // refused with it; 0: not
	delete bool            // a Delete payload
	sa     bool            // an SA payload: granted as usual
}

func checkAnswer(t *testing.T, got []wire.Payload, o Output, want wants) {
	t.Helper()
	if len(o.Send) == 0 {
		t.Fatal("no answer")
	}
	if f := failure(got); (f != nil) != (want.notify != 0) || f != nil && f.Type != want.notify {
		t.Errorf("answer %+v, want %v", got, want.notify)
	}
	if d := get[*wire.Delete](got); (d != nil) != want.delete {
		t.Errorf("answer %+v, want a Delete payload: %v", got, want.delete)
	}
	if p := get[*wire.SA](got); (p != nil) != want.sa {
		t.Errorf("answer %+v, want an SA payload: %v", got, want.sa)
	}
}

// askB writes a request of a, and has b's data plane agree.
func askB(t *testing.T, w *world, a, b *host, x wire.ExchangeType, ps []wire.Payload) ([]wire.Payload, Output) {
	t.Helper()
	s := only(t, a)
	got, o := talk(t, w, a, b, x, s.out.next, ps...)
	for _, ev := range o.Events {
		if cw, ok := ev.(ChildWanted); ok {
			o = b.e.Supply(w.now, cw.SA, Installed{Token: cw.Token})
			if len(o.Send) > 0 {
				got, _ = s.keys.open.open(o.Send[0].Data)
			}
		}
	}
	return got, o
}

func row(t *testing.T, busy func(*world, *host, *sa), x wire.ExchangeType, ps func(a *sa) []wire.Payload, want wants) (*host, *host, *world) {
	t.Helper()
	a, b, w := collision(t, busy)
	got, o := askB(t, w, a, b, x, ps(only(t, a)))
	checkAnswer(t, got, o, want)
	checkSound(t, a, b)
	return a, b, w
}

func rekeyOf(a *sa) []wire.Payload  { return rekeyRequest(a.child.all[0].current().in) }
func createOf(*sa) []wire.Payload   { return rekeyRequest(777)[1:] }
func closeOf(a *sa) []wire.Payload  { return deleteRequest(a.child.all[0].current().in) }
func heirOf(*sa) []wire.Payload     { return heirRequest() }
func closeIKEOf(*sa) []wire.Payload { return []wire.Payload{bye()} }

// "If a peer receives a request to rekey a Child SA that it is currently trying to close, it SHOULD reply with TEMPORARY_FAILURE."
func Test2251RekeyOfChildBeingClosed(t *testing.T) {
	row(t, closesChild, wire.CreateChildSA, rekeyOf, wants{notify: wire.TemporaryFailure})
}

// "[...] that it is currently rekeying, it SHOULD reply as usual, and SHOULD prepare to close redundant SAs later based on the nonces".
func Test2251RekeyOfChildBeingRekeyed(t *testing.T) {
	_, b, _ := row(t, rekeysChild, wire.CreateChildSA, rekeyOf, wants{sa: true})
	if m := only(t, b).child.mine; m == nil || m.rival == nil {
		t.Error("not prepared to close redundant SAs")
	}
}

// "[...] that does not exist, it SHOULD reply with CHILD_SA_NOT_FOUND", and the SPI of the request.
func Test2251RekeyOfUnknownChild(t *testing.T) {
	a, b, w := collision(t, nothing)
	got, o := askB(t, w, a, b, wire.CreateChildSA, rekeyRequest(0xdeadbeef))
	checkAnswer(t, got, o, wants{notify: wire.ChildSANotFound})
	if n := failure(got); n != nil && (n.Protocol != wire.ProtocolESP || string(n.SPI) != "\xde\xad\xbe\xef") {
		t.Errorf("answer %+v without the SPI", n)
	}
}

// "If a peer receives a request to close a Child SA that it is currently trying to close, it SHOULD reply without a Delete payload".
func Test2251CloseOfChildBeingClosed(t *testing.T) {
	row(t, closesChild, wire.Informational, closeOf, wants{})
}

// "[...] that it is currently rekeying, it SHOULD reply as usual, with a Delete payload".
func Test2251CloseOfChildBeingRekeyed(t *testing.T) {
	row(t, rekeysChild, wire.Informational, closeOf, wants{delete: true})
}

// "[...] that does not exist, it SHOULD reply without a Delete payload".
func Test2251CloseOfUnknownChild(t *testing.T) {
	row(t, nothing, wire.Informational, func(*sa) []wire.Payload { return deleteRequest(0xdeadbeef) }, wants{})
}

// "If a peer receives a request to rekey the IKE SA, and it is currently creating, rekeying, or closing a Child SA of that IKE SA, it
// SHOULD reply with TEMPORARY_FAILURE."
func Test2251IKERekeyWhileChildBusy(t *testing.T) {
	for name, busy := range map[string]func(*world, *host, *sa){"creating": createsChild, "rekeying": rekeysChild, "closing": closesChild} {
		t.Run(name, func(t *testing.T) { row(t, busy, wire.CreateChildSA, heirOf, wants{notify: wire.TemporaryFailure}) })
	}
}

// "If a peer receives a request to rekey an IKE SA that it is currently rekeying, it SHOULD reply as usual, and SHOULD prepare to
// close redundant SAs and move inherited Child SAs later based on the nonces".
func Test2252IKERekeyWhileRekeying(t *testing.T) {
	a, b, w := collision(t, rekeysIKE)
	got, o := askB(t, w, a, b, wire.CreateChildSA, heirRequest())
	checkAnswer(t, got, o, wants{sa: true})
	s := b.e.find(b.events[0].(AuthorizationWanted).SA)
	if s.state != rekeying || !s.kin.rekey.rivalLives() || len(s.child.all) != 1 {
		t.Errorf("state %v", s.state)
	}
}

// "[...] that it is currently trying to close, it SHOULD reply with TEMPORARY_FAILURE."
func Test2252IKERekeyWhileClosing(t *testing.T) {
	row(t, closesIKE, wire.CreateChildSA, heirOf, wants{notify: wire.TemporaryFailure})
}

// "If a peer receives a request to close an IKE SA that it is currently rekeying, it SHOULD reply as usual, and forget its own
// rekeying request."
func Test2252CloseWhileRekeying(t *testing.T) {
	_, b, w := row(t, rekeysIKE, wire.Informational, closeIKEOf, wants{})
	b.wake = w.now
	sent := w.sent
	w.run(time.Minute)
	if w.sent != sent || b.e.Stats().SAs != 0 {
		t.Errorf("%d requests after the end, %d SAs", w.sent-sent, b.e.Stats().SAs)
	}
}

// "[...] that it is currently trying to close, it SHOULD reply as usual, and forget about its own close request."
func Test2252CloseWhileClosing(t *testing.T) {
	_, b, w := row(t, closesIKE, wire.Informational, closeIKEOf, wants{})
	b.wake = w.now
	sent := w.sent
	w.run(time.Minute)
	if w.sent != sent || b.e.Stats().SAs != 0 {
		t.Errorf("%d requests after the end, %d SAs", w.sent-sent, b.e.Stats().SAs)
	}
}

// "If a peer receives a request to create or rekey a Child SA when it is currently rekeying the IKE SA, it SHOULD reply with
// TEMPORARY_FAILURE."
func Test2252ChildWhileRekeyingIKE(t *testing.T) {
	for name, ps := range map[string]func(*sa) []wire.Payload{"create": createOf, "rekey": rekeyOf} {
		t.Run(name, func(t *testing.T) { row(t, rekeysIKE, wire.CreateChildSA, ps, wants{notify: wire.TemporaryFailure}) })
	}
}

// "If a peer receives a request to delete a Child SA when it is currently rekeying the IKE SA, it SHOULD reply as usual, with a Delete
// payload."
func Test2252CloseOfChildWhileRekeyingIKE(t *testing.T) {
	row(t, rekeysIKE, wire.Informational, closeOf, wants{delete: true})
}

// settled looks at two ends that nothing happens to any more: they have the same IKE SAs, and in each the same Child SAs, one a Pair.
func settled(t testing.TB, a, b *host) {
	t.Helper()
	type name struct{ i, r uint64 }
	all := func(h *host) map[name]*sa {
		m := map[name]*sa{}
		for _, s := range h.e.sas {
			if s.state != established || s.quiet || s.out.state != idle {
				t.Errorf("%s: an SA is %v, quiet %v, %v", h.name, s.state, s.quiet, s.out.state)
			}
			m[name{s.spiI, s.spiR}] = s
		}
		return m
	}
	as, bs := all(a), all(b)
	if len(as) != len(bs) {
		t.Errorf("%d and %d SAs", len(as), len(bs))
	}
	for k, x := range as {
		y := bs[k]
		if y == nil {
			t.Errorf("%s has an SA that %s has not", a.name, b.name)
			continue
		}
		if len(x.child.all) != len(y.child.all) {
			t.Errorf("%d and %d Pairs", len(x.child.all), len(y.child.all))
		}
		for _, s := range []*sa{x, y} {
			if s.child.mine != nil || s.child.theirs != nil || len(s.child.wishes) != 0 {
				t.Errorf("a Child SA is in the making")
			}
			for _, p := range s.child.all {
				if len(p.sas) != 1 || p.current() == nil {
					t.Errorf("%d Child SAs of Pair %d", len(p.sas), p.id)
				}
			}
		}
		for _, p := range x.child.all {
			if q, other := y.child.byOut(p.sas[0].in); q == nil || other.in != p.sas[0].out {
				t.Errorf("Pair %d is not the peer's", p.id)
			}
		}
	}
	checkSound(t, a, b)
}

// Everything that one end can do meets everything that the other can do, at once, a little earlier or later, with any one of the first
// messages lost: afterwards both ends have the same, and no packet was lost unless it was the traffic's own SA that was deleted.
func TestEverythingCrosses(t *testing.T) {
	acts := map[string]func(w *world, h *host, id SAID){
		"rekey child":  func(w *world, h *host, id SAID) { w.take(h, h.e.Do(w.now, id, RekeyChild)) },
		"rekey IKE":    func(w *world, h *host, id SAID) { w.take(h, h.e.Do(w.now, id, RekeyIKE)) },
		"probe":        func(w *world, h *host, id SAID) { w.take(h, h.e.Do(w.now, id, Probe)) },
		"create child": func(w *world, h *host, id SAID) { w.take(h, h.e.AddChild(w.now, id, ipsec.Selector{})) },
		"delete":       func(w *world, h *host, id SAID) { w.take(h, h.e.Do(w.now, id, Delete)) },
		"delete child": func(w *world, h *host, id SAID) {
			h.e.begin(w.now)
			if s := h.e.find(id); s != nil && s.state == established && s.out.state == idle && len(s.child.all) > 0 && s.child.all[0].current() != nil {
				s.deleteChild(s.child.all[0].current())
				h.e.schedule(s)
			}
			w.take(h, h.e.finish())
		},
	}
	for first, one := range acts {
		for second, two := range acts {
			t.Run(first+" and "+second, func(t *testing.T) {
				for _, apart := range []time.Duration{0, 2, 5, 7, 10, 12, 15, 20, 25} {
					for lost := -1; lost < 8; lost++ {
						if (int(apart)+lost)%3 != 0 && os.Getenv("TACIT_LONG") != "1" {
							continue
						}
						for _, hybrid := range []bool{false, true} {
							cross(t, hybrid, one, two, apart*time.Millisecond, lost, first == "delete" || second == "delete", first == "delete child" || second == "delete child")
							if t.Failed() {
								t.Fatalf("%v apart, message %d lost, hybrid %v", apart, lost, hybrid)
							}
						}
					}
				}
			})
		}
	}
}

func cross(t *testing.T, hybrid bool, one, two func(*world, *host, SAID), apart time.Duration, lost int, deleted, childless bool) {
	a, b, w := pairOf(t)
	a.e.cfg.Rand, b.e.cfg.Rand = newSeeded(uint64(apart)+uint64(lost)), newSeeded(uint64(apart)+uint64(lost)+1000)
	id := establish(t, w, a, b, peerOf(a, b))
	n := 0
	w.tap = func(*host, *Datagram) bool { n++; return n-1 != lost }
	bID := only(t, b).id
	if hybrid { // rekeys of the IKE SA have follow-ups
		mixed(t, a, b)
	}
	one(w, a, id)
	drive(w, apart, time.Millisecond)
	two(w, b, bID)
	drive(w, 2*time.Second, 5*time.Millisecond)
	w.run(4 * time.Minute) // requests that met are made again after a minute, and may meet again
	drive(w, time.Second, 5*time.Millisecond)
	settled(t, a, b)
	switch n := a.e.Stats().SAs; {
	case deleted || childless: // the SA has gone, or is about to
		if deleted && n != 0 {
			t.Errorf("%d SAs after DELETE", n)
		}
	case n != 1 || count[Closed](a)+count[Closed](b)+count[ChildDown](a)+count[ChildDown](b) != 0:
		t.Errorf("%d SAs, closed\n%s\n%s", n, a.dump(), b.dump())
	case a.lost+b.lost > 0:
		t.Errorf("%d and %d packets lost", a.lost, b.lost)
	}
	if len(a.alive()) != len(b.alive()) || len(a.out) != len(b.out) || len(a.in) != len(a.out) || len(b.in) != len(b.out) {
		t.Errorf("SAs %d and %d, Pairs %d and %d, inbound %d and %d", len(a.alive()), len(b.alive()), len(a.out), len(b.out), len(a.in), len(b.in))
	}
	if t.Failed() {
		fmt.Println(a.dump())
		fmt.Println(b.dump())
	}
}
