package daemon

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"tacit/ike"
	"tacit/ipsec"
	"tacit/pad"
)

// A failed attempt for one name does not take the other's waiters with it.
func TestWaitersOfAnotherKeyGetTheirOwnNegotiation(t *testing.T) {
	p := newPlay(t)
	evil, good := p.lookup("evil.example.", 9), p.lookup("bob.example.", 1)
	p.ended(1, errors.New("authentication failed"))
	p.wantWithheld(evil)
	if n := count[doInitiate](p); n != 2 {
		t.Fatalf("%d negotiations, want 2", n)
	}
	p.established(2, true, 1)
	p.wantReleased(good)
}

// A-20, I3: a page of a thousand names that point at an address does not keep the name of the host there from being proven.
//
//tacit:attack A-20 a thousand names do not keep the true one from being proven
func TestManyNamesDoNotStarveOne(t *testing.T) {
	p := newPlay(t)
	for i := range 1000 {
		p.lookup(fmt.Sprintf("n%d.evil.example.", i), 9)
	}
	good := p.lookup("bob.example.", 1)
	for sa := ike.SAID(1); p.p.attempt != nil && p.p.attempt.claim.Name != "bob.example." && sa < 10; sa++ {
		p.ended(sa, errors.New("authentication failed"))
	}
	if p.p.attempt == nil || p.p.attempt.claim.Name != "bob.example." {
		t.Fatal("bob's turn has not come after ten negotiations")
	}
	p.established(p.p.attempt.id, true, 1)
	p.wantReleased(good)
}

// a claim that ends while it waits is withheld, and does not keep the address busy.
func TestClaimThatEndsWhileItWaits(t *testing.T) {
	p := newPlay(t)
	evil := waiter{claim: p.claim("evil.example.", 9), reply: make(chan outcome, 1)}
	evil.claim.Until = p.now.Add(time.Second)
	p.event(evLookup{evil})
	p.now = p.now.Add(1100 * time.Millisecond)
	p.ended(1, errors.New("no answer"))
	if n := count[doInitiate](p); n != 1 {
		t.Errorf("%d negotiations for a claim that has ended, want 1", n)
	}
	p.wantWithheld(evil)
}

// R3: the incumbent that answers keeps the address.
func TestConflictIncumbentAnswers(t *testing.T) {
	p := newProven(t)
	evil := p.lookup("evil.example.", 9)
	if n := count[doCommand](p); n != 1 {
		t.Fatalf("%d commands, want one probe", n)
	}
	p.event(ike.Alive{SA: 1})
	p.wantWithheld(evil)
	p.wantState(protected)
	p.wantReleased(p.lookup("bob.example.", 1))
}

// whoever looks up many names that point to the address of an incumbent does not have it asked more often than it answers.
func TestStormAsksIncumbentNowAndThen(t *testing.T) {
	p := newProven(t)
	for i := range 1000 {
		evil := p.lookup(fmt.Sprintf("n%d.evil.example.", i), 9)
		p.event(ike.Alive{SA: 1})
		p.wantWithheld(evil)
		p.now = p.now.Add(10 * time.Millisecond)
	}
	if n := count[doCommand](p); n < 40 || n > 60 {
		t.Errorf("%d probes in ten seconds, want about five a second", n)
	}
	p.wantState(protected)
}

// R3: the incumbent that does not answer within a second loses; A-56.
//
//tacit:attack A-56 the incumbent that does not answer for a second loses
func TestConflictIncumbentIsGone(t *testing.T) {
	p := newProven(t)
	next := p.lookup("next.example.", 2)
	if n := count[doTick](p); n != 1 {
		t.Fatalf("%d ticks are asked for, want one when the second is over: the lookup has no time to lose", n)
	}
	p.pass(2 * tick)
	p.ended(1, nil)
	if n := count[doInitiate](p); n != 2 {
		t.Fatalf("%d negotiations, want 2", n)
	}
	p.established(2, true, 2)
	p.wantReleased(next)
}

// R3: an incumbent whose valid ESP came after it was asked has answered; and a second is a second of this question.
func TestIncumbentHasItsSecond(t *testing.T) {
	t.Run("asked before", func(t *testing.T) {
		p := newProven(t)
		p.event(evClear{}) // probes
		p.now = p.now.Add(900 * time.Millisecond)
		p.lookup("next.example.", 2)
		p.now = p.now.Add(200 * time.Millisecond)
		p.event(evTick{})
		if p.p.sa(1).deleting {
			t.Error("the incumbent lost 200 ms after it was contested")
		}
	})
	t.Run("ESP", func(t *testing.T) {
		p := newProven(t)
		w := p.lookup("next.example.", 2)
		p.now = p.now.Add(tick)
		p.event(&evUsage{101, ipsec.Usage{Armed: true, LastIn: p.now.Add(-100 * time.Millisecond)}})
		p.event(evTick{})
		if p.p.sa(1).deleting {
			t.Error("the incumbent lost although its ESP came after the question")
		}
		p.wantWithheld(w)
	})
}

// I2: what goes on at an address goes on with the key that it proved. A name that lists that key beside its own is satisfied by it (R2), and gets
// no more by that; what the administrator says is more.
func TestKeysOfWhatGoesOn(t *testing.T) {
	for source, want := range map[pad.Source][]byte{pad.Forward: {1}, pad.Administrator: {1, 9}} {
		p := newPlay(t)
		w := waiter{claim: p.claim("evil.example.", 1, 9), reply: make(chan outcome, 1)}
		w.claim.Source = source
		p.event(evLookup{w})
		p.established(1, true, 1)
		p.lookup("bob.example.", 1)
		p.event(ike.Alive{SA: 1})
		p.done = nil
		p.ended(1, errors.New("no answer"))
		p.event(evAcquire{})
		var got []pad.Key
		for _, a := range p.done {
			if a, ok := a.(doInitiate); ok {
				got = a.claim.Keys
			}
		}
		if same := slices.EqualFunc(got, want, func(k pad.Key, b byte) bool { return k.ID == pad.KeyOf(testKey(b)).ID }); !same {
			t.Errorf("on the word of %v: keyed again by %v, want %v", source, got, want)
		}
	}
}
