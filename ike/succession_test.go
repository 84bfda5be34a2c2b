package ike

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"tacit/ike/wire"
)

// classic is pairOf without the key exchanges that a hybrid adds to a rekey.
func classic(t testing.TB) (*host, *host, *world) {
	return pairWith(t, Config{PostQuantum: Off}, Config{PostQuantum: Off})
}

// Of an SA that is hushed no sign of life is reported, under each of its successors; when the last came can be asked for.
func TestHush(t *testing.T) {
	a, b, w := classic(t)
	id := establish(t, w, a, b, peerOf(a, b))
	theirs := only(t, b).id
	probe := func() {
		w.run(time.Minute)
		began := w.now
		w.take(a, a.e.Do(w.now, id, Probe))
		w.run(time.Second)
		if h := b.e.Heard(theirs); h.Before(began) || h.After(w.now) {
			t.Errorf("heard at %v, want between %v and %v", h, began, w.now)
		}
	}
	for range 2 {
		b.e.Hush(theirs, true)
		n := count[Alive](b)
		for range 3 {
			probe()
			w.take(a, a.e.Do(w.now, id, RekeyIKE))
			w.run(time.Minute)
			settled(t, a, b)
		}
		if got := count[Alive](b); got != n {
			t.Errorf("%d signs of life", got-n)
		}
		b.e.Hush(theirs, false)
		if probe(); count[Alive](b) == n {
			t.Error("no sign of life is reported")
		}
	}
	b.e.Hush(1, true)
	if h := b.e.Heard(1); !h.IsZero() {
		t.Errorf("of an SA that is not there: heard at %v", h)
	}
}

// An IKE SA that is rekeyed, by either end, goes on under its name with its Child SA: new SPIs and keys, message ids from 0, the old one
// deleted by who rekeyed it, and no packet is lost. The other end asks once whether the new one is known.
func TestIKERekey(t *testing.T) {
	for who := range 2 {
		a, b, w := classic(t)
		id := establish(t, w, a, b, peerOf(a, b))
		old := only(t, a)
		h, other := []*host{a, b}[who], []*host{b, a}[who]
		hID, otherID := only(t, h).id, only(t, other).id
		h.e.Own(hID, h)
		for n := range 5 {
			w.take(h, h.e.Do(w.now, hID, RekeyIKE))
			drive(w, time.Second, 5*time.Millisecond)
			w.run(time.Minute)
			settled(t, a, b)
			x, y := only(t, h), only(t, other)
			if x.id != hID || y.id != otherID || !x.initiator || y.initiator || h.e.find(hID) != x {
				t.Errorf("%s %d: names %x and %x, initiator %v", h.name, n, x.id, y.id, x.initiator)
			}
			if x.in.next != 1 || x.out.next != 0 || bytes.Equal(x.keys.d, old.keys.d) || x.spiI == old.spiI || x.spiR == old.spiR {
				t.Errorf("%s %d: message ids %d and %d", h.name, n, x.in.next, x.out.next)
			}
			if r, ok := find[Rekeyed](h); !ok || r.SA != hID || !r.Initiator || count[Rekeyed](other) != n+1 {
				t.Errorf("%s: %+v", h.name, r)
			}
			w.take(other, other.e.Do(w.now, otherID, Probe))
			w.run(time.Second)
			if alive, _ := find[Alive](h); alive.SA != hID || alive.Owner != any(h) {
				t.Errorf("%s %d: heard of %x, which is %v's", h.name, n, alive.SA, alive.Owner)
			}
		}
		if a.lost+b.lost+count[Closed](a)+count[Closed](b)+count[ChildDown](a) != 0 || len(a.e.heirs) != 1 || len(b.e.heirs) != 1 {
			t.Errorf("%d and %d lost\n%s", a.lost, b.lost, a.dump())
		}
		w.take(a, a.e.Do(w.now, id, Probe))
		w.take(a, a.e.Do(w.now, id, RekeyChild))
		w.run(5 * time.Second)
		settled(t, a, b)
		w.take(b, b.e.Do(w.now, only(t, b).id, Delete))
		w.run(time.Minute)
		for _, h := range []*host{a, b} {
			if len(h.e.sas)+len(h.e.heirs)+len(h.e.spis)+len(h.out)+h.e.timers.Len() != 0 || count[Closed](h) != 1 {
				t.Errorf("left: %d SAs, %d names\n%s", len(h.e.sas), len(h.e.heirs), h.dump())
			}
		}
	}
}

