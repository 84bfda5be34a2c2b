package tun

import (
	"sync"
	"time"

	"tacit/ipsec"
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

// hold makes a packet wait for a Pair and raises Acquire. If a Pair was armed meanwhile it returns the SA to use.
func (p *Plane) hold(f *flow, data []byte, now time.Time) *outbound {
	f.mu.Lock()
	if out := f.out.Load(); out != nil {
		f.mu.Unlock()
		return out
	}
	first := len(f.queue) == 0
	acquire, ok := f.enqueue(data, now, &p.budget)
	f.mu.Unlock()
	if !ok {
		p.counts.stray.Add(1)
	} else if first {
		p.waiting.add(f)
	}
	if acquire {
		p.raise(ipsec.Event{Kind: ipsec.Acquire, Selector: f.selector()})
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
		for _, h := range f.queue {
			p.budget.give(len(h.data))
			if now.Sub(h.since) >= holdTime {
				p.counts.held.Add(1)
				continue
			}
			if pkt, err := parsePacket(h.data); err == nil {
				p.seal(p.flusher, out, &pkt, now)
			}
		}
		f.queue, f.acquired = nil, time.Time{}
		p.flusher.flush()
	}
	f.out.Store(out)
}

// expireHeld drops what waited too long, and asks again for what still waits.
func (p *Plane) expireHeld(now time.Time) {
	for _, f := range p.waiting.take() {
		f.mu.Lock()
		p.counts.held.Add(uint64(f.expire(now, &p.budget)))
		still := len(f.queue) > 0
		again := still && now.Sub(f.acquired) >= acquireInterval
		if again {
			f.acquired = now
		}
		f.mu.Unlock()
		if still {
			p.waiting.add(f)
		}
		if again {
			p.raise(ipsec.Event{Kind: ipsec.Acquire, Selector: f.selector()})
		}
	}
}
