package xfrm

import (
	"tacit/guard"
	"tacit/ipsec"
)

// firstPackets judges a packet that came out of an SA of a latched flow: which of its unheard inbound SAs carried one by now? Those
// are armed before the packet reaches any socket, so that the very reply to it is protected (TRUST.md R10).
// The Plane's lock is held.
func (p *Plane) firstPackets(q Queued) {
	f, ok := p.policies.Find(guard.Key{Own: q.Dst, Peer: q.Src})
	if ok && f.unheard > 0 {
		if err := p.listen(f); err != nil {
			p.log.Error("peer's first packet dropped", "peer", f.Key.Peer, "why", "cannot protect the reply", "err", err)
			p.verdict(q.ID, verdictDrop, 0)
			return
		}
	}
	p.verdict(q.ID, verdictAccept, 0)
}

// listen arms what was heard since the last time.
func (p *Plane) listen(f *flow) error {
	for _, pr := range append([]*pair(nil), f.all...) { // what was adopted goes meanwhile
		for _, in := range pr.ins {
			if in.heard {
				continue
			}
			s, err := p.kernel.state(in.dst, in.spi)
			if err != nil {
				return err
			}
			if s.Current.Packets == 0 {
				continue
			}
			if err := p.armPair(pr, in.next); err != nil {
				return err
			}
			if err := p.setHeard(in); err != nil {
				return err
			}
			p.run.Raise(ipsec.Event{Kind: ipsec.FirstPacket, ID: pr.id, SPI: in.spi, Selector: f.Selector()})
		}
	}
	return nil
}

// expectFirst latches the flow of an inbound SA that is about to be installed.
func (p *Plane) expectFirst(in *inbound) error {
	f := in.pair.flow
	if f.unheard == 0 {
		if err := p.policies.Guard.Latch(f.Key, p.policies.Lasting()); err != nil {
			return err
		}
	}
	f.unheard++
	return nil
}

// setHeard notes that an inbound SA was heard, or is gone. The flow's last one takes the latch off.
func (p *Plane) setHeard(in *inbound) error {
	f := in.pair.flow
	if in.heard {
		return nil
	}
	in.heard = true
	f.unheard--
	if f.unheard > 0 {
		return nil
	}
	return p.end(func() error {
		if f, ok := p.policies.Find(f.Key); ok && f.unheard > 0 {
			return nil // another came meanwhile
		}
		return p.policies.Guard.Unlatch(f.Key)
	})
}
