package plane

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"tacit/ipsec"
)

// eventQueue is how many events may wait for the reader.
const eventQueue = 4096

// tick is how often maintenance looks: at packets that wait, at policies that ended, at clear packets that were dropped.
const tick = 250 * time.Millisecond

// errorPause keeps a loop whose socket or device has failed for good from turning fast.
const errorPause = 5 * time.Millisecond

// Runner has the events and the goroutines of a data plane.
type Runner struct {
	Now     func() time.Time
	Dropped atomic.Uint64 // events that found the channel full

	events chan ipsec.Event
	mu     sync.RWMutex // events is closed while the packet path may still raise one
	over   bool
	work   sync.WaitGroup
	stop   context.CancelFunc
	done   <-chan struct{}
}

// NewRunner makes one; Stop and End are to be called.
func NewRunner(now func() time.Time) *Runner {
	ctx, stop := context.WithCancel(context.Background())
	return &Runner{Now: now, events: make(chan ipsec.Event, eventQueue), stop: stop, done: ctx.Done()}
}

// Events is closed by End.
func (r *Runner) Events() <-chan ipsec.Event { return r.events }

// Done is closed by Stop.
func (r *Runner) Done() <-chan struct{} { return r.done }

// Raise hands an event to the reader, with the time, or counts it.
func (r *Runner) Raise(e ipsec.Event) {
	e.Time = r.Now()
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.over {
		return
	}
	select {
	case r.events <- e:
	default:
		r.Dropped.Add(1)
	}
}

// Go runs a loop, which ends soon after Stop. Calls come before Stop, or from such a loop.
func (r *Runner) Go(loop func()) { r.work.Go(loop) }

// Maintain calls turn in short intervals until Stop.
func (r *Runner) Maintain(turn func(now time.Time)) {
	timer := time.NewTicker(tick)
	defer timer.Stop()
	for {
		select {
		case <-r.done:
			return
		case <-timer.C:
			turn(r.Now())
		}
	}
}

// Stopping is asked after an error: it reports whether Stop was called, and otherwise waits a little.
func (r *Runner) Stopping() bool {
	select {
	case <-r.done:
		return true
	case <-time.After(errorPause):
		return false
	}
}

// Stop tells the loops to end. What they wait for is then closed.
func (r *Runner) Stop() { r.stop() }

// End waits for the loops and closes Events.
func (r *Runner) End() {
	r.work.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	close(r.events)
}
