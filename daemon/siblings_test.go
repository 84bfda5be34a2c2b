package daemon

import (
	"net/netip"
	"testing"
	"time"

	"tacit/pad"
)

// An address that this host gets is held towards who has proved a key, when the kernel tells of it: also one that it gets after it has left the one at which that was, and for
// no longer than that one was.
func TestNewAddressIsHeld(t *testing.T) {
	p := newProven(t)
	l := idleLoop(t, p)
	own := []netip.Addr{p.p.local}
	gets := func(s string) *peer {
		own = append(own, netip.MustParseAddr(s))
		l.d.host.env.Store(&pad.Environment{Own: own[len(own)-1:]})
		l.readdress(p.now)
		return l.peers[key{own[len(own)-1], p.p.remote}]
	}
	held := func(q *peer, until time.Time) {
		t.Helper()
		switch {
		case q == nil:
			t.Errorf("nothing is known of the peer at %v", own[len(own)-1])
		case !q.held.Equal(until):
			t.Errorf("held at %v until %v, want %v", q.local, q.held, until)
		}
	}
	until := p.now.Add(testLinger + testLinger/10)
	held(gets("198.51.100.2"), until)
	p.now = p.now.Add(time.Minute)
	p.ended(1, nil)
	held(gets("198.51.100.3"), until)
	if q := gets("2001:db8::3"); q != nil {
		t.Errorf("an address of the other family: %v", q.state)
	}
	p.now = until
	for _, q := range l.peers {
		q.step(p.now, evTick{})
	}
	if q := gets("198.51.100.4"); q != nil {
		t.Errorf("linger is over: %v", q.state)
	}
}

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
