package ike

import (
	"container/heap"
	"time"

	"tacit/ipsec"
)

// moment is a point in time as an Endpoint counts it: since a while before its first call, by the caller's clock. An SA has some twenty of them.
type moment = ipsec.Moment

// past is how long before an Endpoint's first call its moments begin: longer than anything that is reckoned back.
const past = 365 * 24 * time.Hour

// moment is how the Endpoint counts a time of the caller's.
func (e *Endpoint) moment(t time.Time) moment { return e.now.Add(t.Sub(e.called)) }

// time is its opposite.
func (e *Endpoint) time(m moment) time.Time { return e.called.Add(m.Sub(e.now)) }

// timer is when an SA wants to be looked at.
type timer struct {
	wake moment
	sa   *sa
}

// timers is a heap of SAs.
type timers []timer

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].wake < t[j].wake }
func (t timers) Swap(i, j int) {
	t[i], t[j] = t[j], t[i]
	t[i].sa.slot, t[j].sa.slot = i, j
}

// Push and Pop are heap.Interface's.
func (t *timers) Push(x any) {
	n := x.(timer)
	n.sa.slot = len(*t)
	*t = append(*t, n)
}

// Pop removes the last SA.
func (t *timers) Pop() any {
	old := *t
	n := old[len(old)-1]
	old[len(old)-1] = timer{}
	*t = old[:len(old)-1]
	n.sa.slot = -1
	return n
}

// set moves s to its place for wake; a zero wake takes it out. One that wants to be looked at later than before stays where it is until then, and
// is moved when its turn comes: most datagrams put off a timer, and the way through a large heap is long.
func (t *timers) set(s *sa, now, wake moment) {
	switch {
	case wake.IsZero() && s.slot >= 0:
		heap.Remove(t, s.slot)
	case wake.IsZero():
	case s.slot < 0:
		heap.Push(t, timer{wake, s})
	case wake < (*t)[s.slot].wake || due((*t)[s.slot].wake, now):
		(*t)[s.slot].wake = wake
		heap.Fix(t, s.slot)
	}
}

// earliest returns the first of the times that is not zero.
func earliest(ts ...moment) moment {
	var first moment
	for _, t := range ts {
		if t != 0 && (first == 0 || t < first) {
			first = t
		}
	}
	return first
}

// due reports whether a timer is set and has run out.
func due(t, now moment) bool { return t != 0 && now >= t }
