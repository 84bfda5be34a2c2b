package daemon

import (
	"net/netip"
	"sync"
	"testing"

	"tacit/ike"
)

// Loops count beside each other, and nothing is lost or left.
func TestCensus(t *testing.T) {
	c := newCensus()
	network := func(i int) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(i), 0}), 24) }
	beside := func(by ...ike.Tally) {
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for i := range 1024 {
					for _, t := range by {
						c.Count(network(i), t)
						c.Of(network(i))
					}
				}
			})
		}
		all.Wait()
	}
	beside(ike.Tally{SAs: 1, Half: 1}, ike.Tally{Half: -1, Open: 1})
	for i := range 256 {
		if all, there := c.Of(network(i)); there != (ike.Tally{SAs: 32, Open: 32}) || all != (ike.Tally{SAs: 8192, Open: 8192}) {
			t.Fatalf("network %d has %+v of %+v", i, there, all)
		}
	}
	beside(ike.Tally{SAs: -1, Open: -1})
	if all, _ := c.Of(network(0)); all != (ike.Tally{}) {
		t.Errorf("left: %+v", all)
	}
	for i := range c.part {
		if n := len(c.part[i].of); n != 0 {
			t.Errorf("%d networks are left", n)
		}
	}
}