// A rekey may follow the last one at once: what is over is not in its way.
func TestIKERekeyAgain(t *testing.T) {
	for _, hybrid := range []bool{false, true} {
		a, b, w := classic(t)
		id := establish(t, w, a, b, peerOf(a, b))
		if hybrid {
			mixed(t, a, b)
		}
		for range 5 {
			w.take(a, a.e.Do(w.now, id, RekeyIKE))
			drive(w, 3*time.Second, 10*time.Millisecond)
		}
		if n := count[Rekeyed](a); n < 5 || n != count[Rekeyed](b) || a.lost+b.lost != 0 {
			t.Errorf("%d and %d rekeys\n%s", n, count[Rekeyed](b), a.dump())
		}
		w.run(time.Minute)
		settled(t, a, b)
	}
}

// The IKE SA and its Child SAs outlive all their lifetimes.
func TestRekeysForDays(t *testing.T) {
	c := Config{IKELifetime: 8 * time.Hour, ChildLifetime: time.Hour}
	a, b, w := pairWith(t, c, c)
	establish(t, w, a, b, peerOf(a, b))
	drive(w, 7*24*time.Hour, time.Minute)
	checkRekeyed(t, a, b, 100)
	if n := count[Rekeyed](a); n < 20 || count[Rekeyed](b) != n {
		t.Errorf("%d and %d rekeys", n, count[Rekeyed](b))
	}
	w.run(time.Minute)
	settled(t, a, b)
}

// The responder of an IKE SA replaces it if the initiator does not, and is then the initiator.
func TestIKERekeyByResponder(t *testing.T) {
	a, b, w := pairWith(t, Config{IKELifetime: 100 * time.Hour}, Config{IKELifetime: time.Hour})
	establish(t, w, a, b, peerOf(a, b))
	drive(w, 85*time.Minute, time.Minute)
	if r, ok := find[Rekeyed](b); !ok || !r.Initiator || count[Closed](a) != 0 {
		t.Errorf("%s", b.dump())
	}
}

// RFC 7296, 1.3.2: "the responder [...] INVALID_KE_PAYLOAD": the rekey is asked for again in the group that the peer wants.
func TestIKERekeyInvalidKE(t *testing.T) {
	a, b, w := classic(t)
	id := establish(t, w, a, b, peerOf(a, b))
	b.e.offer.groups = []uint16{groupP256}
	sent := w.sent
	w.take(a, a.e.Do(w.now, id, RekeyIKE))
	w.run(time.Second)
	if r, ok := find[Rekeyed](a); !ok || r.Summary != "chacha20-poly1305 prf-sha256 p256" || w.sent-sent != 8 { // and DELETE, and a probe of the heir
		t.Errorf("%d messages\n%s", w.sent-sent, a.dump())
	}
	w.run(time.Minute)
	settled(t, a, b)
}

// The same for a Child SA, with and without PFS.
func TestChildRekeyInvalidKE(t *testing.T) {
	for _, groups := range [][]uint16{{groupP256}, nil} {
		a, b, w := pairOf(t)
		id := establish(t, w, a, b, peerOf(a, b))
		b.e.offer.groups = groups
		for range 2 {
			w.take(a, a.e.Do(w.now, id, RekeyChild))
			w.run(5 * time.Second)
		}
		settled(t, a, b)
		checkPaired(t, a, b)
		if n := count[ChildUp](a); n != 3 {
			t.Errorf("groups %v: %d Child SAs\n%s", groups, n, a.dump())
		}
	}
}

