package tun

import (
	"bytes"
	"sync"
	"time"

	"tacit/ipsec"
	"tacit/plane"
)

// waitList holds the flows that have packets waiting, so that maintenance need not look at the others.
type waitList struct {
	mu    sync.Mutex // added to by the packet path, emptied by maintenance
	flows map[*flow]struct{}
}

func (w *waitList) add(f *flow) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.flows == nil {
		w.flows = make(map[*flow]struct{})
	}
	w.flows[f] = struct{}{}
}

func (w *waitList) take() []*flow {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]*flow, 0, len(w.flows))
	for f := range w.flows {
		out = append(out, f)
	}
	clear(w.flows)
	return out
}

// hold makes a packet wait for a Pair and raises Acquire. If a Pair was armed meanwhile it returns the SA to use. If the flow was let go it
// sends the packet in clear: it came in here before.
func (p *Plane) hold(f *flow, data []byte, now time.Time) *outbound {
	f.mu.Lock()
	if out := f.out.Load(); out != nil {
		f.mu.Unlock()
		return out
	}
	if f.queue.Fate() == plane.Release {
		p.sendClear(data)
		f.mu.Unlock()
		return nil
	}
	h, acquire := f.queue.Put(len(data), now)
	if h == nil {
		p.counts.stray.Add(1)
	} else {
		h.Packet = bytes.Clone(data)
	}
	first, empty := h != nil && f.queue.Len() == 1, f.queue.Len() == 0
	f.mu.Unlock()
	if empty {
		p.unknown.leave(f)
	}
	if first {
		p.waiting.add(f)
	}
	if acquire {
		p.run.Raise(ipsec.Event{Kind: ipsec.Acquire, Selector: f.Selector()})
	}
	return nil
}

// switchTo makes out the SA of the flow, after the packets that waited have left through it in their order. The Plane's lock
// is held: the flusher is used by one goroutine at a time.
func (p *Plane) switchTo(f *flow, out *outbound) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := p.now()
	if out != nil {
		p.addressed(out)
		ready, late := f.queue.Take(now)
		p.counts.held.Add(uint64(len(late)))
		for _, h := range ready {
			if pkt, err := parsePacket(h.Packet); err == nil {
				p.seal(p.flusher, out, &pkt, now)
			}
		}
		p.flusher.flush()
	}
	f.out.Store(out)
}

// expireHeld drops what waited too long, and asks again for what still waits.
func (p *Plane) expireHeld(now time.Time) {
	for _, f := range p.waiting.take() {
		f.mu.Lock()
		p.counts.held.Add(uint64(len(f.queue.Expire(now))))
		still := f.queue.Len() > 0
		again := still && f.queue.Due(now)
		f.mu.Unlock()
		if still {
			p.waiting.add(f)
		} else {
			p.unknown.leave(f)
		}
		if again {
			p.run.Raise(ipsec.Event{Kind: ipsec.Acquire, Selector: f.Selector()})
		}
	}
}
