package tun

import (
	"tacit/ipsec"
	"tacit/plane"
)

// maxLatched bounds the packets of an SA that wait while its first one arms the Pair.
const maxLatched = 512

// latch keeps a packet back until its SA is live, and starts that if nobody has. It reports false if the SA is live by now.
// A nil packet only arms.
func (p *Plane) latch(in *inbound, buf []byte) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.live.Load() {
		return false
	}
	if buf != nil && len(in.waiting) < maxLatched {
		in.waiting = append(in.waiting, append([]byte(nil), buf...))
	}
	if !in.arming {
		in.arming = true
		p.run.Go(func() { p.arm(in) }) // beside the path: nftables takes a millisecond, which other peers' packets need not wait
	}
	return true
}

// arm makes an inbound SA live: the first valid packet on it came. The Pair is armed before that packet reaches any
// socket, so that the very reply to it is protected (TRUST.md R10).
func (p *Plane) arm(in *inbound) {
	p.mu.Lock()
	pr := in.pair
	gone := p.closed || pr.inbound(in.spi) != in
	var err error
	if !gone {
		err = p.armPair(pr, in.next)
	}
	p.addressed(in.next)
	limit := in.next.mss
	p.mu.Unlock()

	in.mu.Lock()
	waiting := in.waiting
	in.waiting, in.arming = nil, false
	if err == nil && !gone {
		in.mss = limit
		for _, buf := range waiting {
			if pkt, err := parsePacket(buf[deviceOffset:]); err == nil {
				clampMSS(&pkt, limit)
			}
		}
		if len(waiting) > 0 {
			if _, e := p.dev.Write(waiting, deviceOffset); e != nil {
				p.counts.deviceErrors.Add(1)
			}
		}
		in.live.Store(true)
	}
	in.mu.Unlock()
	switch {
	case gone:
	case err != nil:
		p.log.Error("peer's first packet dropped", "peer", pr.flow.Key.Peer, "why", "cannot protect the reply", "err", err)
	default:
		p.run.Raise(ipsec.Event{Kind: ipsec.FirstPacket, ID: pr.id, SPI: in.spi, Selector: pr.flow.Selector()})
	}
}

// armPair makes out the SA that a Pair sends with, unless it has a later one, and puts protection in force. The Plane's lock
// is held. On an error nothing has changed.
func (p *Plane) armPair(pr *pair, out *outbound) error {
	if pr.parting {
		return nil
	}
	f := pr.flow
	if !pr.armed {
		if err := p.policies.Enforce(f, true); err != nil {
			return err
		}
		pr.armed = true
		p.wasUsed(pr)
	}
	f.armed = append(plane.Without(f.armed, pr), pr)
	if pr.out == nil || out.order > pr.out.order {
		pr.out = out
	}
	p.switchTo(f, f.current())
	return nil
}

// current is the outbound SA that the flow sends with.
func (f *flow) current() *outbound {
	best, ok := plane.Prefer(f.armed, func(pr *pair) bool { return pr.authenticated })
	if !ok {
		return nil
	}
	return best.out
}
