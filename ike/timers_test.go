package ike

import (
	"math/rand/v2"
	"testing"
	"time"
)

// Whatever is put off, taken out and put in again: each SA is looked at when its time has come, not before, and the first of all is known.
func TestTimersKeepTime(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var heap timers
	want := map[*sa]moment{}
	now := moment(past)
	for range 100 {
		want[&sa{slot: -1}] = 0
	}
	looked := 0
	for range 20_000 {
		now = now.Add(time.Duration(rng.IntN(3)) * time.Millisecond)
		for len(heap) > 0 && due(heap[0].wake, now) {
			s := heap[0].sa
			if due(want[s], now) {
				looked++
				want[s] = now.Add(time.Duration(1+rng.IntN(1000)) * time.Millisecond)
			}
			heap.set(s, now, want[s])
		}
		for s, wake := range want {
			if due(wake, now) {
				t.Fatalf("an SA is overdue by %v", now.Sub(wake))
			}
			if rng.IntN(100) == 0 {
				if want[s] = 0; rng.IntN(10) > 0 {
					want[s] = now.Add(time.Duration(1+rng.IntN(2000)) * time.Millisecond)
				}
				heap.set(s, now, want[s])
			}
			if (s.slot >= 0) != (want[s] != 0) || s.slot >= 0 && heap[s.slot].sa != s {
				t.Fatalf("an SA at %d, which wants %v", s.slot, want[s])
			}
		}
	}
	if looked < 100 {
		t.Errorf("%d looks", looked)
	}
}
