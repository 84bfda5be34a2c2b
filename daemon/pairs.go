package daemon

import (
	"slices"
	"time"

	"tacit/ike"
	"tacit/ipsec"
)

// A peer may ask for more than one Child SA. They are about the same two hosts, and what the data plane does with an address is the same
// for all of its Pairs: one stands for the association, the others wait until it ends.

// carried is what is remembered of a Pair.
type carried struct {
	ID           uint32
	mode         ipsec.Mode
	encapsulated bool
}

// carry notes a Pair that is up, and reports whether it is the one that stands for the association.
func (a *association) carry(pair ipsec.Pair) bool {
	p := carried{pair.ID, pair.Mode, pair.Encapsulated()}
	if !a.up || a.pair.ID == p.ID {
		a.pair, a.up = p, true
		return true
	}
	a.more = append(slices.DeleteFunc(a.more, func(q carried) bool { return q.ID == p.ID }), p)
	return false
}

// lose takes a Pair away, and reports whether it was the last. Whether the next one is armed, its counters will say.
func (a *association) lose(id uint32) bool {
	a.more = slices.DeleteFunc(a.more, func(q carried) bool { return q.ID == id })
	switch {
	case !a.up || a.pair.ID != id:
		return false
	case len(a.more) > 0:
		a.pair, a.more, a.usage, a.armed = a.more[0], a.more[1:], usage{}, a.initiator && !a.parted
		return false
	}
	a.up = false
	return true
}

// removal ends all Pairs at once.
func (a *association) removal() (do []action) {
	if a.up {
		for _, p := range append(a.more, a.pair) {
			do = append(do, doRemove{pair: p.ID})
		}
	}
	a.up, a.more = false, nil
	return do
}

// carries reports whether a Pair is the association's.
func (a *association) carries(id uint32) bool {
	return a.up && (a.pair.ID == id || slices.ContainsFunc(a.more, func(q carried) bool { return q.ID == id }))
}

// rekeyed: the IKE SA has a new lifetime, which is half as long again if the peer is to end it.
func (p *peer) rekeyed(now time.Time, e ike.Rekeyed) {
	if a := p.sa(e.SA); a != nil {
		a.suite, a.renew = e.Summary, at(now).Add(p.renew)
		if !e.Initiator {
			a.renew = a.renew.Add(p.renew / 2)
		}
	}
}

// uses reports whether packets are sent with the Pair of an association.
func (p *peer) uses(id ike.SAID, pair uint32) bool {
	a := p.sa(id)
	return a != nil && a.up && a.armed && a.pair.ID == pair
}

// preferred: the data plane sends with this association's Pair now. Another with the same key, which both ends had begun at once, is
// about to end.
func (p *peer) preferred(e ike.ChildPreferred) {
	if a := p.sa(e.SA); a != nil && a.up && a.pair.ID == e.Pair.ID {
		a.armed = true
	}
}

// sa finds an association; nil: there is none.
func (p *peer) sa(id ike.SAID) *association {
	for _, a := range p.sas {
		if a.id == id {
			return a
		}
	}
	return nil
}
