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
// sends the packet in clear: it came in here before. If the flow is watched it does so too, and keeps a copy.
func (p *Plane) hold(f *flow, data []byte, now time.Time) *outbound {
	f.mu.Lock()
	if out := f.out.Load(); out != nil {
		f.mu.Unlock()
		return out
	}
	var h *plane.Held[[]byte]
	var acquire bool
	switch f.queue.Fate(now) {
	case plane.Release:
		p.sendClear(data)
		f.mu.Unlock()
		return nil
	case plane.Copy:
		p.sendClear(data)
		h, acquire = f.queue.Keep(len(data), now)
	default:
		if h, acquire = f.queue.Put(len(data), now); h == nil {
			p.counts.stray.Add(1)
		}
	}
	if h != nil {
		h.Packet = bytes.Clone(data)
	}
	first, empty := h != nil && f.queue.Size() == 1, f.queue.Size() == 0
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
		p.sealAll(out, ready, now)
	}
	f.out.Store(out)
}

// sealAll sends packets of a flow whose lock is held, as is the Plane's.
func (p *Plane) sealAll(out *outbound, list []plane.Held[[]byte], now time.Time) {
	for _, h := range list {
		if pkt, err := parsePacket(h.Packet); err == nil {
			p.seal(p.flusher, out, &pkt, now)
		}
	}
	p.flusher.flush()
}

// Repeat sends again what has left in clear; see [ipsec.Dataplane].
func (p *Plane) Repeat(id uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr, ok := p.pairs[id]
	if !ok || p.closed {
		return nil
	}
	f := pr.flow
	f.mu.Lock()
	defer f.mu.Unlock()
	if out := f.out.Load(); out != nil {
		now := p.now()
		p.sealAll(out, f.queue.Repeat(now), now)
	}
	return nil
}

// expireHeld drops what waited too long, or is an old copy, and asks again for what still waits.
func (p *Plane) expireHeld(now time.Time) {
	for _, f := range p.waiting.take() {
		f.mu.Lock()
		p.counts.held.Add(uint64(len(f.queue.Expire(now))))
		still := f.queue.Size() > 0
		again := f.queue.Len() > 0 && f.queue.Due(now)
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
