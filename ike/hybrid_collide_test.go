package ike

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"tacit/ike/wire"
)

// Rekeys that meet and have additional key exchanges: "the SAs are not yet created when the CREATE_CHILD_SA is completed" (RFC 9370, 2.2.4).

// bothRekey has both ends rekey the IKE SA at once, a with the hybrid, b as told. followed is filled with who follows up.
func bothRekey(t *testing.T, seed uint64, bToo bool) (a, b *host, w *world, followed map[*host]bool) {
	t.Helper()
	a, b, w = classic(t)
	a.e.cfg.Rand, b.e.cfg.Rand = newSeeded(seed), newSeeded(seed+1000)
	id := establish(t, w, a, b, peerOf(a, b))
	bID := only(t, b).id
	mixed(t, a, b)
	only(t, b).hybrid = bToo
	followed = map[*host]bool{}
	w.tap = func(from *host, d *Datagram) bool {
		if h, _ := wire.ParseHeader(d.Data); h.Exchange == wire.FollowupKE && h.Flags&wire.FlagResponse == 0 {
			followed[from] = true
		}
		return true
	}
	w.take(a, a.e.Do(w.now, id, RekeyIKE))
	w.take(b, b.e.Do(w.now, bID, RekeyIKE))
	return a, b, w, followed
}

// The lowest of the four nonces loses: its end "just stops the rekeying process, and it MUST NOT initiate the IKE_FOLLOWUP_KE exchange". Nothing is refused,
// nothing is made in vain, and the other end's heir has the Child SAs. Also where one of the two asks for no additional key exchange.
func Test282SimultaneousHybridRekey(t *testing.T) {
	for _, bToo := range []bool{true, false} {
		won := map[bool]int{}
		for seed := range uint64(100) {
			a, b, w, followed := bothRekey(t, seed, bToo)
			idA, idB := only(t, a).id, only(t, b).id
			drive(w, time.Millisecond, time.Millisecond) // both have answered
			lowA, lowB := b.e.find(idB).kin.rekey.rivalLow, a.e.find(idA).kin.rekey.rivalLow
			drive(w, time.Millisecond, time.Millisecond) // both have decided
			wins := bytes.Compare(lowA, lowB) > 0
			if x, y := a.e.find(idA), b.e.find(idB); bToo && (len(a.e.sas)+len(b.e.sas) != 2 || x.awaits() == wins || y.awaits() != wins || (x.state == rekeying) != wins || (y.state == rekeying) == wins) {
				t.Fatalf("seed %d: a wins %v: %d and %d SAs, %v and %v", seed, wins, len(a.e.sas), len(b.e.sas), x.state, y.state)
			}
			drive(w, time.Second, 3*time.Millisecond)
			if followed[a] != wins || followed[b] != (bToo && !wins) {
				t.Errorf("seed %d: a wins %v, and a followed up %v, b %v", seed, wins, followed[a], followed[b])
			}
			w.run(time.Minute)
			settled(t, a, b)
			won[wins]++
			if s := only(t, a); s.initiator != wins || (s.keys.suite.add != groupNone) != (bToo || wins) {
				t.Errorf("seed %d: a wins %v: the heir is a's %v, with %d", seed, wins, s.initiator, s.keys.suite.add)
			}
			if count[Rekeyed](a) != 1 || count[Rekeyed](b) != 1 || a.lost+b.lost+count[Closed](a)+count[Closed](b) != 0 || a.e.Stats().Retransmitted+b.e.Stats().Retransmitted != 0 {
				t.Errorf("seed %d: %s\n%s", seed, a.dump(), b.dump())
			}
			checkPaired(t, a, b)
		}
		if won[true] < 30 || won[false] < 30 {
			t.Errorf("won: %v", won)
		}
	}
}

