package ike

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"tacit/ipsec"
)

// drive lets the world go on for d with a packet each way every gap.
func drive(w *world, d, gap time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.traffic()
		w.run(gap)
	}
	w.run(w.delay + w.shuffle)
}

// Child SAs that live 2 s are replaced under traffic without a lost packet, whoever rekeys, with and without PFS.
func TestRekeyUnderTraffic(t *testing.T) {
	for name, cfg := range map[string][2]Config{
		"initiator": {{ChildLifetime: 2 * time.Second}, {}},
		"responder": {{}, {ChildLifetime: 2 * time.Second}},
		"both":      {{ChildLifetime: 2 * time.Second}, {ChildLifetime: 2 * time.Second}},
		"equal":     {{ChildLifetime: 3 * time.Second}, {ChildLifetime: 2 * time.Second}},
	} {
		for _, mode := range []ipsec.Mode{ipsec.Transport, ipsec.Tunnel} {
			t.Run(fmt.Sprint(name, mode), func(t *testing.T) {
				a, b, w := pairWith(t, cfg[0], cfg[1])
				p := peerOf(a, b)
				p.Auth.Mode = mode
				id := establish(t, w, a, b, p)
				a.e.find(id).child.all[0].noPFS = mode == ipsec.Tunnel
				drive(w, 2*time.Minute, 10*time.Millisecond)
				checkRekeyed(t, a, b, 30)
			})
		}
	}
}

func checkRekeyed(t *testing.T, a, b *host, least int) {
	t.Helper()
	checkPaired(t, a, b)
	checkSound(t, a, b)
	for _, h := range []*host{a, b} {
		if n := count[ChildUp](h); n < least {
			t.Errorf("%s: %d Child SAs, want %d", h.name, n, least)
		}
		if h.lost > 0 || h.took == 0 {
			t.Errorf("%s: %d packets lost, %d arrived", h.name, h.lost, h.took)
		}
		if len(h.in) > 3 || len(h.e.spis) > 3 || count[Closed](h)+count[ChildDown](h) != 0 {
			t.Errorf("%s: %d inbound SAs, %d SPIs, %d closed", h.name, len(h.in), len(h.e.spis), count[Closed](h))
		}
		for _, ev := range h.events {
			if up, ok := ev.(ChildUp); ok && up.Pair.ID != 1 {
				t.Fatalf("%s: pair %d", h.name, up.Pair.ID)
			}
		}
	}
}

// The same over a network that loses, repeats and reorders.
func TestRekeyBadNetwork(t *testing.T) {
	for seed := range uint64(8) {
		a, b, w := pairWith(t, Config{ChildLifetime: 2 * time.Second}, Config{ChildLifetime: 2 * time.Second})
		w.rng = rand.New(rand.NewPCG(seed, 3))
		establish(t, w, a, b, peerOf(a, b))
		w.loss, w.repeat, w.shuffle = 0.04, 0.2, 200*time.Millisecond
		drive(w, time.Minute, 50*time.Millisecond)
		checkRekeyed(t, a, b, 10)
	}
}

// A day without a packet, at the default lifetimes of an hour.
func TestRekeyForHours(t *testing.T) {
	a, b, w := pairWith(t, Config{IKELifetime: 48 * time.Hour}, Config{IKELifetime: 48 * time.Hour})
	establish(t, w, a, b, peerOf(a, b))
	drive(w, 24*time.Hour, time.Minute)
	checkRekeyed(t, a, b, 24)
}

// Both ask at once: both are refused with TEMPORARY_FAILURE, and one of them comes through a little later.
func TestRekeyCrossing(t *testing.T) {
	a, b, w := pairOf(t)
	establish(t, w, a, b, peerOf(a, b))
	for _, h := range []*host{a, b} {
		for id := range h.e.sas {
			w.take(h, h.e.Do(w.now, id, RekeyChild))
		}
	}
	drive(w, 2*time.Minute, 10*time.Millisecond)
	checkRekeyed(t, a, b, 2)
}

// The data plane refuses the new SA: the old one serves on, and the peer is rid of its half.
func TestRekeyInstallFails(t *testing.T) {
	for _, who := range []int{0, 1} {
		a, b, w := pairOf(t)
		id := establish(t, w, a, b, peerOf(a, b))
		h := []*host{a, b}[who]
		fails := 2
		h.install = func(c ChildWanted) error {
			if c.Rekey && fails > 0 {
				fails--
				return errors.New("no room")
			}
			return nil
		}
		w.take(a, a.e.Do(w.now, id, RekeyChild))
		drive(w, time.Second, 10*time.Millisecond)
		if a.lost+b.lost > 0 || count[Closed](a)+count[Closed](b) != 0 {
			t.Errorf("%d and %d lost\n%s\n%s", a.lost, b.lost, a.dump(), b.dump())
		}
		drive(w, 5*time.Minute, 100*time.Millisecond)
		checkRekeyed(t, a, b, 2)
		if fails != 0 {
			t.Error("no second attempt")
		}
	}
}

// A peer that takes no key exchange at a rekey gets one without.
func TestRekeyWithoutPFS(t *testing.T) {
	a, b, w := pairOf(t)
	id := establish(t, w, a, b, peerOf(a, b))
	b.e.offer.groups = []uint16{groupP256}
	w.take(a, a.e.Do(w.now, id, RekeyChild))
	drive(w, 2*time.Minute, 100*time.Millisecond)
	checkRekeyed(t, a, b, 2)
}

// The peer deletes the only Child SA: the IKE SA has no use any more and goes after a while.
func TestChildDeletedByPeer(t *testing.T) {
	a, b, w := pairOf(t)
	id := establish(t, w, a, b, peerOf(a, b))
	s := a.e.sas[id]
	a.e.begin(w.now)
	s.deleteChild(s.child.all[0].current())
	a.e.schedule(s)
	w.take(a, a.e.finish())
	w.run(5 * time.Second)
	if count[ChildDown](a) != 1 || count[ChildDown](b) != 1 || count[Closed](a) != 0 {
		t.Errorf("%s\n%s", a.dump(), b.dump())
	}
	w.run(time.Minute)
	if count[Closed](a) != 1 || count[Closed](b) != 1 || a.e.Stats().SAs != 0 {
		t.Errorf("%s\n%s", a.dump(), b.dump())
	}
	checkSound(t, a, b)
}