// RFC 7296, 2.8.1: of two rekeys of one Child SA at the same moment the one with the lowest of the four nonces loses, and its creator
// deletes it; the other's creator deletes the old one. Nothing is refused and no packet is lost.
func Test281SimultaneousChildRekey(t *testing.T) {
	won := map[string]int{}
	for seed := range uint64(100) {
		a, b, w := pairOf(t)
		a.e.cfg.Rand, b.e.cfg.Rand = newSeeded(seed), newSeeded(seed+1000)
		id := establish(t, w, a, b, peerOf(a, b))
		bID := only(t, b).id
		w.take(a, a.e.Do(w.now, id, RekeyChild))
		w.take(b, b.e.Do(w.now, bID, RekeyChild))
		drive(w, time.Millisecond, time.Millisecond) // both have answered
		lowA, lowB := only(t, b).child.mine.rival.low, only(t, a).child.mine.rival.low
		drive(w, time.Second, 3*time.Millisecond)
		w.run(time.Minute)
		settled(t, a, b)
		cur := only(t, a).child.all[0].current()
		winner := map[bool]string{true: "a", false: "b"}[cur.initiator]
		won[winner]++
		switch {
		case w.sent != 4+8: // two rekeys, two deletions
			t.Errorf("%d messages", w.sent)
		case a.lost+b.lost > 0:
			t.Errorf("%d and %d lost", a.lost, b.lost)
		case cur.initiator != (bytes.Compare(lowA, lowB) > 0):
			t.Errorf("%s won", winner)
		}
	}
	if won["a"] < 30 || won["b"] < 30 {
		t.Errorf("won: %v", won)
	}
}

// The peer does not notice that its rekey meets ours, because our request is late: it is done by the time it sees it, and answers
// TEMPORARY_FAILURE or CHILD_SA_NOT_FOUND; its new SA serves (RFC 7296, 2.8.1).
func Test281LateRequest(t *testing.T) {
	for _, late := range []time.Duration{6, 8, 11, 14, 16, 25, 100, 700} {
		a, b, w := pairOf(t)
		id := establish(t, w, a, b, peerOf(a, b))
		bID := only(t, b).id
		w.tap = func(from *host, d *Datagram) bool {
			if h, _ := wire.ParseHeader(d.Data); from == a && h.Exchange == wire.CreateChildSA && h.Flags&wire.FlagResponse == 0 {
				w.queue = append(w.queue, flight{at: w.now.Add(late * time.Millisecond), d: Datagram{d.Remote, d.Local, bytes.Clone(d.Data)}})
				return false
			}
			return true
		}
		w.take(a, a.e.Do(w.now, id, RekeyChild))
		w.take(b, b.e.Do(w.now, bID, RekeyChild))
		drive(w, 3*time.Second, 3*time.Millisecond)
		w.run(time.Minute)
		settled(t, a, b)
		if a.lost+b.lost+count[Closed](a)+count[ChildDown](a) != 0 {
			t.Errorf("%v late: %d and %d lost\n%s", late, a.lost, b.lost, a.dump())
		}
	}
}

// RFC 7296, 2.8.2: of two rekeys of the IKE SA at the same moment the one with the lowest nonce loses and is deleted by its creator;
// "the other surviving new IKE SA MUST inherit all the Child SAs", and its creator deletes the old one.
func Test282SimultaneousIKERekey(t *testing.T) {
	won := map[bool]int{}
	for seed := range uint64(100) {
		a, b, w := classic(t)
		a.e.cfg.Rand, b.e.cfg.Rand = newSeeded(seed), newSeeded(seed+1000)
		id := establish(t, w, a, b, peerOf(a, b))
		bID := only(t, b).id
		w.take(a, a.e.Do(w.now, id, RekeyIKE))
		w.take(b, b.e.Do(w.now, bID, RekeyIKE))
		drive(w, time.Millisecond, time.Millisecond) // both have answered
		lowA, lowB := b.e.find(bID).kin.rekey.rivalLow, a.e.find(id).kin.rekey.rivalLow
		drive(w, time.Millisecond, time.Millisecond)
		if n := len(a.e.sas); n != 3 {
			t.Fatalf("%d IKE SAs, want the old and two new ones", n)
		}
		drive(w, time.Second, 3*time.Millisecond)
		w.run(time.Minute)
		settled(t, a, b)
		won[only(t, a).initiator]++
		if only(t, a).initiator != (bytes.Compare(lowA, lowB) > 0) {
			t.Errorf("seed %d: the SA with the lowest nonce has won", seed)
		}
		if count[Rekeyed](a) != 1 || count[Rekeyed](b) != 1 || a.lost+b.lost+count[Closed](a)+count[Closed](b) != 0 || a.e.Stats().Retransmitted != 0 {
			t.Errorf("seed %d: %s\n%s", seed, a.dump(), b.dump())
		}
	}
	if won[true] < 30 || won[false] < 30 {
		t.Errorf("won: %v", won)
	}
}

