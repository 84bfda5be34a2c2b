package xfrm

import (
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
	key, w := guard.Key{Own: q.Src, Peer: q.Dst}, waiting{q.ID, q.Mark}
	f, ok := p.policies.Find(key)
	if !ok && len(p.waiting) < plane.HoldAddresses && p.policies.Rules.Waits(q.Dst) {
		f, ok = p.policies.Flow(key), true // of an address that only a rule of prefixes concerns
	}
	switch {
	case ok && f.out != nil: // the policy came after the packet had been routed
		p.letGo(w)
	case ok && f.queue.Fate() == plane.Release: // it was let go after that
		p.letPass(w)
	case ok && p.hold(f, w):
	default:
		p.counts.stray++
		p.verdict(q.ID, verdictDrop, 0)
		if ok {
			p.policies.Forget(f)
		}
	}
}

// hold makes a packet wait for a Pair and raises Acquire. It reports false if the packet may not wait.
func (p *Plane) hold(f *flow, w waiting) bool {
	h, acquire := f.queue.Put(0, p.now()) // its octets stay in the kernel
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
	if f.queue.Len() == 0 {
		delete(p.waiting, f)
	}
}

// expireHeld drops what waited too long, and asks again for what still waits.
func (p *Plane) expireHeld(now time.Time) {
	for f := range p.waiting {
		p.dropHeld(f, f.queue.Expire(now))
		p.policies.Forget(f)
		if f.queue.Len() > 0 && f.queue.Due(now) {
			p.acquire(f)
		}
	}
}
