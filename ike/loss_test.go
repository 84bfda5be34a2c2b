package ike

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// A handshake comes up over a network that loses, repeats and reorders; then a DELETE takes both halves away.
func TestBadNetwork(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			a, b, w := pairOf(t)
			w.rng = rand.New(rand.NewPCG(seed, 7))
			w.loss, w.repeat, w.shuffle = 0.25, 0.3, 200*time.Millisecond
			id := w.initiate(a, peerOf(a, b))
			w.until(20*time.Second, func() bool { return bothUp(a, b)() || count[Closed](a) > 0 })
			if !bothUp(a, b)() {
				if c, _ := find[Closed](a); !errors.Is(c.Err, ErrTimeout) {
					t.Fatalf("not up, and closed with %v", c.Err)
				}
				t.Skip("five sends in a row were lost")
			}
			checkPaired(t, a, b)
			if n := count[ChildWanted](b) + count[Established](b); n != 2 {
				t.Errorf("responder worked %d times on one handshake", n)
			}
			w.loss = 0.1
			w.take(a, a.e.Do(w.now, id, Delete))
			w.run(time.Minute)
			for _, h := range []*host{a, b} {
				if count[Closed](h) != 1 || count[ChildDown](h) != 1 || len(h.out) != 0 || h.e.Stats().SAs != 0 || len(h.e.spis) != 0 {
					t.Errorf("after DELETE\n%s", h.dump())
				}
			}
			checkSound(t, a, b)
		})
	}
}

// The initiator gives up after its last wait, and not before.
func TestTimeout(t *testing.T) {
	a, b, w := pairOf(t)
	w.loss = 1
	w.initiate(a, peerOf(a, b))
	w.run(15400 * time.Millisecond)
	if count[Closed](a) != 0 {
		t.Fatal("closed too early")
	}
	w.run(3 * time.Second)
	if c, ok := find[Closed](a); !ok || c.Err != ErrTimeout || w.sent != 5 || a.e.Stats().SAs != 0 {
		t.Errorf("closed %v %v after %d messages", ok, c.Err, w.sent)
	}
}

// TRUST.md A-20: to an address where nobody may be fewer messages go than on an SA that was there.
//
//tacit:attack A-20 an IKE_SA_INIT that nobody answers is sent as often as is set, and no more
func TestInitSends(t *testing.T) {
	a, b, w := pairWith(t, Config{InitSends: 3}, Config{})
	id := establish(t, w, a, b, peerOf(a, b))
	w.loss, w.sent = 1, 0
	w.initiate(a, Peer{Local: addrA, Remote: netip.MustParseAddrPort("192.0.2.77:500"), Auth: Authorization{Anonymous: true}})
	w.run(time.Minute)
	if w.sent != 3 {
		t.Errorf("%d first messages, want 3", w.sent)
	}
	w.sent = 0
	w.take(a, a.e.Do(w.now, id, Probe))
	w.run(time.Minute)
	if w.sent != 5 {
		t.Errorf("%d probes of an SA, want 5", w.sent)
	}
}

// A half-open SA of a responder ends by itself, and the caller never hears of it.
func TestHalfOpenEnds(t *testing.T) {
	a, b, w := pairOf(t)
	w.tap = func(from *host, _ *Datagram) bool { return from == a }
	w.initiate(a, peerOf(a, b))
	w.run(time.Second)
	if st := b.e.Stats(); st.HalfOpen != 1 {
		t.Fatalf("stats %+v", st)
	}
	w.run(time.Minute)
	if st := b.e.Stats(); st.HalfOpen != 0 || st.SAs != 0 || len(b.e.half) != 0 || len(b.e.networks()) != 0 || len(b.events) != 0 {
		t.Errorf("stats %+v\n%s", st, b.dump())
	}
}

