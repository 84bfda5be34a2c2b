package dnssec

import (
	"sync"
	"time"
)

// delegations remembers what is known of zone cuts: zones with their keys, zones without, names that are no zone, and for a few seconds what is broken.
// The mutex: lookups run in their callers' goroutines and share it; no other goroutine owns it, and it is held for map operations only.
type delegations struct {
	mu   sync.Mutex
	zone map[string]known
}

// known is an entry: a zone, or nil where there is no zone cut.
type known struct {
	zone  *zone
	until time.Time
}

// get is the entry for name, if it has not ended.
func (d *delegations) get(name string, now time.Time) (known, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	k, ok := d.zone[name]
	if ok && !now.Before(k.until) {
		delete(d.zone, name)
		return known{}, false
	}
	return k, ok
}

// put remembers an entry. A full cache drops what has ended, then what the map yields first.
func (d *delegations) put(name string, k known, now time.Time) {
	if limit := now.Add(maxTTL); limit.Before(k.until) {
		k.until = limit
	}
	if !now.Before(k.until) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.zone) >= maxZones {
		d.makeRoom(now)
	}
	d.zone[name] = k
}

// makeRoom frees an eighth of the cache.
func (d *delegations) makeRoom(now time.Time) {
	for name, k := range d.zone {
		if !now.Before(k.until) {
			delete(d.zone, name)
		}
	}
	for name := range d.zone {
		if len(d.zone) < maxZones*7/8 {
			return
		}
		delete(d.zone, name)
	}
}

// flush forgets everything.
func (d *delegations) flush() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.zone)
}
