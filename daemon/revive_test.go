package daemon

import (
	"testing"
	"time"

	"tacit/ike"
	"tacit/ipsec"
)

// silentPeer has an SA that sends and hears nothing, so that it is probed.
func silentPeer(t *testing.T) *play {
	p := newPlay(t)
	p.lookup("bob.example.", 1)
	p.established(1, true, 1)
	p.pass(10 * tick)
	p.event(evUsage{101, ipsec.Usage{Armed: true, LastIn: p.now.Add(-2 * silence), LastOut: p.now}})
	p.event(evTick{})
	if n := count[doCommand](p); n != 1 {
		t.Fatalf("%d commands, want a probe", n)
	}
	return p
}

// A peer that was started again knows nothing of its SA: a new one is set up beside it, without waiting for the end of the old.
func TestUnansweredIsSetUpAnew(t *testing.T) {
	p := silentPeer(t)
	p.pass(incumbentWait)
	if n := count[doInitiate](p); n != 2 {
		t.Fatalf("%d negotiations, want a second one a second after the probe", n)
	}
	p.wantState(protected)
	p.established(2, true, 1)
	p.ended(1, nil) // the old one's probe has run out
	p.wantState(protected)
	p.pass(5 * tick)
	if n := count[doInitiate](p); n != 2 {
		t.Errorf("%d negotiations, want 2", n)
	}
	if count[doHold](p) != 0 {
		t.Error("held although an SA is up")
	}
}

// One that answers is left alone.
func TestAnsweredIsLeftAlone(t *testing.T) {
	p := silentPeer(t)
	p.event(ike.Alive{SA: 1})
	p.pass(2 * time.Second)
	if n := count[doInitiate](p); n != 1 {
		t.Errorf("%d negotiations, want 1", n)
	}
}

// If nobody answers at all the address is held until linger after its last proof, as without the attempt.
func TestUnansweredAndGone(t *testing.T) {
	p := silentPeer(t)
	p.pass(incumbentWait)
	p.event(ike.ChildDown{SA: 1, Pair: 101})
	p.event(ike.Closed{SA: 1})
	if count[doHold](p) != 1 {
		t.Error("not held")
	}
	p.ended(2, nil)
	p.wantState(withheld)
	p.pass(testLinger + 2*tick)
	p.wantState(idle)
}
