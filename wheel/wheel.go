// Package wheel is a timing wheel (G. Varghese, T. Lauck, "Hashed and Hierarchical Timing Wheels", 1987): it says when each of many things wants to be
// looked at. What it does for one of them takes the same time however many there are.
package wheel

import "time"

// turns is how many ticks a Wheel sees ahead. Who wants to be looked at later than that is looked at then, too.
const turns = 256

// Place is where something stands in its Wheel; zero: nowhere.
type Place int64

// Member is what a Wheel holds. Place returns where it keeps its place, which is the Wheel's alone to change, and of one Wheel.
type Member interface{ Place() *Place }

// Wheel holds things by the tick in which each wants to be looked at. Its zero value with a Tick is empty and ready. It is not safe for use by several
// goroutines at once.
type Wheel[T Member] struct {
	Tick time.Duration

	begun time.Time // the count's beginning: the first now that it is told
	next  Place     // the first tick that Due has not come to
	stops [turns][]stop[T]
}

// stop is a thing in its tick. One that was set to an earlier tick afterwards is in both, and its own Place says which counts.
type stop[T Member] struct {
	member T
	at     Place
}

// Set has x looked at from t on, which may be a time of the wall clock alone: what counts is how long it is from now. If it is to be looked at earlier than that already it is so once more, and then wants to be set again.
func (w *Wheel[T]) Set(x T, now, t time.Time) {
	w.tick(now) // which begins the count
	at := min(max(w.tick(now.Add(t.Sub(now))), w.next), w.next+turns-1)
	if p := x.Place(); *p == 0 || *p > at {
		*p = at
		w.stops[at%turns] = append(w.stops[at%turns], stop[T]{x, at})
	}
}

// Due takes those out whose time has come, in no order: some that wanted to be looked at later, and who is to be looked at again has to be set.
func (w *Wheel[T]) Due(now time.Time) (due []T) {
	last := w.tick(now)
	for at := max(w.next, last-turns+1); at <= last; at++ {
		stops := w.stops[at%turns]
		w.stops[at%turns] = nil
		for _, s := range stops {
			if p := s.member.Place(); *p == s.at {
				*p = 0
				due = append(due, s.member)
			}
		}
	}
	w.next = max(w.next, last+1)
	return due
}

// tick is the tick of a time, from 1 on.
func (w *Wheel[T]) tick(t time.Time) Place {
	if w.begun.IsZero() {
		w.begun, w.next = t, 1
	}
	return Place(max(0, t.Sub(w.begun))/w.Tick) + 1
}
