package ike

import "net/netip"

// Census counts the IKE SAs of all Endpoints that share it: the caps of Config are those of a host, however many shards it has. Nothing else is shared. One that
// is shared by Endpoints of several goroutines is called by all of them at once; so many more than a cap may come in as ask at the same moment.
type Census interface {
	// Count adds to what a network has, and so to what all have together.
	Count(network netip.Prefix, by Tally)
	// Of is what all have together, and what a network has.
	Of(network netip.Prefix) (all, there Tally)
}

// Tally is a number of IKE SAs.
type Tally struct {
	SAs  int // of all states
	Half int // half-open, that the peer has asked for
	Open int // established, whoever has asked
}

// Add adds to each.
func (t *Tally) Add(by Tally) { t.SAs, t.Half, t.Open = t.SAs+by.SAs, t.Half+by.Half, t.Open+by.Open }

// census is one Endpoint's own.
type census struct {
	all Tally
	of  map[netip.Prefix]Tally
}

func newCensus() *census { return &census{of: map[netip.Prefix]Tally{}} }

func (c *census) Count(network netip.Prefix, by Tally) {
	c.all.Add(by)
	n := c.of[network]
	n.Add(by)
	if c.of[network] = n; n == (Tally{}) {
		delete(c.of, network)
	}
}

func (c *census) Of(network netip.Prefix) (all, there Tally) { return c.all, c.of[network] }
