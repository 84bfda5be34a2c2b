package ike

import (
	"bytes"
	"crypto"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"tacit/ike/wire"
)

// How the ends of a crossing prove themselves.
type proof int

const (
	bothNamed   proof = iota // each tells its name to whom it asks
	bothNobody               // neither has a name
	onlyIfAsked              // each proves its name as a responder only
)

// crossed is two hosts that begin at once: the second that much later.
func crossed(t testing.TB, seed uint64, how proof, later time.Duration) (a, b *host, w *world) {
	a = newHost(t, "alice.example", addrA, testKeys()["other"], Config{Rand: newSeeded(seed), CrashSecret: crashSecret})
	b = newHost(t, "bob.example", addrB, testKeys()["ed25519"], Config{Rand: newSeeded(seed + 1<<32), CrashSecret: crashSecret})
	w = newWorld(t, a, b)
	w.rng = rand.New(rand.NewPCG(seed, 11))
	begin := func(from, to *host) {
		p := peerOf(from, to)
		switch how {
		case bothNamed:
			p.LocalID = ID{IDFQDN, from.name}
		case bothNobody:
			p.Auth, p.RemoteID = Authorization{Anonymous: true}, ID{Kind: IDNull}
		}
		w.initiate(from, p)
	}
	for i, h := range []*host{a, b} {
		other := []*host{b, a}[i]
		h.strict = true
		h.authorize = func(AuthorizationWanted) Authorization {
			return Authorization{Keys: []crypto.PublicKey{other.key.Public()}, Anonymous: how != bothNamed}
		}
		if how == bothNobody {
			h.e.cfg.Name, h.e.cfg.Public = "", nil
		}
	}
	begin(a, b)
	drive(w, later, time.Millisecond)
	begin(b, a)
	return a, b, w
}

// Both ends begin at once, a little or a round trip apart, over networks that reorder, lose and repeat: one SA is left, with one Child
// SA, nothing else, and no packet is lost (DESIGN.md 4).
func TestBothInitiate(t *testing.T) {
	for _, how := range []proof{bothNamed, bothNobody} {
		losers := map[bool]int{}
		for seed := range uint64(300) {
			later := time.Duration(seed%40) * time.Millisecond
			a, b, w := crossed(t, seed, how, later)
			w.shuffle, w.repeat = time.Duration(seed%7)*4*time.Millisecond, float64(seed%3)*0.1
			if seed%5 == 4 {
				w.loss = 0.15
			}
			drive(w, 2*time.Second, 10*time.Millisecond)
			up := len(a.alive())
			w.loss = 0
			drive(w, 30*time.Second, 20*time.Millisecond)
			w.run(time.Minute)
			settled(t, a, b)
			if a.lost+b.lost > 0 || a.took == 0 || b.took == 0 {
				t.Errorf("%d and %d packets lost, %d and %d arrived", a.lost, b.lost, a.took, b.took)
			}
			for _, h := range []*host{a, b} {
				if len(h.e.sas) != 1 || len(h.out) != 1 || len(h.in) != 1 || len(h.e.spis) != 1 || len(h.e.young) != 0 || len(h.e.heirs) != 0 {
					t.Errorf("%s: %d SAs, %d and %d halves, %d SPIs, %d young", h.name, len(h.e.sas), len(h.in), len(h.out), len(h.e.spis), len(h.e.young))
				}
			}
			if up == 2 {
				losers[count[ChildPreferred](a) > 0]++
			}
			if t.Failed() {
				t.Fatalf("seed %d how %v\n%s\n%s", seed, how, a.dump(), b.dump())
			}
		}
		if losers[true] < 200 {
			t.Errorf("how %v: of 300 only %d crossed", how, losers[true])
		}
	}
}

// The rule is that of the nonces, whoever was first: the SA with the lowest of the four goes, and its initiator sends the DELETE.
func TestLowestNonceLoses(t *testing.T) {
	for seed := range uint64(40) {
		a, b, w := crossed(t, seed, bothNamed, 0)
		low := map[bool][]byte{}
		w.run(time.Second)
		for _, s := range a.e.sas {
			low[s.initiator] = bytes.Clone(s.kin.cross.low)
		}
		if len(low) != 2 || count[Closed](a)+count[Closed](b) != 0 {
			t.Fatalf("%d SAs", len(low))
		}
		var deletes []*host
		w.tap = func(from *host, d *Datagram) bool {
			if h, _ := wire.ParseHeader(d.Data); h.Exchange == wire.Informational && h.Flags&wire.FlagResponse == 0 {
				deletes = append(deletes, from)
			}
			return true
		}
		w.run(8 * time.Second)
		if len(deletes) != 0 {
			t.Fatal("too early")
		}
		w.run(3 * time.Second)
		loser := b
		if bytes.Compare(low[true], low[false]) < 0 {
			loser = a
		}
		if len(deletes) != 1 || deletes[0] != loser {
			t.Errorf("seed %d: %d DELETEs", seed, len(deletes))
		}
		w.run(time.Minute)
		if s := only(t, a); s.initiator == (loser == a) {
			t.Errorf("seed %d: the wrong SA is left", seed)
		}
	}
}

