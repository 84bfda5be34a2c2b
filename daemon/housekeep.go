package daemon

import (
	"maps"
	"slices"
	"time"
)

// tick begins the second's housekeeping. The counters of the Pairs are read beside the loop: a data plane may need a system call or two for
// each, and a loop that waits for thousands of them answers nobody. A round that takes long is followed by a rest three times as long.
func (l *loop) tick(now time.Time) {
	if l.measuring || now.Before(l.measured) {
		return
	}
	l.measuring = true
	ids := slices.Collect(maps.Keys(l.pairs))
	go func() {
		usages := l.measure(ids)
		l.report(func(done time.Time) {
			l.measuring, l.measured = false, done.Add(3*done.Sub(now))
			l.housekeep(done, usages)
		})
	}()
}

// measure reads the counters of Pairs. One that has gone has none.
func (l *loop) measure(ids []uint32) []evUsage {
	usages := make([]evUsage, 0, len(ids))
	for _, id := range ids {
		if u, err := l.dp.Usage(id); err == nil {
			usages = append(usages, evUsage{id, u})
		}
	}
	return usages
}

// housekeep gives the peers the counters, which may show that they live, and then their timers.
func (l *loop) housekeep(now time.Time, usages []evUsage) {
	for _, u := range usages {
		if p := l.pairs[u.pair]; p != nil {
			l.step(now, p, u)
			l.spoke(p, u)
		}
	}
	for _, p := range l.peers {
		l.step(now, p, evTick{})
	}
}

// spoke tells the engine of ESP that has left: a NAT that has seen it needs no keepalive.
func (l *loop) spoke(p *peer, u evUsage) {
	for id, a := range p.sas {
		if a.up && a.pair.ID == u.pair {
			l.engine.Spoke(id, u.u.LastOut)
		}
	}
}
