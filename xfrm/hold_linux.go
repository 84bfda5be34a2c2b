package xfrm

import (
	"time"

	"github.com/mdlayher/netlink"

	"tacit/guard"
	"tacit/ipsec"
)

// Bounds of held packets (TRUST.md I4).
const (
	holdTime        = 3 * time.Second
	holdPerPeer     = 64   // packets
	holdPackets     = 4096 // packets, of all peers
	acquireInterval = time.Second
)

// held is a packet that waits in the kernel's queue for a Pair.
type held struct {
	id, mark uint32
	since    time.Time
}

// queueLoop reads the packets that guard sends to the queue: ours that are about to leave in clear, and the first ones out of an SA.
func (p *Plane) queueLoop() {
	for {
		messages, err := p.queue.Receive()
		if err != nil {
			if p.stopping() {
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
	f, ok := p.flows[guard.Key{Own: q.Src, Peer: q.Dst}]
	switch {
	case ok && f.out != nil: // the policy came after the packet had been routed
		p.letGo(q.ID, q.Mark)
	case ok && p.hold(f, q):
	default:
		p.counts.stray++
		p.verdict(q.ID, verdictDrop, 0)
	}
}

// hold makes a packet wait for a Pair and raises Acquire. It reports false if the packet may not wait.
func (p *Plane) hold(f *flow, q Queued) bool {
	now := p.now()
	if !now.Before(f.holding) {
		return false
	}
	if now.Sub(f.acquired) >= acquireInterval {
		f.acquired = now
		p.raise(ipsec.Event{Kind: ipsec.Acquire, Selector: f.selector()})
	}
	if len(f.queue) >= holdPerPeer || p.held >= holdPackets {
		return false
	}
	p.held++
	f.queue = append(f.queue, held{q.ID, q.Mark, now})
	p.waiting[f] = struct{}{}
	return true
}

// letGo lets a packet leave through the policy: with a changed mark the kernel routes it anew.
func (p *Plane) letGo(id, mark uint32) {
	p.verdict(id, verdictAccept, mark&^guard.MarkMask|guard.MarkDivert)
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
	now := p.now()
	for _, h := range f.queue {
		if now.Sub(h.since) >= holdTime {
			p.counts.heldInVain++
			p.verdict(h.id, verdictDrop, 0)
		} else {
			p.letGo(h.id, h.mark)
		}
	}
	p.empty(f, len(f.queue))
}

// dropHeld drops all packets of a flow that wait.
func (p *Plane) dropHeld(f *flow) {
	for _, h := range f.queue {
		p.verdict(h.id, verdictDrop, 0)
	}
	p.counts.heldInVain += uint64(len(f.queue))
	p.empty(f, len(f.queue))
}

// empty takes the first n packets out of a flow's queue.
func (p *Plane) empty(f *flow, n int) {
	p.held -= n
	f.queue = f.queue[n:]
	if len(f.queue) == 0 {
		f.queue, f.acquired = nil, time.Time{}
		delete(p.waiting, f)
	}
}

// expireHeld drops what waited too long, and asks again for what still waits.
func (p *Plane) expireHeld(now time.Time) {
	for f := range p.waiting {
		n := 0
		for n < len(f.queue) && (now.Sub(f.queue[n].since) >= holdTime || !now.Before(f.holding)) {
			p.verdict(f.queue[n].id, verdictDrop, 0)
			n++
		}
		p.counts.heldInVain += uint64(n)
		p.empty(f, n)
		if len(f.queue) > 0 && now.Sub(f.acquired) >= acquireInterval {
			f.acquired = now
			p.raise(ipsec.Event{Kind: ipsec.Acquire, Selector: f.selector()})
		}
	}
}