// Who gives no token is no tacit, and does not know the rule: then the SA goes that the peer had first, whoever began it, and no other
// end deletes it. libreswan takes the last for its own and begins again when that ends; openiked takes away the policies of both.
func TestCrossedWithAStrangerLeavesTheLast(t *testing.T) {
	began := map[bool]int{}
	for seed := range uint64(60) {
		a, b, w := crossed(t, seed, bothNamed, time.Duration(1+seed%8)*time.Millisecond)
		stranger := []*host{a, b}[seed%2] // either the one that began first, or the other
		stranger.e.cfg.CrashSecret = nil
		w.run(time.Second)
		var last *sa
		for _, e := range stranger.events {
			if e, ok := e.(Established); ok {
				last = stranger.e.sas[e.SA]
			}
		}
		for _, s := range stranger.e.sas {
			s.kin.cross = nil
		}
		drive(w, 15*time.Second, 20*time.Millisecond)
		if n := count[Closed](stranger); n != 1 {
			t.Errorf("seed %d: %d SAs ended in time", seed, n)
		}
		w.run(time.Minute)
		settled(t, a, b)
		if s := only(t, stranger); s != last || a.lost+b.lost > 0 {
			t.Errorf("seed %d: the first is left, %d and %d packets lost\n%s\n%s", seed, a.lost, b.lost, a.dump(), b.dump())
		}
		began[last.initiator]++
	}
	if len(began) != 2 {
		t.Errorf("the last was always begun by the same end: %v", began)
	}
}

// A peer took the SA that has gone for the last one, and begins anew in the other: that has one Child SA in the end, the new one.
func TestCrossedStrangerBeginsAnew(t *testing.T) {
	for seed := range uint64(40) {
		a, b, w := crossed(t, seed, bothNamed, time.Duration(seed%8)*time.Millisecond)
		b.e.cfg.CrashSecret = nil
		w.run(time.Second)
		for _, s := range b.e.sas {
			s.kin.cross = nil
		}
		for range 3000 {
			if drive(w, 10*time.Millisecond, 10*time.Millisecond); count[Closed](b) == 1 {
				break
			}
		}
		var old *child
		for id := range b.alive() {
			old = b.e.sas[id].child.all[0]
			w.take(b, b.e.AddChild(w.now, id, old.selector))
		}
		drive(w, 25*time.Second, 20*time.Millisecond)
		w.run(time.Minute)
		settled(t, a, b)
		for _, h := range []*host{a, b} {
			if s := only(t, h); len(s.child.all) != 1 || len(s.child.all[0].sas) != 1 || len(h.in) != 1 || len(h.out) != 1 {
				t.Errorf("seed %d: %s has %d Pairs, %d and %d halves", seed, h.name, len(s.child.all), len(h.in), len(h.out))
			}
		}
		if only(t, b).child.all[0] == old {
			t.Errorf("seed %d: the new one is gone", seed)
		}
		if a.lost+b.lost > 0 {
			t.Errorf("seed %d: %d and %d packets lost", seed, a.lost, b.lost)
		}
		if t.Failed() {
			t.Fatalf("%s\n%s", a.dump(), b.dump())
		}
	}
}

// A peer that does not delete its own: after a while we do.
func TestCrossedWithAStranger(t *testing.T) {
	for seed := range uint64(20) {
		a, b, w := crossed(t, seed, bothNamed, 0)
		w.run(time.Second)
		for _, s := range b.e.sas {
			s.kin.cross = nil
		}
		drive(w, time.Minute, 20*time.Millisecond)
		w.run(time.Minute)
		settled(t, a, b)
		if len(a.e.sas) != 1 {
			t.Errorf("seed %d: %d SAs", seed, len(a.e.sas))
		}
	}
}

