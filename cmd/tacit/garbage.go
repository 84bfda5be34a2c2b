package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// How much garbage there may be. Most of what is in use is caches, which stay: in a large heap less than half of the default costs little time, and a hundred
// thousand cached names take less than 100 MB. A small heap would be collected for every hundredth of thousands of peers that come at
// once, each time as a whole; in calm the daemon gives its garbage back anyway.
const (
	garbagePercent = 40       // of what is in use
	garbageLeast   = 16 << 20 // octets, in any case
)

// percentFor is the collector's setting for so many octets in use.
func percentFor(live uint64) int {
	return max(garbagePercent, int(100*garbageLeast/max(live, 1<<20)))
}

// boundGarbage sets the collector after each collection.
func boundGarbage() {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	debug.SetGCPercent(percentFor(live[0].Value.Uint64()))
	next := new([64]byte) // is found to be in use by nobody when the next one is over
	runtime.AddCleanup(next, func(struct{}) { boundGarbage() }, struct{}{})
}
