package tun

import (
	"slices"
	"sync"
	"testing"
)

// A Pair is told of once for all that was counted since it was told of before, and nobody is who was not used.
func TestUsed(t *testing.T) {
	p := &Plane{}
	a, b, c := &pair{id: 1}, &pair{id: 2}, &pair{id: 3}
	for range 3 {
		p.wasUsed(a)
		p.wasUsed(c)
	}
	if got := p.Used(); !slices.Equal(got, []uint32{3, 1}) {
		t.Errorf("got %v", got)
	}
	if got := p.Used(); len(got) != 0 {
		t.Errorf("and again %v", got)
	}
	p.wasUsed(c)
	p.wasUsed(b)
	if got := p.Used(); !slices.Equal(got, []uint32{2, 3}) {
		t.Errorf("then %v", got)
	}
}

// Whoever is told of a Pair sees what was counted, or is told of it again: nothing that several packet workers count is missed.
func TestUsedBesideWorkers(t *testing.T) {
	p := &Plane{}
	pairs := make([]*pair, 20)
	for i := range pairs {
		pairs[i] = &pair{id: uint32(i)}
	}
	const each = 20_000
	var workers sync.WaitGroup
	for w := range 4 {
		workers.Go(func() {
			for i := range each {
				pr := pairs[(i*7+w)%len(pairs)]
				pr.inPackets.Add(1)
				p.wasUsed(pr)
			}
		})
	}
	ended := make(chan struct{})
	go func() { workers.Wait(); close(ended) }()
	seen := make([]uint64, len(pairs))
	look := func() {
		for _, id := range p.Used() {
			seen[id] = pairs[id].inPackets.Load()
		}
	}
	for running := true; running; look() {
		select {
		case <-ended:
			running = false
		default:
		}
	}
	total := uint64(0)
	for i, pr := range pairs {
		total += seen[i]
		if n := pr.inPackets.Load(); seen[i] != n {
			t.Errorf("pair %d: %d of %d packets were seen", i, seen[i], n)
		}
	}
	if total != 4*each {
		t.Errorf("%d packets, want %d", total, 4*each)
	}
}