// What is preferred before the loser goes takes a data plane a moment, and what is sent meanwhile with the loser is not lost.
func TestCrossedWithASlowDataPlane(t *testing.T) {
	for seed := range uint64(60) {
		a, b, w := crossed(t, seed, []proof{bothNamed, bothNobody}[seed%2], 0)
		w.run(time.Second)
		for _, s := range b.e.sas { // a stranger, who forgets an SA at once
			s.kin.cross = nil
		}
		a.slow = 150 * time.Millisecond
		drive(w, time.Minute, 10*time.Millisecond)
		w.run(time.Minute)
		settled(t, a, b)
		if len(a.e.sas) != 1 || a.lost+b.lost > 0 {
			t.Errorf("seed %d: %d SAs, %d and %d packets lost", seed, len(a.e.sas), a.lost, b.lost)
		}
	}
}

// The winner has ended when the loser's time comes: the loser stays.
func TestCrossedWinnerGone(t *testing.T) {
	for seed := range uint64(20) {
		a, b, w := crossed(t, seed, bothNamed, 0)
		w.run(time.Second)
		for _, h := range []*host{a, b} {
			for _, s := range h.e.sas {
				if s.kin.cross.twin == nil && s.initiator {
					w.take(h, h.e.Do(w.now, s.id, Delete))
				}
			}
		}
		w.run(2 * time.Minute)
		settled(t, a, b)
		if len(a.e.sas) != 1 || count[Closed](a) != 1 {
			t.Errorf("seed %d: %d SAs, %d closed", seed, len(a.e.sas), count[Closed](a))
		}
	}
}

// Both are rekeyed, IKE SAs and Child SAs, before one of them goes.
func TestCrossedAndRekeyed(t *testing.T) {
	for seed := range uint64(30) {
		a, b, w := crossed(t, seed, bothNamed, 0)
		w.run(time.Second)
		for i, h := range []*host{a, b} {
			for id := range h.alive() {
				w.take(h, h.e.Do(w.now, id, Command(uint64(RekeyChild)+(seed+uint64(i))%2)))
			}
		}
		drive(w, time.Minute, 20*time.Millisecond)
		w.run(time.Minute)
		settled(t, a, b)
		if len(a.e.sas) != 1 || a.lost+b.lost > 0 {
			t.Errorf("seed %d: %d SAs, %d and %d lost\n%s\n%s", seed, len(a.e.sas), a.lost, b.lost, a.dump(), b.dump())
		}
	}
}

// An SA in which either end has proved less does not stand in for one in which it has proved more (TRUST.md A-19).
//
//tacit:attack A-19 an SA that proves less stands in for none that proves more
func TestNobodyDoesNotCover(t *testing.T) {
	for seed := range uint64(20) {
		a, b, w := crossed(t, seed, onlyIfAsked, 0)
		w.run(2 * time.Minute)
		if len(a.e.sas) != 2 || len(b.e.sas) != 2 || len(a.out)+len(b.out) != 2 { // a responder's waits for its first packet
			t.Errorf("seed %d: %d and %d SAs", seed, len(a.e.sas), len(b.e.sas))
		}
	}
}

// INITIAL_CONTACT says nothing about an SA that crosses the one in which it is said: it is ignored.
func TestInitialContactWhileCrossing(t *testing.T) {
	a, b, w := crossed(t, 1, bothNamed, 0)
	w.tap = rewriteIn(t, a, wire.IKEAuth, func(ps []wire.Payload) []wire.Payload {
		if getID(ps, false) == nil {
			return ps
		}
		return append(ps, status(wire.InitialContact, nil))
	})
	w.run(5 * time.Second)
	if len(a.e.sas) != 2 || len(b.e.sas) != 2 || count[Closed](b) != 0 {
		t.Errorf("%d and %d SAs\n%s", len(a.e.sas), len(b.e.sas), b.dump())
	}
}

// Clients that come from one address do not cross each other, nor does one of them an SA with somebody else there.
func TestManyFromOneAddressDoNotCross(t *testing.T) {
	y := newHost(t, "bob.example", addrB, testKeys()["ed25519"], Config{})
	for i := range 5 {
		x := newHost(t, fmt.Sprint("client", i), addrA, nil, Config{Rand: newSeeded(uint64(i + 100))})
		w := newWorld(t, x, y)
		y.wake = time.Time{}
		w.initiate(x, peerOf(x, y))
		w.run(time.Second)
	}
	for _, s := range y.e.sas {
		if s.kin.cross.twin != nil {
			t.Error("crossed")
		}
	}
}