// "If only one peer detects a simultaneous rekey, redundant SAs are not created": the one that did not gets our request for an SA that it is
// closing, and says TEMPORARY_FAILURE; or we get its DELETE while our request is out, and forget that.
func Test282LateRequest(t *testing.T) {
	for _, late := range []time.Duration{6, 8, 11, 14, 16, 25, 100, 700, 40000} {
		a, b, w := classic(t)
		id := establish(t, w, a, b, peerOf(a, b))
		bID := only(t, b).id
		w.tap = func(from *host, d *Datagram) bool {
			if h, _ := wire.ParseHeader(d.Data); from == a && h.Exchange == wire.CreateChildSA && h.Flags&wire.FlagResponse == 0 {
				w.queue = append(w.queue, flight{at: w.now.Add(late * time.Millisecond), d: Datagram{d.Remote, d.Local, bytes.Clone(d.Data)}})
				return false
			}
			return true
		}
		w.take(a, a.e.Do(w.now, id, RekeyIKE))
		w.take(b, b.e.Do(w.now, bID, RekeyIKE))
		drive(w, 3*time.Second, 3*time.Millisecond)
		w.run(2 * time.Minute)
		settled(t, a, b)
		if a.lost+b.lost+count[Closed](a)+count[Closed](b) != 0 || only(t, b).initiator != (count[Rekeyed](b) == 1 && func() bool { r, _ := find[Rekeyed](b); return r.Initiator }()) {
			t.Errorf("%v late: %d and %d lost\n%s\n%s", late, a.lost, b.lost, a.dump(), b.dump())
		}
	}
}

// afterBoth has both ends rekey the IKE SA at once, with b's answer lost, and calls f when a has decided for its own, or for b's.
func afterBoth(t *testing.T, own bool, f func(a, b *host, w *world, id SAID)) {
	t.Helper()
	n := 0
	for seed := uint64(0); n < 3; seed++ {
		a, b, w := classic(t)
		a.e.cfg.Rand, b.e.cfg.Rand = newSeeded(seed), newSeeded(seed+1000)
		id := establish(t, w, a, b, peerOf(a, b))
		bID := only(t, b).id
		w.take(a, a.e.Do(w.now, id, RekeyIKE))
		w.take(b, b.e.Do(w.now, bID, RekeyIKE))
		drive(w, time.Millisecond, time.Millisecond)
		lowA, lowB := b.e.find(bID).kin.rekey.rivalLow, a.e.find(id).kin.rekey.rivalLow
		if (bytes.Compare(lowA, lowB) > 0) != own {
			continue
		}
		n++
		f(a, b, w, id)
	}
}

// We have decided for our own heir and use it, before the peer knows enough to decide: that we use it tells the peer.
func Test282HeirInUse(t *testing.T) {
	afterBoth(t, true, func(a, b *host, w *world, id SAID) {
		old := a.e.find(id)
		hold := w.now.Add(300 * time.Millisecond)
		w.queue = slices.DeleteFunc(w.queue, func(f flight) bool { return f.spi == 0 && f.d.Local == addrB }) // a's answer
		w.tap = func(from *host, d *Datagram) bool {
			h, _ := wire.ParseHeader(d.Data)
			return from == b || h.InitiatorSPI != old.spiI || w.now.After(hold)
		}
		drive(w, 10*time.Millisecond, time.Millisecond)
		w.take(a, a.e.Do(w.now, id, RekeyChild))
		drive(w, 100*time.Millisecond, time.Millisecond)
		if count[ChildUp](a) != 2 || count[Rekeyed](b) != 1 {
			t.Errorf("b has not taken the heir in use\n%s\n%s", a.dump(), b.dump())
		}
		drive(w, time.Second, 10*time.Millisecond)
		w.run(2 * time.Minute)
		settled(t, a, b)
		if len(a.e.sas) != 1 || a.lost+b.lost != 0 {
			t.Errorf("%d SAs, %d and %d packets lost", len(a.e.sas), a.lost, b.lost)
		}
	})
}

