package daemon

import (
	"context"
	"sync"
	"testing"
	"time"

	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
)

// slowPlane is a Fake that takes its time over a Pair's counters.
type slowPlane struct {
	gatedPlane
	asked chan uint32
	tell  chan struct{} // closed: at once
}

func (p slowPlane) Usage(id uint32) (ipsec.Usage, error) {
	select {
	case p.asked <- id:
	default:
	}
	<-p.tell
	return p.gatedPlane.Usage(id)
}

// A data plane that is slow to tell the counters keeps nobody waiting: lookups are answered meanwhile. What it tells in the end counts.
func TestSlowCountersKeepNobodyWaiting(t *testing.T) {
	t.Parallel()
	var slow slowPlane
	alice := newEndOn(t, "192.0.2.1", "", 1, func(p gatedPlane) ipsec.Dataplane {
		slow = slowPlane{p, make(chan uint32, 1), make(chan struct{})}
		return slow
	})
	bob := newEnd(t, "192.0.2.2", "bob.example")
	tell := sync.OnceFunc(func() { close(slow.tell) })
	t.Cleanup(tell)
	ipsectest.Wire(alice.Fake, bob.Fake)
	close(alice.gate)
	close(bob.gate)
	if o := outcomeOf(t, alice.lookup(bob)); !o.ok {
		t.Fatalf("first lookup: %+v", o)
	}
	pair := uint32(0)
	for id := range alice.Pairs() {
		pair = id
	}
	select {
	case id := <-slow.asked:
		if id != pair {
			t.Errorf("asked for the counters of %d, want %d", id, pair)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the counters are never read")
	}
	from := time.Now()
	if o := outcomeOf(t, alice.lookup(bob)); !o.ok || time.Since(from) > tick {
		t.Errorf("a lookup while the counters are read: %+v after %v", o, time.Since(from))
	}
	alice.SetUsage(pair, ipsec.Usage{InPackets: 7})
	tell()
	await(t, "the counters arrive", func() (there bool) {
		alice.do(t, func(time.Time) {
			for _, a := range alice.l.pairs[pair].sas {
				there = there || a.usage.InPackets == 7
			}
		})
		return there
	})
}

// do runs f in the loop of an end and waits for it.
func (e *end) do(t *testing.T, f func(now time.Time)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := e.l.ask(ctx, f); err != nil {
		t.Fatalf("the loop takes nothing: %v", err)
	}
}
