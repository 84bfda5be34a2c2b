package resolver

import (
	"sync"
	"time"
)

// The breaker's measures.
const (
	breakerTrips    = 3    // key lookups in a row that ran into the hold
	breakerPatience = 10   // of the hold: what is waited for a key of such a zone
	breakerZones    = 1024 // remembered; over it the whole memory starts afresh
)

// breaker stops waiting long for the keys of a zone whose addresses come fast and whose keys never do: the outcome is the
// same, withheld, but no query is held for it. One answer closes it, and after each rest one query waits the whole hold again.
type breaker struct {
	// Every query of a signed zone looks here for less time than a channel takes; so a mutex.
	mu    sync.Mutex
	rest  time.Duration
	zones map[string]tripping
}

type tripping struct {
	fails int
	until time.Time
}

// open says whether the zone's keys are not worth waiting for. The first to ask after a rest is told to wait.
func (b *breaker) open(zone string, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	t, ok := b.zones[zone]
	if !ok || t.fails < breakerTrips {
		return false
	}
	if now.Before(t.until) {
		return true
	}
	t.until = now.Add(b.rest)
	b.zones[zone] = t
	return false
}

// done records how a wait ended.
func (b *breaker) done(zone string, answered bool, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if answered {
		delete(b.zones, zone)
		return
	}
	if b.zones == nil || len(b.zones) >= breakerZones {
		b.zones = map[string]tripping{}
	}
	t := b.zones[zone]
	t.fails++
	t.until = now.Add(b.rest)
	b.zones[zone] = t
}
