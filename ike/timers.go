package ike

import (
	"container/heap"
	"time"
)

// timers is a heap of SAs by the time at which they want to be looked at.
type timers []*sa

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].wake.Before(t[j].wake) }
func (t timers) Swap(i, j int) {
	t[i], t[j] = t[j], t[i]
	t[i].slot, t[j].slot = i, j
}

// Push and Pop are heap.Interface's.
func (t *timers) Push(x any) {
	s := x.(*sa)
	s.slot = len(*t)
	*t = append(*t, s)
}

// Pop removes the last SA.
func (t *timers) Pop() any {
	old := *t
	s := old[len(old)-1]
	old[len(old)-1] = nil
	*t = old[:len(old)-1]
	s.slot = -1
	return s
}

// set moves s to its place for wake; a zero wake takes it out.
func (t *timers) set(s *sa, wake time.Time) {
	s.wake = wake
	switch {
	case wake.IsZero() && s.slot >= 0:
		heap.Remove(t, s.slot)
	case wake.IsZero():
	case s.slot >= 0:
		heap.Fix(t, s.slot)
	default:
		heap.Push(t, s)
	}
}

// earliest returns the first of the times that is not zero.
func earliest(ts ...time.Time) time.Time {
	var first time.Time
	for _, t := range ts {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}

// due reports whether a timer is set and has run out.
func due(t, now time.Time) bool { return !t.IsZero() && !now.Before(t) }
