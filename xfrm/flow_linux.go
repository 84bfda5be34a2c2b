package xfrm

import (
	"net/netip"
	"time"

	"tacit/guard"
	"tacit/ipsec"
)

// flow is all traffic between one of our own addresses and a peer's. All of it is under the Plane's lock.
type flow struct {
	key     guard.Key
	armed   []*pair // the newest last
	all     []*pair // armed or not
	tunnels int     // those in tunnel mode: while there are any, a policy in stands
	unheard int     // inbound SAs whose first packet has not come: while there are any, the flow is latched
	policy  ipsec.Action
	until   time.Time // of the policy; zero: there is none
	verdict guard.Verdict
	out     *outbound // what the policy out names; nil: there is no policy

	holding  time.Time // packets wait until then
	queue    []held
	acquired time.Time // the last Acquire

	clearDropped, lastClear uint64 // packets; the last counter of the kernel's
}

func (f *flow) selector() ipsec.Selector { return ipsec.Host(f.key.Own, f.key.Peer) }

// pair is a Child SA as the data plane knows it.
type pair struct {
	id      uint32
	flow    *flow
	spec    ipsec.Pair // without keys; Redirect changes it
	reqID   uint32
	ins     map[ipsec.SPI]*inbound
	outs    map[ipsec.SPI]*outbound
	out     *outbound // in use, once armed
	armed   bool
	adopted bool        // left by a dead process: it goes when another is armed
	past    ipsec.Usage // of SAs that are gone
	last    ipsec.Usage // what Usage saw before
	moved   time.Time   // the last Moved event
}

// inbound is an inbound SA.
type inbound struct {
	pair  *pair
	spi   ipsec.SPI
	dst   netip.Addr
	next  *outbound // its first valid packet makes this one the Pair's
	heard bool
}

// outbound is an outbound SA.
type outbound struct {
	pair  *pair
	order uint64 // of installation: a later one is never replaced by an earlier one
	state State  // without keys
}

// flow finds or makes the flow of a key.
func (p *Plane) flow(k guard.Key) *flow {
	f, ok := p.flows[k]
	if !ok {
		f = &flow{key: k}
		p.flows[k] = f
	}
	return f
}

// forget removes a flow that nothing asks for.
func (p *Plane) forget(f *flow) {
	if len(f.all) == 0 && f.until.IsZero() && f.verdict == guard.Pass {
		delete(p.flows, f.key)
	}
}

// current is the outbound SA that a flow with these armed Pairs uses: an authenticated one goes first (TRUST.md A-19), then the newest.
func current(armed []*pair) *outbound {
	var best *pair
	for _, pr := range armed {
		if best == nil || pr.spec.Authenticated || !best.spec.Authenticated {
			best = pr
		}
	}
	if best == nil {
		return nil
	}
	return best.out
}

// interval is how often elements are renewed, which with 10,000 of them takes a while; lasting is the timeout they get, so that after our
// death they stand at least for linger, even if the last renewal was late by another interval.
func (p *Plane) interval() time.Duration { return p.cfg.Linger / 5 }

func (p *Plane) lasting() time.Duration { return p.cfg.Linger + 2*p.interval() }

// policyInterval is how often policies are renewed: replacing one makes the kernel look all routes up again, so seldom.
func (p *Plane) policyInterval() time.Duration { return p.cfg.Linger / 4 }

// seconds is the life of a policy: a little longer than that of guard's elements, so that the last packets are still encrypted.
func (p *Plane) seconds() uint64 {
	return uint64((p.cfg.Linger+p.policyInterval()+time.Second-1)/time.Second) + 1
}

// want is the verdict that a flow's Pairs and policy ask for, and for how long. Pairs go before policies.
func (p *Plane) want(f *flow, armed []*pair, now time.Time) (guard.Verdict, time.Duration) {
	if len(armed) > 0 {
		return guard.Divert, p.lasting()
	}
	left := min(f.until.Sub(now), p.lasting())
	switch {
	case left <= 0 || f.policy == ipsec.Bypass:
		return guard.Pass, 0
	case f.policy == ipsec.Block:
		return guard.Block, left
	}
	return guard.Divert, left
}

// enforce puts a verdict on a flow. On an error the old one stands.
func (p *Plane) enforce(f *flow, v guard.Verdict, timeout time.Duration) error {
	if v == guard.Pass && f.verdict == guard.Pass {
		return nil
	}
	if err := p.guard.Apply([]guard.Change{{Key: f.key, Verdict: v, Timeout: timeout}}); err != nil {
		return err
	}
	f.verdict = v
	return nil
}

// route makes out the SA of the flow's policy, or ends the policy if it is nil. On an error the old one stands.
func (p *Plane) route(f *flow, out *outbound) error {
	if out == f.out {
		return nil
	}
	var err error
	if out != nil {
		err = p.kernel.setPolicy(outPolicy(out.state, f.key.Own, f.key.Peer, p.seconds()))
	} else {
		err = p.kernel.delPolicy(outPolicy(f.out.state, f.key.Own, f.key.Peer, 0))
	}
	if err != nil {
		return err
	}
	f.out = out
	if out != nil {
		p.release(f)
	}
	return nil
}

// SetPolicy sets what becomes of clear traffic between two hosts; see [ipsec.Dataplane]. A policy on more than one local and one
// remote host is refused.
func (p *Plane) SetPolicy(s ipsec.Selector, a ipsec.Action, until time.Time) error {
	key, err := hosts(s)
	if err != nil {
		return wrapPolicy("set", s, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errClosed
	}
	if !until.After(p.now()) {
		return wrapPolicy("end", s, p.clearPolicy(key))
	}
	f := p.flow(key)
	if err := p.change(f, a, until); err != nil {
		p.forget(f)
		return wrapPolicy("set", s, err)
	}
	return nil
}

// ClearPolicy ends the policy between two hosts. It is no error if there is none.
func (p *Plane) ClearPolicy(s ipsec.Selector) error {
	key, err := hosts(s)
	if err != nil {
		return wrapPolicy("clear", s, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errClosed
	}
	return wrapPolicy("clear", s, p.clearPolicy(key))
}

func (p *Plane) clearPolicy(key guard.Key) error {
	f, ok := p.flows[key]
	if !ok {
		return nil
	}
	if err := p.change(f, ipsec.Bypass, time.Time{}); err != nil {
		return err
	}
	p.forget(f)
	return nil
}

// change replaces the policy of a flow. Packets may wait before they are diverted, and are diverted no more before they may no
// longer wait: so none is lost on the way in, and none passes in clear.
func (p *Plane) change(f *flow, a ipsec.Action, until time.Time) error {
	oldAction, oldUntil, oldHolding := f.policy, f.until, f.holding
	f.policy, f.until = a, until
	if a == ipsec.Hold {
		f.holding = until
	}
	verdict, timeout := p.want(f, f.armed, p.now())
	if err := p.enforce(f, verdict, timeout); err != nil {
		f.policy, f.until, f.holding = oldAction, oldUntil, oldHolding
		return err
	}
	if a != ipsec.Hold {
		f.holding = time.Time{}
		p.dropHeld(f)
	}
	return nil
}