// A responder answers repeats from memory, never by itself (TRUST.md A-21).
//
//tacit:attack A-21 repeats are answered from memory, and nothing is sent unasked
func TestResponderNeverRetransmits(t *testing.T) {
	a, b, w := pairOf(t)
	var fromB int
	w.tap = func(from *host, _ *Datagram) bool {
		if from == b {
			fromB++
		}
		return from == a
	}
	w.initiate(a, peerOf(a, b))
	w.run(time.Minute)
	if fromB != 5 {
		t.Errorf("%d answers to 5 requests", fromB)
	}
}

// A request is repeated while the data plane has not answered: it is dropped. Afterwards: answered from memory.
func TestRepeatsWhileInstalling(t *testing.T) {
	a, b, w := pairOf(t)
	b.held = true
	w.initiate(a, peerOf(a, b))
	w.run(4 * time.Second)
	wanted, ok := find[ChildWanted](b)
	if !ok || count[ChildWanted](b) != 1 || count[ChildUp](a) != 0 || b.e.Stats().Drops["repeat"]+b.e.Stats().Drops["message-id"] == 0 {
		t.Fatalf("%s", b.dump())
	}
	w.take(b, b.e.Supply(w.now, wanted.SA, Installed{Token: wanted.Token}))
	w.run(time.Second)
	if !bothUp(a, b)() {
		t.Errorf("not up\n%s\n%s", a.dump(), b.dump())
	}
	w.take(b, b.e.Supply(w.now, wanted.SA, Installed{Token: wanted.Token})) // twice: nobody waits for it
	checkSound(t, a, b)
}

func TestLiveness(t *testing.T) {
	a, b, w := pairWith(t, Config{Liveness: 10 * time.Second}, Config{})
	establish(t, w, a, b, peerOf(a, b))
	w.run(35 * time.Second)
	if n := count[Alive](a); n != 3 {
		t.Errorf("%d signs of life in 35 s, want 3", n)
	}
	w.loss = 1
	w.run(30 * time.Second)
	if c, ok := find[Closed](a); !ok || c.Err != ErrTimeout || count[ChildDown](a) != 1 {
		t.Errorf("%s", a.dump())
	}
}

func TestProbe(t *testing.T) {
	a, b, w := pairOf(t)
	id := establish(t, w, a, b, peerOf(a, b))
	w.take(a, a.e.Do(w.now, id, Probe))
	if !w.until(time.Second, func() bool { return count[Alive](a) == 1 && count[Alive](b) == 1 }) {
		t.Errorf("%s", a.dump())
	}
}

// A peer that does not rekey the IKE SA is left at the end of its lifetime.
func TestIKELifetime(t *testing.T) {
	a, b, w := pairWith(t, Config{IKELifetime: time.Hour}, Config{IKELifetime: time.Hour})
	establish(t, w, a, b, peerOf(a, b))
	b.e.offer.ike, b.e.offer.esp = nil, nil
	w.run(59 * time.Minute)
	if count[Closed](a)+count[Closed](b) != 0 {
		t.Fatal("closed too early")
	}
	w.run(2 * time.Minute)
	c, _ := find[Closed](a)
	if !errors.Is(c.Err, ErrExpired) || count[Closed](b) != 1 || a.e.Stats().SAs+b.e.Stats().SAs != 0 {
		t.Errorf("%s\n%s", a.dump(), b.dump())
	}
}

// Both ends delete at once: both come to an end (RFC 7296, 2.25).
func TestDeleteCrossing(t *testing.T) {
	a, b, w := pairOf(t)
	establish(t, w, a, b, peerOf(a, b))
	for _, h := range []*host{a, b} {
		for id := range h.e.sas {
			w.take(h, h.e.Do(w.now, id, Delete))
		}
	}
	w.run(time.Minute)
	for _, h := range []*host{a, b} {
		if c, _ := find[Closed](h); count[Closed](h) != 1 || c.Err != nil || h.e.Stats().SAs != 0 {
			t.Errorf("%s", h.dump())
		}
	}
	checkSound(t, a, b)
}
