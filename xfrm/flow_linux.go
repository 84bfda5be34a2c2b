package xfrm

import (
	"net/netip"
	"time"

	"tacit/guard"
	"tacit/ipsec"
	"tacit/plane"
)

// flow is all traffic between one of our own addresses and a peer's. All of it is under the Plane's lock.
type flow struct {
	plane.Flow
	plane   *Plane
	armed   []*pair   // the newest last
	all     []*pair   // armed or not
	tunnels int       // those in tunnel mode: while there are any, policies in stand
	unheard int       // inbound SAs whose first packet has not come: while there are any, the flow is latched
	out     *outbound // what the policy out names; nil: there is no policy
	queue   plane.Queue[waiting]
	adopted time.Time // until when what a dead process left protects the flow
}

// waiting is a packet in the kernel's queue; or a copy of one that has left it.
type waiting struct {
	id, mark uint32
	copy     []byte
}

// Used reports whether a Pair carries the flow, or packets wait for one, or copies are kept.
func (f *flow) Used() bool { return len(f.all) > 0 || f.queue.Size() > 0 }

// Armed reports whether an armed Pair does: one that a dead process left until that would have ended.
func (f *flow) Armed() (bool, time.Time) {
	if len(f.armed) > 0 && f.armed[0].adopted {
		return true, f.adopted
	}
	return len(f.armed) > 0, time.Time{}
}

// Settle says what becomes of packets that find no SA.
func (f *flow) Settle(fate plane.Fate, until time.Time, then plane.Fate) {
	out := f.queue.Settle(fate, until, then)
	if fate != plane.Release && fate != plane.Copy {
		f.plane.dropHeld(f, out)
		return
	}
	for _, h := range out {
		f.plane.letPass(h.Packet)
	}
	f.plane.rested(f)
}

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
	parting bool        // it was disarmed, for good
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

// newFlow makes a flow.
func (p *Plane) newFlow(k guard.Key) *flow {
	return &flow{Flow: plane.Flow{Key: k}, plane: p, queue: plane.Queue[waiting]{Budget: &p.budget, Copies: &p.copies}}
}

// current is the outbound SA that a flow with these armed Pairs uses.
func current(armed []*pair) *outbound {
	best, ok := plane.Prefer(armed, func(pr *pair) bool { return pr.spec.Authenticated })
	if !ok {
		return nil
	}
	return best.out
}

// policyInterval is how often policies are renewed: replacing one makes the kernel look all routes up again, so seldom.
func (p *Plane) policyInterval() time.Duration { return p.cfg.Linger / 4 }

// seconds is the life of a policy: a little longer than that of guard's elements, so that the last packets are still encrypted.
func (p *Plane) seconds() uint64 {
	return uint64((p.cfg.Linger+2*p.policyInterval()+time.Second-1)/time.Second) + 1
}

// route makes out the SA of the flow's policy, or ends the policy if it is nil. On an error the old one stands, and maintenance tries again if that is not the
// one that is to be used.
func (p *Plane) route(f *flow, out *outbound) error {
	if out == f.out {
		return nil
	}
	var err error
	if out != nil {
		err = p.kernel.setPolicy(outPolicy(out.state, f.Key.Own, f.Key.Peer, p.seconds()))
	} else {
		err = p.kernel.delPolicy(outPolicy(f.out.state, f.Key.Own, f.Key.Peer, 0))
	}
	if err != nil {
		p.unrouted[f] = struct{}{}
		return err
	}
	f.out = out
	if out != nil {
		p.release(f)
	}
	return nil
}

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
	return p.policies.SetRules(rules)
}
