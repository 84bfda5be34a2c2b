package daemon

import (
	"maps"
	"slices"
	"time"
)

// keptAtOnce is how many Pairs' counters are handed to the loop at once, and how many peers it looks after: in between it serves others.
const keptAtOnce = 256

// tick begins the second's housekeeping. The counters of the Pairs are read beside the loop: a data plane may need a system call or two for
// each, and a loop that waits for thousands of them answers nobody. A round that takes long is followed by a rest three times as long.
func (l *loop) tick(now time.Time) {
	if l.measuring || now.Before(l.measured) {
		return
	}
	l.measuring = true
	l.ids = slices.AppendSeq(l.ids[:0], maps.Keys(l.pairs))
	go func() {
		for ids := range slices.Chunk(l.ids, keptAtOnce) {
			usages := l.measure(ids)
			l.reportAndWait(func(now time.Time) { l.count(now, usages) })
		}
		var peers []*peer
		l.reportAndWait(func(now time.Time) {
			l.pardon(now)
			peers = slices.Collect(maps.Values(l.peers))
		})
		for some := range slices.Chunk(peers, keptAtOnce) {
			l.reportAndWait(func(now time.Time) { l.housekeep(now, some) })
		}
		l.report(func(done time.Time) {
			l.measuring, l.measured = false, done.Add(3*done.Sub(now)) // first: what follows may panic, and be contained
			l.packets.denials.expire(done, maxQuests)
			l.packets.watchedBefore.expire(done, maxQuests)
			l.unwatch(done)
		})
	}()
}

// measure reads the counters of Pairs. One that has gone has none. What it returns is good until the next call.
func (l *loop) measure(ids []uint32) []evUsage {
	l.usages = l.usages[:0]
	for _, id := range ids {
		if u, err := l.dp.Usage(id); err == nil {
			l.usages = append(l.usages, evUsage{id, u})
		}
	}
	return l.usages
}

// count gives the peers the counters, which may show that they live.
func (l *loop) count(now time.Time, usages []evUsage) {
	for i := range usages {
		u := &usages[i]
		if p := l.pairs[u.pair]; p != nil && p.news(u) {
			l.step(now, p, u)
			l.spoke(p, u)
		}
	}
}

// news reports whether counters say anything that the peer has not been told: most peers are silent for most of the time.
func (p *peer) news(u *evUsage) bool {
	for _, a := range p.sas {
		if a.pair.ID == u.pair && a.up {
			return u.u.Armed && !a.armed || a.usage != usage{readingOf(u.u.LastIn), readingOf(u.u.LastOut)}
		}
	}
	return false
}

// housekeep gives peers their timers, if they are there yet.
func (l *loop) housekeep(now time.Time, peers []*peer) {
	for _, p := range peers {
		if l.peers[p.key] == p {
			l.step(now, p, evTick{})
		}
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
