package daemon

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// settleEvery is how often the heap is looked at.
const settleEvery = 5 * time.Second

// settleLeast is what must have been allocated, in octets, before it is worth while to collect.
const settleLeast = 4 << 20

// settleAgain is after how many looks, in times of calm, what a burst has left is collected once more: peers that are new keep for a while what they
// may be asked for again.
const settleAgain = 3

// settler notices the calm after a burst, as when thousands of peers come at once. A burst leaves a heap of twice what is in use; the
// collector comes back to it only after as much again, and what it frees it does not soon give back to the system.
type settler struct {
	seen      uint64 // allocated so far, in octets, when it looked last
	collected uint64 // and when it asked for a collection last
	burst     bool   // much was allocated since then
	again     int    // looks until it asks for one more; zero: it does not
}

// due takes what has been allocated so far and what is in use, in octets, and reports whether now is a good time to collect: enough has been
// allocated since the last time, or the last time was settleAgain looks ago, behind a burst; and next to nothing since it looked last.
func (s *settler) due(allocated, live uint64) bool {
	fresh := allocated - s.seen
	s.seen = allocated
	if fresh > settleLeast/4+live/4 {
		s.burst = true
		return false
	}
	switch {
	case allocated-s.collected >= settleLeast+live/8:
		if s.burst {
			s.burst, s.again = false, settleAgain
		}
	case s.again == 0:
		return false
	default:
		if s.again--; s.again > 0 {
			return false
		}
	}
	s.collected = allocated
	return true
}

// settle gives memory back in times of calm, until ctx ends.
func settle(ctx context.Context) {
	var s settler
	heap := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	ticker := time.NewTicker(settleEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			metrics.Read(heap)
			if s.due(heap[0].Value.Uint64(), heap[1].Value.Uint64()) {
				debug.FreeOSMemory()
			}
		}
	}
}
