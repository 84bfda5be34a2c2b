package xfrm

import (
	"errors"
	"time"

	"tacit/guard"
	"tacit/ipsec"
)

// tick is how often maintenance looks: at packets that wait, at policies that ended, at clear packets that were dropped.
const tick = 250 * time.Millisecond

func (p *Plane) maintain() {
	timer := time.NewTicker(tick)
	defer timer.Stop()
	elements, policies := p.now(), p.now()
	for {
		select {
		case <-p.done:
			return
		case <-timer.C:
		}
		now := p.now()
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return
		}
		errs := p.turn(now)
		if now.Sub(elements) >= p.interval() {
			elements = now
			errs = append(errs, p.renewElements(now))
		}
		if now.Sub(policies) >= p.policyInterval() {
			policies = now
			errs = append(errs, p.renewPolicies())
		}
		p.mu.Unlock()
		if err := errors.Join(errs...); err != nil {
			p.log.Error("maintenance", "err", err)
		}
	}
}

// turn is one turn under the lock.
func (p *Plane) turn(now time.Time) []error {
	p.expireHeld(now)
	errs := []error{p.watchClear()}
	for _, out := range p.orphans { // rekeyed away a while ago: nothing is under way with them
		if out.pair.out != out && !out.pair.refers(out) {
			errs = append(errs, p.dropOutbound(out))
		}
	}
	p.orphans = nil
	for key, f := range p.flows {
		if f.until.IsZero() || now.Before(f.until) {
			continue
		}
		for _, pr := range append([]*pair(nil), f.all...) {
			if pr.adopted {
				errs = append(errs, p.removePair(pr))
			}
		}
		errs = append(errs, p.clearPolicy(key))
	}
	return errs
}

// renew gives everything its whole time anew.
func (p *Plane) renew(now time.Time) error {
	return errors.Join(p.renewElements(now), p.renewPolicies())
}

// renewElements renews what guard has, in one transaction.
func (p *Plane) renewElements(now time.Time) error {
	var changes []guard.Change
	for key, f := range p.flows {
		verdict, timeout := p.want(f, f.armed, now)
		if len(f.armed) > 0 && f.armed[0].adopted { // a dead process's: it ends when it would have
			timeout = min(timeout, f.until.Sub(now))
		}
		if verdict == guard.Pass || timeout <= 0 {
			continue
		}
		changes = append(changes, guard.Change{Key: key, Verdict: verdict, Timeout: timeout})
		f.verdict = verdict
	}
	return p.guard.Apply(changes)
}

// renewPolicies sets all policies again, for another whole life.
func (p *Plane) renewPolicies() error {
	var bodies [][]byte
	seconds := p.seconds()
	for key, f := range p.flows {
		if f.out == nil || f.out.pair.adopted {
			continue
		}
		bodies = append(bodies, MarshalPolicy(outPolicy(f.out.state, key.Own, key.Peer, seconds)))
		if f.tunnels > 0 {
			bodies = append(bodies, MarshalPolicy(inPolicy(key.Own, key.Peer, familyOf(f.out.state.Dst), seconds)))
		}
	}
	errs := []error{p.exempt()}
	for _, err := range p.kernel.batch("renew policy", msgUpdPolicy, bodies) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// watchClear raises ClearSeen for peers whose clear packets were dropped since the last turn.
func (p *Plane) watchClear() error {
	seen, err := p.guard.Seen()
	if err != nil {
		return err
	}
	for _, s := range seen {
		f, ok := p.flows[s.Key]
		if !ok {
			continue
		}
		last := f.lastClear
		f.lastClear = s.Packets
		if s.Packets < last {
			last = 0 // the kernel's counter began anew
		}
		if s.Packets > last {
			f.clearDropped += s.Packets - last
			p.raise(ipsec.Event{Kind: ipsec.ClearSeen, Selector: f.selector()})
		}
	}
	return nil
}
