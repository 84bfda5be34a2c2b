package tun

import (
	"net/netip"
	"sync"
	"time"

	"tacit/guard"
	"tacit/plane"
)

// unknown holds the flows that the packet path makes: of addresses that only a rule of prefixes concerns. They are few, and go with their
// packets, or become those of a Pair or a policy.
type unknown struct {
	mu    sync.Mutex // taken by the packet path for packets of such addresses, by newFlow, and by maintenance
	flows map[addrKey]*flow
}

// meet finds or makes the flow of an unknown address. It counts the packet and returns nil if that is to be dropped, or has left in clear since it is watched and
// there are enough copies.
func (p *Plane) meet(pkt *packet) *flow {
	key, peer := addrKey{pkt.src, pkt.dst}, netip.AddrFrom16(pkt.dst).Unmap()
	p.unknown.mu.Lock()
	defer p.unknown.mu.Unlock()
	if f, ok := p.flows.get(key); ok { // since we looked
		return f
	}
	if f, ok := p.unknown.flows[key]; ok {
		return f
	}
	fate := p.policies.Rules.Fate(peer)
	switch {
	case fate == plane.Copy && len(p.unknown.flows) >= plane.CopyAddresses:
		p.sendClear(pkt.data)
		return nil
	case fate != plane.Copy && fate != plane.Wait:
		p.counts.stray.Add(1)
		return nil
	case len(p.unknown.flows) >= plane.HoldAddresses:
		p.counts.crowded.Add(1)
		return nil
	}
	f := p.makeFlow(guard.Key{Own: netip.AddrFrom16(pkt.src).Unmap(), Peer: peer})
	f.queue.Settle(fate, time.Time{}, plane.Drop)
	if p.unknown.flows == nil {
		p.unknown.flows = make(map[addrKey]*flow)
	}
	p.unknown.flows[key] = f
	return f
}

func (p *Plane) makeFlow(k guard.Key) *flow {
	return &flow{Flow: plane.Flow{Key: k}, plane: p, queue: plane.Queue[[]byte]{Budget: &p.budget, Copies: &p.copies}}
}

// newFlow makes a flow, which the path finds from now on; or takes the one over that the path made, with its packets.
func (p *Plane) newFlow(k guard.Key) *flow {
	key := keyOf(k.Own, k.Peer)
	p.unknown.mu.Lock()
	defer p.unknown.mu.Unlock()
	f, ok := p.unknown.flows[key]
	if !ok {
		f = p.makeFlow(k)
		f.queue.Settle(p.policies.FateOf(&f.Flow)) // before the path finds it
	}
	delete(p.unknown.flows, key)
	p.flows.put(key, f)
	return f
}

// forget takes a flow out of the path's table. While packets wait in it because of a rule, or copies are kept, it is an unknown one again.
func (p *Plane) forget(f *flow) {
	key := keyOf(f.Key.Own, f.Key.Peer)
	p.unknown.mu.Lock()
	defer p.unknown.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.queue.Size() > 0 && len(p.unknown.flows) < plane.HoldAddresses {
		if p.unknown.flows == nil {
			p.unknown.flows = make(map[addrKey]*flow)
		}
		p.unknown.flows[key] = f
	}
	p.flows.remove(key)
}

// leave takes out a flow that has no packets any more, and no copies.
func (u *unknown) leave(f *flow) {
	key := keyOf(f.Key.Own, f.Key.Peer)
	u.mu.Lock()
	defer u.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if u.flows[key] == f && f.queue.Size() == 0 {
		delete(u.flows, key)
	}
}

// judge decides anew over what waits, under other rules.
func (u *unknown) judge(rules *plane.Rules) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for key, f := range u.flows {
		switch fate := rules.Fate(f.Key.Peer); fate {
		case plane.Wait, plane.Copy:
			f.Settle(fate, time.Time{}, plane.Drop)
		default:
			delete(u.flows, key)
			f.Settle(fate, time.Time{}, plane.Drop)
			f.Settle(plane.Drop, time.Time{}, plane.Drop)
		}
	}
}
