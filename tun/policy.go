package tun

import (
	"time"

	"tacit/ipsec"
	"tacit/plane"
)

// SetPolicy sets what becomes of clear traffic between two hosts; see [ipsec.Dataplane] and [plane.Policies].
func (p *Plane) SetPolicy(s ipsec.Selector, a ipsec.Action, until time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return plane.ErrClosed
	}
	return p.policies.Set(s, a, until)
}

// ClearPolicy ends the policy between two hosts. It is no error if there is none.
func (p *Plane) ClearPolicy(s ipsec.Selector) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return plane.ErrClosed
	}
	return p.policies.Clear(s)
}

// SetRules replaces the rules of prefixes; see [ipsec.Dataplane] and [plane.Policies].
func (p *Plane) SetRules(rules []ipsec.Rule) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return plane.ErrClosed
	}
	if err := p.policies.SetRules(rules); err != nil {
		return err
	}
	p.unknown.judge(&p.policies.Rules)
	return nil
}