// We hear nothing any more on the old SA: the peer has decided for its own heir, which we had made for it, and has ended the old one. When we
// give our own request up, that heir is what is left.
func Test282HeirIsLeft(t *testing.T) {
	afterBoth(t, false, func(a, b *host, w *world, id SAID) {
		old := a.e.find(id)
		w.queue = slices.DeleteFunc(w.queue, func(f flight) bool { return f.spi == 0 && f.d.Local == addrA }) // b's answer
		w.tap = func(from *host, d *Datagram) bool {
			h, _ := wire.ParseHeader(d.Data)
			return from == a || h.InitiatorSPI != old.spiI
		}
		w.run(time.Minute)
		if count[Rekeyed](a) != 1 || count[Closed](a)+count[Closed](b) != 0 {
			t.Errorf("%s\n%s", a.dump(), b.dump())
		}
		w.run(time.Minute)
		settled(t, a, b)
	})
}

// Any of the messages of two crossing rekeys is lost, once or for good.
func Test282LostHalves(t *testing.T) {
	for mask := range 128 {
		for _, c := range []Command{RekeyChild, RekeyIKE} {
			a, b, w := classic(t)
			a.e.cfg.Rand, b.e.cfg.Rand = newSeeded(uint64(mask)), newSeeded(uint64(mask)+1000)
			id := establish(t, w, a, b, peerOf(a, b))
			if mask >= 64 {
				mixed(t, a, b)
			}
			bID := only(t, b).id
			n := 0
			w.tap = func(*host, *Datagram) bool { n++; return n > 6 || mask%64>>(n-1)&1 == 0 }
			w.take(a, a.e.Do(w.now, id, c))
			w.take(b, b.e.Do(w.now, bID, c))
			drive(w, 10*time.Second, 10*time.Millisecond)
			w.run(2 * time.Minute)
			settled(t, a, b)
			if len(a.e.sas) != 1 || a.lost+b.lost > 0 {
				t.Errorf("%d, lost %b: %d SAs, %d and %d packets lost", c, mask, len(a.e.sas), a.lost, b.lost)
			}
		}
	}
}

// The peer's answer to our IKE rekey never comes. It has the heir, we give up: it is deleted by the peer's liveness check.
func TestHeirOfTheDead(t *testing.T) {
	a, b, w := classic(t)
	id := establish(t, w, a, b, peerOf(a, b))
	w.tap = func(from *host, _ *Datagram) bool { return from == a }
	w.take(a, a.e.Do(w.now, id, RekeyIKE))
	w.run(10 * time.Second)
	if count[Rekeyed](b) != 1 || count[Rekeyed](a) != 0 {
		t.Fatalf("%s\n%s", a.dump(), b.dump())
	}
	w.run(2 * time.Minute)
	if c, ok := find[Closed](a); !ok || !errors.Is(c.Err, ErrTimeout) || len(a.e.sas) != 0 {
		t.Errorf("%s", a.dump())
	}
	w.take(b, b.e.Do(w.now, only(t, b).id, Probe))
	w.run(time.Minute)
	if count[Closed](b) != 1 || len(b.e.sas)+len(b.e.heirs) != 0 {
		t.Errorf("%s", b.dump())
	}
}

// Requests for the old SA that come late, when its heir is there: rekeys are put off, DELETE and probes are answered.
func TestLateOnTheOldSA(t *testing.T) {
	a, b, w := pairOf(t)
	id := establish(t, w, a, b, peerOf(a, b))
	old := only(t, a)
	w.tap = func(from *host, d *Datagram) bool { // a's DELETE of the old one is held back
		h, _ := wire.ParseHeader(d.Data)
		return from == b || h.Exchange != wire.Informational
	}
	w.take(a, a.e.Do(w.now, id, RekeyIKE))
	w.run(100 * time.Millisecond)
	for i, c := range []struct {
		x    wire.ExchangeType
		ps   []wire.Payload
		want wire.NotifyType
	}{
		{wire.CreateChildSA, heirRequest(), wire.TemporaryFailure},
		{wire.CreateChildSA, rekeyRequest(a.e.find(id).child.all[0].current().in), wire.TemporaryFailure},
		{wire.CreateChildSA, rekeyRequest(777)[1:], wire.TemporaryFailure},
		{wire.Informational, nil, 0},
		{wire.Informational, []wire.Payload{bye()}, 0},
	} {
		data, err := old.keys.seal.seal(old.header(c.x, old.out.next+uint32(i), false), c.ps)
		if err != nil {
			t.Fatal(err)
		}
		o := b.e.Receive(w.now, Datagram{addrB, addrA, data})
		if len(o.Send) == 0 {
			t.Fatalf("%d: no answer", i)
		}
		got, err := old.keys.open.open(o.Send[0].Data)
		if f := failure(got); err != nil || (f != nil) != (c.want != 0) || f != nil && f.Type != c.want {
			t.Errorf("%d: %+v, want %v", i, got, c.want)
		}
	}
	w.tap = nil
	w.run(2 * time.Minute)
	settled(t, a, b)
	if count[Closed](a)+count[Closed](b) != 0 {
		t.Errorf("%s\n%s", a.dump(), b.dump())
	}
}

