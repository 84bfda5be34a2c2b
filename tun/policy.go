package tun

import (
	"fmt"
	"time"

	"tacit/guard"
	"tacit/ipsec"
)

// SetPolicy sets what becomes of clear traffic between two hosts; see [ipsec.Dataplane]. A policy on more than one local
// and one remote host is refused.
func (p *Plane) SetPolicy(s ipsec.Selector, a ipsec.Action, until time.Time) error {
	key, err := hosts(s)
	if err != nil {
		return fmt.Errorf("set policy: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errClosed
	}
	if !until.After(p.now()) {
		return p.clearPolicy(key)
	}
	f := p.flow(key)
	if err := p.change(f, a, until); err != nil {
		p.forget(f)
		return fmt.Errorf("set policy %v: %w", s, err)
	}
	return nil
}

// ClearPolicy ends the policy between two hosts. It is no error if there is none.
func (p *Plane) ClearPolicy(s ipsec.Selector) error {
	key, err := hosts(s)
	if err != nil {
		return fmt.Errorf("clear policy: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errClosed
	}
	return p.clearPolicy(key)
}

// clearPolicy ends a policy. The Plane's lock is held.
func (p *Plane) clearPolicy(key guard.Key) error {
	f, ok := p.all[key]
	if !ok {
		return nil
	}
	if err := p.change(f, ipsec.Bypass, time.Time{}); err != nil {
		return fmt.Errorf("clear policy %v: %w", f.selector(), err)
	}
	p.forget(f)
	return nil
}

// change replaces the policy of a flow. Packets may wait before they are diverted, and are diverted no more before they may no longer
// wait: so none is lost on the way in, and none passes in clear.
func (p *Plane) change(f *flow, a ipsec.Action, until time.Time) error {
	oldAction, oldUntil := f.policy, f.until
	f.policy, f.until = a, until
	if a == ipsec.Hold {
		f.holdUntil(until, &p.budget)
	}
	verdict, timeout := p.want(f, p.now())
	if err := p.enforce(f, verdict, timeout); err != nil {
		f.policy, f.until = oldAction, oldUntil
		if oldAction != ipsec.Hold {
			f.holdUntil(time.Time{}, &p.budget)
		}
		return err
	}
	if a != ipsec.Hold {
		p.counts.held.Add(uint64(f.holdUntil(time.Time{}, &p.budget)))
	}
	return nil
}

// holdUntil says until when packets of the flow may wait. With a zero time none may, and those that do are dropped.
func (f *flow) holdUntil(until time.Time, b *holdBudget) (dropped int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.holding = until
	if until.IsZero() {
		for _, h := range f.queue {
			b.give(len(h.data))
		}
		dropped, f.queue = len(f.queue), nil
		f.acquired = time.Time{}
	}
	return dropped
}
