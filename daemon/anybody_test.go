package daemon

import (
	"errors"
	"testing"
	"time"

	"tacit/ike"
	"tacit/pad"
)

// anyone is a lookup whose rule takes whoever is there.
func (p *play) anyone() waiter {
	w := waiter{claim: pad.Claim{Name: "x.example.", Addr: p.p.remote}, reply: make(chan outcome, 1)}
	p.event(evLookup{w})
	return w
}

func TestAnybodyWillDo(t *testing.T) {
	p := newPlay(t)
	w := p.anyone()
	if p.wantState(keying); count[doInitiate](p) != 1 {
		t.Fatalf("%v", p.done)
	}
	p.established(1, true, 0)
	if ok, _, why := p.outcome(w); !ok {
		t.Errorf("not released: %s", why)
	}
	p.wantState(protected)
	if p.p.pad.Live() || p.p.pad.Held(p.now) || count[doHold](p) != 0 {
		t.Error("nobody proved anything, and the address is held")
	}
	if ok, _, _ := p.outcome(p.anyone()); !ok || count[doInitiate](p) != 1 {
		t.Error("the next lookup does not use it")
	}
	p.ended(1, nil)
	p.pass(idleHold + tick)
	p.wantState(idle)
}

// An address that speaks no IKE is left in peace for longer and longer.
func TestNobodyAnswers(t *testing.T) {
	p := newPlay(t)
	for round, pause := range []time.Duration{firstRefusal, 2 * firstRefusal, 4 * firstRefusal} {
		w := p.anyone()
		p.event(ike.Closed{SA: ike.SAID(p.next), Err: ike.ErrTimeout})
		if _, withheld, why := p.outcome(w); !withheld || why == "" {
			t.Fatalf("round %d: no outcome", round)
		}
		p.wantState(idle)
		begun := count[doInitiate](p)
		p.pass(pause - time.Second)
		if _, withheld, _ := p.outcome(p.anyone()); !withheld || count[doInitiate](p) != begun {
			t.Errorf("round %d: asked again within %v", round, pause)
		}
		p.pass(2 * time.Second)
	}
	p.pass(time.Hour)
	if !p.p.quiet(p.now) {
		t.Error("it is not forgotten")
	}
}

// Somebody goes before anybody: a name's turn comes when the attempt has ended, and what waits for anybody is content with somebody.
//
//tacit:attack A-19 no anonymous SA where a key was proven
func TestSomebodyBeforeAnybody(t *testing.T) {
	for _, fails := range []bool{false, true} {
		p := newPlay(t)
		any := p.anyone()
		named := p.lookup("bob.example.", 1)
		if fails {
			p.event(ike.Closed{SA: 1, Err: errors.New("no")})
		} else {
			p.established(1, true, 0)
		}
		if n := count[doInitiate](p); n != 2 {
			t.Fatalf("fails %v: %d negotiations, want the name's too", fails, n)
		}
		p.established(2, true, 1)
		if ok, _, _ := p.outcome(named); !ok {
			t.Error("the name is not answered")
		}
		if ok, no, _ := p.outcome(any); ok == fails || no != fails {
			t.Errorf("fails %v: anybody's outcome %v, %v", fails, ok, no)
		}
		if !fails && !p.p.sa(1).deleting {
			t.Error("the anonymous SA stays beside the authenticated one")
		}
	}
	// The other way round.
	p := newPlay(t)
	p.lookup("bob.example.", 1)
	any := p.anyone()
	p.established(1, true, 1)
	if ok, _, _ := p.outcome(any); !ok || count[doInitiate](p) != 1 {
		t.Error("an authenticated SA is not good enough for anybody")
	}
	// No name took the address's key away from it: whoever stands there without it is not it.
	p.ended(1, ike.ErrTimeout)
	begun := count[doInitiate](p)
	if _, withheld, _ := p.outcome(p.anyone()); !withheld || count[doInitiate](p) != begun {
		t.Error("an address that proved a key is asked for anybody")
	}
}
