package tun

import (
	"time"

	"tacit/guard"
	"tacit/ipsec"
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
		p.work.Add(1)
		go p.arm(in) // beside the path: nftables takes a millisecond, which other peers' packets need not wait
	}
	return true
}

// arm makes an inbound SA live: the first valid packet on it came. The Pair is armed before that packet reaches any
// socket, so that the very reply to it is protected (TRUST.md R10).
func (p *Plane) arm(in *inbound) {
	defer p.work.Done()
	p.mu.Lock()
	pr := in.pair
	gone := p.closed || pr.ins[in.spi] != in
	var err error
	if !gone {
		err = p.armPair(pr, in.next)
	}
	p.mu.Unlock()

	in.mu.Lock()
	waiting := in.waiting
	in.waiting, in.arming = nil, false
	if err == nil && !gone {
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
		p.log.Error("peer's first packet dropped", "peer", in.peer, "why", "cannot protect the reply", "err", err)
	default:
		p.raise(ipsec.Event{Kind: ipsec.FirstPacket, ID: pr.id, SPI: in.spi, Selector: pr.flow.selector()})
	}
}

// armPair makes out the SA that a Pair sends with, unless it has a later one, and puts protection in force. The Plane's lock
// is held. On an error nothing has changed.
func (p *Plane) armPair(pr *pair, out *outbound) error {
	f := pr.flow
	if !pr.armed {
		if err := p.enforce(f, guard.Divert, p.lasting()); err != nil {
			return err
		}
		pr.armed = true
		f.armed = append(f.armed, pr)
	}
	if pr.out == nil || out.order > pr.out.order {
		pr.out = out
	}
	p.switchTo(f, f.current())
	return nil
}

// current is the outbound SA that the flow sends with: of the armed Pairs with a peer that proved a key the newest, else the newest. A
// Pair with nobody never displaces one with somebody (TRUST.md A-19).
func (f *flow) current() *outbound {
	var out *outbound
	for i := len(f.armed) - 1; i >= 0; i-- {
		if f.armed[i].spec.Authenticated {
			return f.armed[i].out
		}
		if out == nil {
			out = f.armed[i].out
		}
	}
	return out
}

// interval is how often elements are renewed; lasting is the timeout they get, so that after our death they stand at least for linger.
func (p *Plane) interval() time.Duration { return min(10*time.Second, p.cfg.Linger/5) }

func (p *Plane) lasting() time.Duration { return p.cfg.Linger + p.interval() }

// want is the verdict that a flow's Pairs and policy ask for, and for how long. Pairs go before policies.
func (p *Plane) want(f *flow, now time.Time) (guard.Verdict, time.Duration) {
	if len(f.armed) > 0 {
		return guard.Divert, p.lasting()
	}
	left := min(f.until.Sub(now), p.lasting())
	switch {
	case left <= 0 || f.policy == ipsec.Bypass:
		return guard.Pass, 0
	case f.policy == ipsec.Block:
		return guard.Block, left
	}
	return guard.Divert, left
}

// enforce puts a verdict on a flow. On an error the old one stands.
func (p *Plane) enforce(f *flow, v guard.Verdict, timeout time.Duration) error {
	if v == guard.Pass && f.verdict == guard.Pass {
		return nil
	}
	if err := p.guard.Apply([]guard.Change{{Key: f.key, Verdict: v, Timeout: timeout}}); err != nil {
		return err
	}
	f.verdict, f.renewed = v, p.now()
	return nil
}