// The peer never deletes the SA that it has replaced: in the end we do.
func TestOldSAIsNotKept(t *testing.T) {
	a, b, w := pairOf(t)
	id := establish(t, w, a, b, peerOf(a, b))
	old := only(t, a)
	w.take(a, a.e.Do(w.now, id, RekeyIKE))
	w.tap = func(_ *host, d *Datagram) bool {
		h, _ := wire.ParseHeader(d.Data)
		return h.InitiatorSPI != old.spiI || h.Exchange != wire.Informational
	}
	w.run(2 * time.Minute)
	w.tap = nil
	w.run(time.Minute)
	settled(t, a, b)
	if len(b.e.sas) != 1 || len(a.e.sas) != 1 {
		t.Errorf("%d and %d SAs", len(a.e.sas), len(b.e.sas))
	}
}

// TRUST.md A-23: a peer that rekeys as fast as it can, and deletes nothing, does not fill our memory.
func TestRekeyStorm(t *testing.T) {
	for _, c := range []Command{RekeyChild, RekeyIKE} {
		a, b, w := classic(t)
		id := establish(t, w, a, b, peerOf(a, b))
		w.tap = func(from *host, d *Datagram) bool {
			h, _ := wire.ParseHeader(d.Data)
			return from == b || h.Exchange != wire.Informational
		}
		for range 20 {
			s := a.e.find(id)
			if s == nil || s.state != established {
				break
			}
			s.out.state, s.timer.rekey = idle, 0
			w.take(a, a.e.Do(w.now, id, c))
			w.run(20 * time.Millisecond)
		}
		if len(b.e.sas) > 2 || len(b.e.spis) > maxServing+1 {
			t.Errorf("command %d: %d SAs, %d SPIs", c, len(b.e.sas), len(b.e.spis))
		}
	}
}

// RFC 7296, 2.25: TEMPORARY_FAILURE is not answered with the same request at once, but later; "after several minutes" the IKE SA is closed.
func TestTemporaryFailure(t *testing.T) {
	for _, c := range []Command{RekeyChild, RekeyIKE} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			a, b, w := pairOf(t)
			id := establish(t, w, a, b, peerOf(a, b))
			asked := []time.Time{}
			heal := false
			w.tap = func(from *host, d *Datagram) bool {
				h, _ := wire.ParseHeader(d.Data)
				if from != a || h.Exchange != wire.CreateChildSA || heal {
					return true
				}
				asked = append(asked, w.now)
				s := only(t, b) // b never sees it, but says so
				data, _ := s.keys.seal.seal(s.header(h.Exchange, h.MessageID, true), []wire.Payload{&wire.Notify{Type: wire.TemporaryFailure}})
				s.in = window{next: h.MessageID + 1, reply: [][]byte{data}}
				w.queue = append(w.queue, flight{at: w.now.Add(w.delay), d: Datagram{addrA, addrB, data}})
				return false
			}
			w.take(a, a.e.Do(w.now, id, c))
			w.run(4 * time.Minute)
			if len(asked) < 4 || len(asked) > 10 || asked[1].Sub(asked[0]) < 10*time.Second || count[Closed](a) != 0 {
				t.Fatalf("asked %d times\n%s", len(asked), a.dump())
			}
			w.run(4 * time.Minute)
			if cl, ok := find[Closed](a); !ok || cl.Err != (NotifyError{wire.TemporaryFailure}) || count[Closed](b) != 1 {
				t.Errorf("%s", a.dump())
			}
		})
	}
}

// An heir that outlives its elder's memory of their rekey is forgotten all the same.
func TestHeirOfAnElderWithoutKin(t *testing.T) {
	a, _, _ := pairOf(t)
	elder := &sa{e: a.e, slot: gone}
	heir := &sa{e: a.e, slot: -1, kin: &kin{elder: elder}}
	heir.grown()
}
