package tun

import (
	"errors"
	"time"

	"tacit/ipsec"
	"tacit/plane"
)

// start starts the goroutines of the path, and maintenance.
func (p *Plane) start() {
	p.run.Go(p.sendLoop)
	p.socks.each(func(s *socket) {
		if s.port == plane.PortIKE {
			p.run.Go(func() { p.ikeLoop(s) })
		} else {
			p.run.Go(func() { p.receiveLoop(s) })
		}
	})
	renewed := p.now()
	p.run.Go(func() { p.run.Maintain(func(now time.Time) { renewed = p.turn(now, renewed) }) })
}

// turn does what is due by time. An error is logged and tried again at the next turn: what stands in the kernel lasts for longer
// than several turns.
func (p *Plane) turn(now, renewed time.Time) time.Time {
	p.expireHeld(now)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return renewed
	}
	var errs []error
	for _, f := range p.policies.Due(now) {
		errs = append(errs, p.policies.Clear(f.Selector()))
	}
	errs = append(errs, p.policies.RenewDue(now))
	if now.Sub(renewed) >= p.policies.Interval() {
		p.refreshMTU(renewed)
		renewed = now
		errs = append(errs, p.policies.RenewRules())
	}
	errs = append(errs, p.policies.FollowGateways(now))
	fresh, err := p.policies.WatchClear()
	for _, s := range fresh {
		p.run.Raise(ipsec.Event{Kind: ipsec.ClearSeen, Selector: s})
	}
	if err := errors.Join(append(errs, err)...); err != nil {
		p.log.Error("maintenance", "err", err)
	}
	return renewed
}

// refreshMTU follows the path's MTU, which ICMP may have lowered, of Pairs that were sent with since a time: it takes some system calls for each.
func (p *Plane) refreshMTU(since time.Time) {
	for _, pr := range p.pairs {
		if pr.out == nil || pr.out.sock == nil || pr.lastOut.Load() < since.UnixNano() {
			continue
		}
		if mtu := p.probe.mtu(pr.remote.Addr()); int32(mtu) != pr.out.mtu {
			next := &outbound{pair: pr, order: pr.out.order, spi: pr.out.spi, sealer: pr.out.sealer, expire: pr.out.expire, tunnel: pr.out.tunnel}
			p.address(next, pr.spec())
			for _, in := range pr.ins {
				if in.next == pr.out {
					in.next = next
				}
			}
			pr.out = next
			p.switchTo(pr.flow, pr.flow.current())
		}
	}
}
