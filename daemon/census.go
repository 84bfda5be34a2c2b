package daemon

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"

	"tacit/ike"
)

// census counts the IKE SAs of all loops, by network: what one network may have, it may have of all of them together (TRUST.md ).
type census struct {
	sas, half, open atomic.Int64
	seed            maphash.Seed
	part            [64]struct { // by network, so that loops seldom wait for each other
		sync.Mutex
		of map[netip.Prefix]ike.Tally
	}
}

func newCensus() *census {
	c := &census{seed: maphash.MakeSeed()}
	for i := range c.part {
		c.part[i].of = map[netip.Prefix]ike.Tally{}
	}
	return c
}

// Count and Of are ike.Census's.
func (c *census) Count(network netip.Prefix, by ike.Tally) {
	c.sas.Add(int64(by.SAs))
	c.half.Add(int64(by.Half))
	c.open.Add(int64(by.Open))
	p := &c.part[maphash.Comparable(c.seed, network)%uint64(len(c.part))]
	p.Lock()
	defer p.Unlock()
	n := p.of[network]
	n.Add(by)
	if p.of[network] = n; n == (ike.Tally{}) {
		delete(p.of, network)
	}
}

func (c *census) Of(network netip.Prefix) (all, there ike.Tally) {
	all = ike.Tally{SAs: int(c.sas.Load()), Half: int(c.half.Load()), Open: int(c.open.Load())}
	p := &c.part[maphash.Comparable(c.seed, network)%uint64(len(c.part))]
	p.Lock()
	defer p.Unlock()
	return all, p.of[network]
}
