package daemon

import (
	"testing"
	"time"

	"tacit/pad"
)

// What an address proved at one of our addresses holds it at the others; a packet from there keys it, and nobody comes in.
func TestProofCountsForAllOurAddresses(t *testing.T) {
	p := newPlay(t)
	p.established(7, false, 0) // an anonymous client, before
	p.event(evElsewhere{p.now, pad.KeyOf(testKey(1)), p.claim("bob.example.", 1)})
	if count[doHold](p) != 1 || count[doRemove](p) != 1 {
		t.Fatalf("did %#v, want a hold and the anonymous Pair removed", p.done)
	}
	p.event(evAcquire{})
	if n := count[doInitiate](p); n != 1 {
		t.Fatalf("%d negotiations after a held packet, want 1", n)
	}
	p.established(1, true, 1)
	p.wantState(protected)
	p.event(evElsewhere{p.now.Add(-time.Minute), pad.KeyOf(testKey(2)), p.claim("evil.example.", 2)})
	if k, _, _ := p.p.pad.Key(); k.ID != pad.KeyOf(testKey(1)).ID || p.p.last.Name != "bob.example." {
		t.Error("an older proof elsewhere took the place of the live one")
	}
	p.ended(1, nil)
	p.pass(testLinger + testLinger/10 + 2*tick)
	if count[doUnhold](p) == 0 {
		t.Error("the hold does not end")
	}
}