// A request that comes when "the series of IKE_FOLLOWUP_KE exchanges is in progress" for ours: "a TEMPORARY_FAILURE notification MUST be sent in response".
func Test282HybridFollowUpUnderWay(t *testing.T) {
	a, b, w, _ := bothRekey(t, 1, true)
	requests := 0
	w.tap = func(from *host, d *Datagram) bool { // a's first request is in the queue already
		h, _ := wire.ParseHeader(d.Data)
		if h.Exchange == wire.FollowupKE {
			requests++
		}
		return h.Exchange != wire.FollowupKE
	}
	for i, f := range w.queue {
		if f.d.Local == addrB { // a's request is late
			w.queue[i].at = f.at.Add(20 * time.Millisecond)
		}
	}
	w.run(15 * time.Millisecond)
	s := only(t, b)
	if s.kin.rekey == nil || !s.kin.rekey.answered || requests == 0 || !only(t, a).awaits() {
		t.Fatalf("%v, %d follow-ups", s.state, requests)
	}
	w.run(20 * time.Millisecond)
	if x := only(t, a); x.state != established || x.kin.rekey != nil || x.kin.since.IsZero() || s.state != rekeying || s.awaits() {
		t.Errorf("a is %v, b is %v", x.state, s.state)
	}
	w.tap = nil
	drive(w, 5*time.Second, 10*time.Millisecond)
	w.run(time.Minute)
	settled(t, a, b)
	if s := only(t, b); !s.initiator || s.keys.suite.add == groupNone || count[Rekeyed](a) != 1 {
		t.Errorf("%s\n%s", a.dump(), b.dump())
	}
}

// A request that is late by any time: whichever end has not seen that the rekeys meet goes on with its own, and the other's is put off or forgotten.
func Test282HybridLateRequest(t *testing.T) {
	for seed := range uint64(4) {
		for _, late := range []time.Duration{1, 4, 6, 8, 11, 14, 16, 19, 25, 100, 700, 40000} {
			a, b, w, _ := bothRekey(t, seed, true)
			for i, f := range w.queue {
				if f.d.Local == addrB {
					w.queue[i].at = f.at.Add(late * time.Millisecond)
				}
			}
			drive(w, 3*time.Second, 3*time.Millisecond)
			w.run(2 * time.Minute)
			settled(t, a, b)
			if s := only(t, a); a.lost+b.lost+count[Closed](a)+count[Closed](b) != 0 || s.keys.suite.add == groupNone {
				t.Errorf("%v late: %d and %d lost\n%s\n%s", late, a.lost, b.lost, a.dump(), b.dump())
			}
		}
	}
}

// Over networks that lose, repeat and reorder, whatever the ends rekey at once: one IKE SA and one Child SA are left, with keys of the hybrid.
func TestHybridCollisionsBadNetwork(t *testing.T) {
	reached, closed := 0, 0
	const seeds = 400
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			a, b, w := classic(t)
			a.e.cfg.Rand, b.e.cfg.Rand = newSeeded(seed), newSeeded(seed+1000)
			id := establish(t, w, a, b, peerOf(a, b))
			bID := only(t, b).id
			mixed(t, a, b)
			w.rng = rand.New(rand.NewPCG(seed, 13))
			w.loss, w.repeat, w.shuffle = float64(seed%4)*0.1, float64(seed%3)*0.15, time.Duration(seed%6)*8*time.Millisecond
			for range 3 {
				for _, x := range []struct {
					h  *host
					id SAID
				}{{a, id}, {b, bID}} {
					c := RekeyIKE
					if w.rng.IntN(4) == 0 {
						c = RekeyChild
					}
					w.take(x.h, x.h.e.Do(w.now, x.id, c))
					drive(w, time.Duration(w.rng.IntN(20))*time.Millisecond, time.Millisecond)
				}
				drive(w, 8*time.Second, 20*time.Millisecond)
			}
			w.loss, w.repeat, w.shuffle = 0, 0, 0
			w.run(3 * time.Minute)
			if count[Closed](a)+count[Closed](b) > 0 {
				closed++
				ca, _ := find[Closed](a)
				cb, _ := find[Closed](b)
				if !errors.Is(ca.Err, ErrTimeout) && !errors.Is(cb.Err, ErrTimeout) { // else five sends in a row were lost
					t.Errorf("closed: %v, %v", ca.Err, cb.Err)
				}
				return
			}
			settled(t, a, b)
			checkPaired(t, a, b)
			if a.lost+b.lost != 0 {
				t.Errorf("%d and %d packets lost", a.lost, b.lost)
			}
			if only(t, a).keys.suite.add == kemMLKEM768 {
				reached++
			}
		})
	}
	t.Logf("%d of %d reached the hybrid, %d were closed", reached, seeds, closed)
	if reached+closed < seeds*9/10 || closed > seeds/10 {
		t.Error("too few")
	}
}

