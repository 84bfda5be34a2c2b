package daemon

import "time"

// tick begins the second's housekeeping. The counters of the Pairs are read beside the loop: a data plane may need a system call or two for
// each, and a loop that waits for thousands of them answers nobody. A round that takes long is followed by a rest three times as long.
func (l *loop) tick(now time.Time) {
	if l.measuring || now.Before(l.measured) {
		return
	}
	l.measuring = true
	usages := l.usages[:0]
	for id := range l.pairs {
		usages = append(usages, evUsage{pair: id})
	}
	l.usages = usages
	go func() {
		usages := l.measure(usages)
		l.report(func(done time.Time) {
			l.measuring, l.measured = false, done.Add(3*done.Sub(now))
			l.housekeep(done, usages)
		})
	}()
}

// measure reads the counters of Pairs, in their place. One that has gone has none.
func (l *loop) measure(usages []evUsage) []evUsage {
	n := 0
	for _, e := range usages {
		if u, err := l.dp.Usage(e.pair); err == nil {
			usages[n] = evUsage{e.pair, u}
			n++
		}
	}
	return usages[:n]
}

// housekeep gives the peers the counters, which may show that they live, and then their timers.
func (l *loop) housekeep(now time.Time, usages []evUsage) {
	for i := range usages {
		u := &usages[i]
		if p := l.pairs[u.pair]; p != nil {
			l.step(now, p, u)
			l.spoke(p, u)
		}
	}
	l.packets.denials.expire(now, maxQuests)
	for _, p := range l.peers {
		l.step(now, p, evTick{})
	}
}

// spoke tells the engine of ESP that has left: a NAT that has seen it needs no keepalive.
func (l *loop) spoke(p *peer, u *evUsage) {
	for _, a := range p.sas {
		if a.up && a.pair.ID == u.pair {
			l.engine.Spoke(a.id, u.u.LastOut)
		}
	}
}
