package tun

import (
	"errors"
	"time"

	"tacit/guard"
	"tacit/ipsec"
)

// tick is how often maintenance looks: at packets that wait, at policies that ended, at clear packets that were dropped.
const tick = 250 * time.Millisecond

// start starts the goroutines of the path, and maintenance.
func (p *Plane) start() {
	run := func(f func()) {
		p.work.Add(1)
		go func() {
			defer p.work.Done()
			f()
		}()
	}
	run(p.sendLoop)
	p.socks.each(func(s *socket) {
		if s.port == portIKE {
			run(func() { p.ikeLoop(s) })
		} else {
			run(func() { p.receiveLoop(s) })
		}
	})
	run(p.maintain)
}

// errorPause keeps a loop whose socket or device has failed for good from turning fast.
const errorPause = 5 * time.Millisecond

// stopping is asked after an error: it reports whether the Plane was closed, and otherwise waits a little.
func (p *Plane) stopping() bool {
	select {
	case <-p.done:
		return true
	case <-time.After(errorPause):
		return false
	}
}

// maintain does what is due by time, until the Plane is closed. An error is logged and tried again at the next turn: what stands in
// the kernel lasts for longer than several turns.
func (p *Plane) maintain() {
	timer := time.NewTicker(tick)
	defer timer.Stop()
	renewed := p.now()
	for {
		select {
		case <-p.done:
			return
		case <-timer.C:
		}
		now := p.now()
		p.expireHeld(now)
		due := now.Sub(renewed) >= p.interval()
		if due {
			renewed = now
		}
		p.mu.Lock()
		if !p.closed {
			if err := p.turn(now, due); err != nil {
				p.log.Error("maintenance", "err", err)
			}
		}
		p.mu.Unlock()
	}
}

// turn is one turn of maintenance under the lock.
func (p *Plane) turn(now time.Time, renew bool) error {
	errs := []error{p.endPolicies(now)}
	if renew {
		errs = append(errs, p.renew(now, p.interval()))
		p.refreshMTU()
	}
	return errors.Join(append(errs, p.watchClear())...)
}

// endPolicies ends those whose time is over. The kernel's elements end by themselves at the same time.
func (p *Plane) endPolicies(now time.Time) error {
	var errs []error
	for key, f := range p.all {
		if !f.until.IsZero() && !now.Before(f.until) {
			errs = append(errs, p.clearPolicy(key))
		}
	}
	return errors.Join(errs...)
}

// renew gives every element its time anew, in one transaction. extra is added to linger.
func (p *Plane) renew(now time.Time, extra time.Duration) error {
	var changes []guard.Change
	for key, f := range p.all {
		verdict, timeout := p.want(f, now)
		if verdict == guard.Pass {
			continue
		}
		changes = append(changes, guard.Change{Key: key, Verdict: verdict, Timeout: min(timeout, p.cfg.Linger+extra)})
		f.verdict, f.renewed = verdict, now
	}
	return p.guard.Apply(changes)
}

// refreshMTU follows the path's MTU, which ICMP may have lowered.
func (p *Plane) refreshMTU() {
	for _, pr := range p.pairs {
		if pr.out == nil {
			continue
		}
		if mtu := p.probe.mtu(pr.spec.Remote.Addr()); mtu != pr.out.mtu {
			next := &outbound{pair: pr, order: pr.out.order, spi: pr.out.spi, sealer: pr.out.sealer, expire: pr.out.expire, tunnel: pr.out.tunnel}
			p.address(next, pr.spec)
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

// watchClear raises ClearSeen for peers whose clear packets were dropped since the last turn.
func (p *Plane) watchClear() error {
	seen, err := p.guard.Seen()
	if err != nil {
		return err
	}
	for _, s := range seen {
		f, ok := p.all[s.Key]
		if !ok {
			continue
		}
		last := f.lastClear.Swap(s.Packets)
		if s.Packets < last {
			last = 0 // the kernel's counter began anew
		}
		if s.Packets > last {
			f.clearDropped.Add(s.Packets - last)
			p.raise(ipsec.Event{Kind: ipsec.ClearSeen, Selector: f.selector()})
		}
	}
	return nil
}