// The key exchanges of rekeys that meet are computed elsewhere, and take any time: what happens meanwhile makes no difference to how they end.
func TestHybridCollisionsWhileComputing(t *testing.T) {
	for seed := range uint64(200) {
		a, b, w := modpOnly(t)
		a.e.cfg.Rand, b.e.cfg.Rand = newSeeded(seed), newSeeded(seed+1000)
		w.initiate(a, peerOf(a, b))
		w.run(time.Second)
		mixed(t, a, b)
		a.busy, b.busy, a.work, b.work = true, true, nil, nil
		rng := rand.New(rand.NewPCG(seed, 17))
		w.take(a, a.e.Do(w.now, only(t, a).id, RekeyIKE))
		w.take(b, b.e.Do(w.now, only(t, b).id, RekeyIKE))
		for range 400 { // of 1 to 4 milliseconds
			for _, h := range []*host{a, b} {
				if len(h.work) > 0 && rng.IntN(8) == 0 {
					n := rng.IntN(len(h.work))
					ev := h.work[n]
					h.work = slices.Delete(h.work, n, n+1)
					w.take(h, h.e.Supply(w.now, ev.SA, ev.Compute()))
				}
				for _, s := range h.e.sas {
					if s.kin != nil && s.kin.asked != nil && s.awaits() {
						t.Fatalf("seed %d: %s follows its rekey up, and lets the other be followed up", seed, h.name)
					}
				}
			}
			drive(w, time.Duration(1+rng.IntN(4))*time.Millisecond, time.Millisecond)
		}
		a.busy, b.busy = false, false
		w.run(time.Minute)
		settled(t, a, b)
		checkPaired(t, a, b)
		if s := only(t, a); a.lost+b.lost+count[Closed](a)+count[Closed](b) != 0 || s.keys.suite.add == groupNone || count[Rekeyed](a) != count[Rekeyed](b) {
			t.Errorf("seed %d: %s\n%s", seed, a.dump(), b.dump())
		}
	}
}

// A peer rekeys a Child SA with an additional key exchange, which we do not ask for ourselves, while our own request is out. When we have its answer the
// four nonces say whether we delete ours and let the peer follow up, or take ours and expect no follow-up.
func Test281HybridChild(t *testing.T) {
	won := map[bool]int{}
	for seed := range uint64(40) {
		a, b, w := collision(t, rekeysChild)
		a.e.cfg.Rand = newSeeded(seed)
		mixed(t, b)
		sh, _ := newShare(newSeeded(2), groupX25519)
		theirs := hybridRekey(only(t, a).child.all[0].current().in, sh)
		newSeeded(seed + 1000).Read(get[*wire.Nonce](theirs).Data)
		got, _ := talk(t, w, a, b, wire.CreateChildSA, 2, theirs...)
		link := notify(got, wire.AdditionalKeyExchange)
		s := only(t, b)
		n := s.child.mine
		if link == nil || n == nil || n.rival == nil || !s.awaits() {
			t.Fatalf("answer %v", got)
		}
		low := n.rival.low
		if want := lower(get[*wire.Nonce](theirs).Data, get[*wire.Nonce](got).Data); !bytes.Equal(low, want) {
			t.Fatalf("the lower nonce is %x, want %x", low, want)
		}
		var nr []byte
		w.tap = func(from *host, d *Datagram) bool {
			if h, _ := wire.ParseHeader(d.Data); from == a && h.Exchange == wire.CreateChildSA {
				ps, _ := s.keys.open.open(d.Data)
				nr = bytes.Clone(get[*wire.Nonce](ps).Data)
			}
			return true
		}
		b.wake = w.now
		w.run(2 * time.Second) // our request is repeated, and a answers it
		wins := bytes.Compare(lower(n.ni, nr), low) > 0
		won[wins]++
		if s.awaits() == wins || s.child.mine != nil || (s.child.theirs == nil) != wins || (n.fresh.state == childUp && !n.fresh.unborn) != wins {
			t.Errorf("seed %d: ours wins %v: awaits %v, ours is %v", seed, wins, s.awaits(), n.fresh.state)
		}
		kem, _ := newShare(newSeeded(3), kemMLKEM768)
		answer, o := talk(t, w, a, b, wire.FollowupKE, 3, &wire.KE{Group: kemMLKEM768, Data: kem.public()}, link)
		if wins {
			if notify(answer, wire.StateNotFound) == nil {
				t.Errorf("seed %d: the loser's follow-up is answered with %v", seed, answer)
			}
		} else if wanted, ok := find[ChildWanted](&host{events: o.Events}); !ok || !wanted.Rekey {
			t.Errorf("seed %d: the winner's follow-up makes %v", seed, o.Events)
		}
		checkSound(t, a, b)
	}
	if won[true] < 5 || won[false] < 5 {
		t.Errorf("won: %v", won)
	}
}
