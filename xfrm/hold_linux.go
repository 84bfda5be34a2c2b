package xfrm

import (
	"bytes"
	"errors"
	"time"

	"github.com/mdlayher/netlink"

	"tacit/guard"
	"tacit/ipsec"
	"tacit/plane"
)

// queueLoop reads the packets that guard sends to the queue: ours that are about to leave in clear, and the first ones out of an SA.
func (p *Plane) queueLoop() {
	for messages, err := p.early, error(nil); ; messages, err = p.queue.Receive() {
		if err != nil {
			if p.run.Stopping() {
				return
			}
			continue
		}
		for _, m := range messages {
			if m.Header.Type != netlink.HeaderType(msgQueuePacket) {
				continue
			}
			q, err := ParseQueued(m.Data)
			if err != nil {
				p.log.Warn("queued packet", "err", err)
				continue
			}
			p.mu.Lock()
			if !p.closed {
				p.judge(q)
			}
			p.mu.Unlock()
		}
	}
}

// judge decides over a queued packet. The Plane's lock is held.
func (p *Plane) judge(q Queued) {
	if q.Hook == hookPrerouting {
		p.firstPackets(q)
		return
	}
	key, w := guard.Key{Own: q.Src, Peer: q.Dst}, waiting{id: q.ID, mark: q.Mark}
	f, ok := p.policies.Find(key)
	if !ok { // an address that only a rule of prefixes concerns
		fate := p.policies.Rules.Fate(q.Dst)
		if fate == plane.Copy && len(p.waiting) >= plane.CopyAddresses {
			p.letPass(w)
			return
		}
		if fate == plane.Copy || fate == plane.Wait && len(p.waiting) < plane.HoldAddresses {
			f, ok = p.policies.Flow(key), true
		}
	}
	now := p.now()
	switch {
	case ok && f.out != nil: // the policy came after the packet had been routed
		p.letGo(w)
	case ok && f.queue.Fate(now) == plane.Release: // it was let go after that
		p.letPass(w)
	case ok && f.queue.Fate(now) == plane.Copy:
		p.watch(f, w, q.Data, now)
	case ok && p.hold(f, w, now):
	default:
		p.counts.stray++
		p.verdict(q.ID, verdictDrop, 0)
		if ok {
			p.policies.Forget(f)
		}
	}
}

// hold makes a packet wait for a Pair and raises Acquire. It reports false if the packet may not wait.
func (p *Plane) hold(f *flow, w waiting, now time.Time) bool {
	h, acquire := f.queue.Put(0, now) // its octets stay in the kernel
	if acquire {
		p.acquire(f)
	}
	if h == nil {
		return false
	}
	h.Packet = w
	p.waiting[f] = struct{}{}
	return true
}

// watch lets a packet leave in clear, and keeps a copy of it. Of one that did not come whole it keeps only that it was there: it raises Acquire as any other.
func (p *Plane) watch(f *flow, w waiting, data []byte, now time.Time) {
	p.letPass(w)
	h, acquire := f.queue.Keep(len(data), now)
	if h != nil {
		h.Packet = waiting{copy: bytes.Clone(data)}
		p.waiting[f] = struct{}{}
	} else {
		p.policies.Forget(f)
	}
	if acquire {
		p.acquire(f)
	}
}

// Repeat sends again what has left in clear; see [ipsec.Dataplane]. The kernel finds the policy for it as for any packet of ours.
func (p *Plane) Repeat(id uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr, ok := p.pairs[id]
	if !ok || p.closed || pr.flow.out == nil {
		return nil
	}
	var errs []error
	for _, h := range pr.flow.queue.Repeat(p.now()) {
		if h.Packet.copy != nil {
			errs = append(errs, p.raw.Send(pr.flow.Key.Peer, h.Packet.copy))
		}
	}
	p.rested(pr.flow)
	return plane.Wrap("repeat", id, errors.Join(errs...))
}

func (p *Plane) acquire(f *flow) {
	p.run.Raise(ipsec.Event{Kind: ipsec.Acquire, Selector: f.Selector()})
}

// letGo lets a packet leave through the policy: with a changed mark the kernel routes it anew.
func (p *Plane) letGo(w waiting) {
	p.verdict(w.id, verdictAccept, w.mark&^guard.MarkMask|guard.MarkDivert)
}

// letPass lets a packet leave in clear: as one of ours, which no policy takes.
func (p *Plane) letPass(w waiting) {
	p.verdict(w.id, verdictAccept, w.mark&^guard.MarkMask|guard.MarkOwn)
}

func (p *Plane) verdict(id, verdict, mark uint32) {
	m := netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(msgQueueVerdict), Flags: netlink.Request},
		Data: marshalVerdict(p.cfg.Queue, id, verdict, mark)}
	if _, err := p.queue.Send(m); err != nil && !p.closed {
		p.log.Warn("verdict on a queued packet", "err", err)
	}
}

// release lets the packets of a flow go, in their order.
func (p *Plane) release(f *flow) {
	ready, late := f.queue.Take(p.now())
	p.dropHeld(f, late)
	for _, h := range ready {
		p.letGo(h.Packet)
	}
}

// dropHeld drops packets that were taken out of a flow's queue.
func (p *Plane) dropHeld(f *flow, late []plane.Held[waiting]) {
	for _, h := range late {
		p.verdict(h.Packet.id, verdictDrop, 0)
	}
	p.counts.heldInVain += uint64(len(late))
	p.rested(f)
}

// rested takes a flow without packets from among those that have some.
func (p *Plane) rested(f *flow) {
	if f.queue.Size() == 0 {
		delete(p.waiting, f)
	}
}

// expireHeld drops what waited too long, or is an old copy, and asks again for what still waits.
func (p *Plane) expireHeld(now time.Time) {
	for f := range p.waiting {
		p.dropHeld(f, f.queue.Expire(now))
		p.policies.Forget(f)
		if f.queue.Len() > 0 && f.queue.Due(now) {
			p.acquire(f)
		}
	}
}
