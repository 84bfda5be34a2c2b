package xfrm

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"tacit/guard"
	"tacit/ipsec"
)

// movedInterval is how often Moved is raised for a Pair at most: the kernel tells it with every packet.
const movedInterval = time.Second

// newsLoop reads what the kernel tells by itself. If it told more than the socket holds, everything is looked at again.
func (p *Plane) newsLoop() {
	for {
		messages, err := p.news.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			p.mu.Lock()
			p.resync()
			p.mu.Unlock()
			continue
		}
		if err != nil {
			if p.run.Stopping() {
				return
			}
			continue
		}
		for _, m := range messages {
			p.mu.Lock()
			if !p.closed {
				if err := p.hear(uint16(m.Header.Type), m.Data); err != nil && !errors.Is(err, errUnknown) {
					p.log.Warn("kernel's message", "type", m.Header.Type, "err", err)
				}
			}
			p.mu.Unlock()
		}
	}
}

// hear takes one message. The Plane's lock is held.
func (p *Plane) hear(kind uint16, body []byte) error {
	switch kind {
	case msgExpire:
		e, err := ParseExpire(body)
		if err != nil || !isOurs(e.State.ReqID) {
			return err
		}
		p.expired(e)
	case msgPolExpire:
		e, err := ParsePolicyExpire(body)
		if err != nil || !e.Hard || !e.Policy.ours() {
			return err
		}
		return p.restorePolicy(e.Policy)
	case msgMapping:
		m, err := ParseMapping(body)
		if err != nil || !isOurs(m.ReqID) {
			return err
		}
		p.mapped(m)
	case msgAcquire:
		a, err := ParseAcquire(body)
		if err != nil || !a.Policy.ours() {
			return err
		}
		p.lostSA(a)
	}
	return nil
}

// expired raises Expiring for a soft limit. An SA whose hard limit came is lost: what it sent is held from now on.
func (p *Plane) expired(e Expire) {
	pr, out := p.bySPI(e.State)
	switch {
	case pr == nil:
	case !e.Hard:
		p.run.Raise(ipsec.Event{Kind: ipsec.Expiring, ID: pr.id, SPI: e.State.SPI, Selector: pr.flow.Selector()})
	default:
		p.log.Warn("an SA came to the end of its life before it was rekeyed", "peer", pr.flow.Key.Peer, "spi", e.State.SPI)
		if out != nil && pr.flow.out == out {
			p.run.Raise(ipsec.Event{Kind: ipsec.Acquire, Selector: pr.flow.Selector()})
		}
	}
}

// bySPI finds the Pair that an SA of ours belongs to, and for an outbound one its record.
func (p *Plane) bySPI(s State) (*pair, *outbound) {
	if in, ok := p.ins[s.SPI]; ok && in.dst == s.Dst {
		return in.pair, nil
	}
	f, ok := p.policies.Find(guard.Key{Own: s.Selector.Src.Addr(), Peer: s.Selector.Dst.Addr()})
	if !ok {
		return nil, nil
	}
	for _, pr := range f.all {
		if out, ok := pr.outs[s.SPI]; ok {
			return pr, out
		}
	}
	return nil, nil
}

// restorePolicy puts a policy back that ended while we live: the clock was set.
func (p *Plane) restorePolicy(q Policy) error {
	if q.Priority == exemptRank {
		return p.exempt()
	}
	key := guard.Key{Own: q.Selector.Src.Addr(), Peer: q.Selector.Dst.Addr()}
	if q.Way != Out {
		key.Own, key.Peer = key.Peer, key.Own
	}
	f, ok := p.policies.Find(key)
	switch {
	case !ok:
	case q.Way != Out && f.tunnels > 0:
		q.Lifetime.HardSeconds = p.seconds()
		return p.kernel.setPolicy(q)
	case q.Way == Out && f.out != nil && !f.out.pair.adopted:
		return p.kernel.setPolicy(outPolicy(f.out.state, key.Own, key.Peer, p.seconds()))
	}
	return nil
}

func (p *Plane) mapped(m Mapping) {
	in, ok := p.ins[m.SPI]
	now := p.now()
	if !ok || in.dst != m.Dst || now.Sub(in.pair.moved) < movedInterval {
		return
	}
	in.pair.moved = now
	p.run.Raise(ipsec.Event{Kind: ipsec.Moved, ID: in.pair.id, SPI: m.SPI, Selector: in.pair.flow.Selector(), Remote: m.New})
}

// lostSA answers the kernel's own ACQUIRE: a policy of ours names an SA that is gone.
func (p *Plane) lostSA(a Acquired) {
	key := guard.Key{Own: a.Policy.Selector.Src.Addr(), Peer: a.Policy.Selector.Dst.Addr()}
	if f, ok := p.policies.Find(key); ok && f.queue.Due(p.now()) {
		p.acquire(f)
	}
}

// resync makes up for news that were lost: policies are set again, unheard SAs are looked at, and what waits is asked for again.
func (p *Plane) resync() {
	p.counts.resyncs++
	errs := []error{p.renewPolicies()}
	for f := range p.policies.All() {
		if f.unheard > 0 {
			errs = append(errs, p.listen(f))
		}
		if f.queue.Len() > 0 {
			p.acquire(f)
		}
	}
	p.log.Warn("the kernel told more than we could read: all was looked at again", "err", errors.Join(errs...))
}
