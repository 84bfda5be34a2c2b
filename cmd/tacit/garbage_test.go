package main

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestPercentFor(t *testing.T) {
	for live, want := range map[uint64]int{0: 1600, 1 << 20: 1600, 4 << 20: 400, 16 << 20: 100, 32 << 20: 50, 1 << 30: 40} {
		if got := percentFor(live); got != want {
			t.Errorf("%d octets: got %d, want %d", live, got, want)
		}
	}
}

// The setting follows what is in use, collection after collection.
func TestBoundGarbage(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	setting := func() int {
		runtime.GC()
		time.Sleep(20 * time.Millisecond) // the cleanup is another goroutine's
		p := debug.SetGCPercent(-1)
		debug.SetGCPercent(p)
		return p
	}
	boundGarbage()
	small := setting()
	used := make([]byte, 128<<20)
	setting()
	large := setting()
	runtime.KeepAlive(used)
	if small <= garbagePercent || large != garbagePercent {
		t.Errorf("got %d and, with 128 MB in use, %d", small, large)
	}
}
