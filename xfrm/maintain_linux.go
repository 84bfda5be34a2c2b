package xfrm

import (
	"errors"
	"maps"
	"slices"
	"time"

	"tacit/ipsec"
)

// maintenance does what is due by time. An error is logged and tried again: what stands in the kernel lasts for longer than several turns.
func (p *Plane) maintenance() {
	elements, policies := p.now(), p.now()
	p.run.Maintain(func(now time.Time) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.closed {
			return
		}
		errs := append(p.turn(now), p.policies.RenewDue(now))
		if now.Sub(elements) >= p.policies.Interval() {
			elements = now
			errs = append(errs, p.policies.RenewRules(), p.policies.Guard.RenewLatches(p.policies.Lasting()))
		}
		if now.Sub(policies) >= p.policyInterval() {
			policies = now
			errs = append(errs, p.renewPolicies())
		}
		if err := errors.Join(errs...); err != nil {
			p.log.Error("maintenance", "err", err)
		}
	})
}

// turn is one turn under the lock.
func (p *Plane) turn(now time.Time) (errs []error) {
	p.expireHeld(now)
	fresh, err := p.policies.WatchClear()
	for _, s := range fresh {
		p.run.Raise(ipsec.Event{Kind: ipsec.ClearSeen, Selector: s})
	}
	errs = append(errs, err, p.policies.FollowGateways(now))
	errs = append(errs, p.endLeft()...)
	for _, f := range slices.Collect(maps.Keys(p.unrouted)) {
		delete(p.unrouted, f) // route puts it back if it fails again
		if there, _ := p.policies.Find(f.Key); there == f {
			errs = append(errs, p.route(f, current(f.armed)))
		}
	}
	for _, f := range p.policies.Due(now) {
		for _, pr := range slices.Clone(f.all) { // removePair takes it out
			if pr.adopted {
				errs = append(errs, p.removePair(pr))
			}
		}
		errs = append(errs, p.policies.Clear(f.Selector()))
	}
	return errs
}

// endLeft ends what was rekeyed away a while ago, so that nothing is under way with it, and what could not be ended before.
func (p *Plane) endLeft() (errs []error) {
	orphans, unended := p.orphans, p.unended
	p.orphans, p.unended = nil, nil
	for _, out := range orphans {
		if out.pair.out != out && !out.pair.refers(out) {
			errs = append(errs, p.dropOutbound(out))
		}
	}
	for _, do := range unended {
		errs = append(errs, p.end(do))
	}
	return errs
}

// renewPolicies sets all policies again, for another whole life.
func (p *Plane) renewPolicies() error {
	var bodies [][]byte
	seconds := p.seconds()
	for f := range p.policies.All() {
		if f.out == nil || f.out.pair.adopted {
			continue
		}
		bodies = append(bodies, MarshalPolicy(outPolicy(f.out.state, f.Key.Own, f.Key.Peer, seconds)))
		if f.tunnels > 0 {
			for _, in := range inPolicies(f.Key, familyOf(f.out.state.Dst), seconds) {
				bodies = append(bodies, MarshalPolicy(in))
			}
		}
	}
	errs := []error{p.exempt()}
	for _, err := range p.kernel.batch("renew policy", msgUpdPolicy, bodies) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
