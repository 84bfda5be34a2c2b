package daemon

import (
	"encoding/binary"
	"maps"
	"slices"
	"sync"
	"time"

	"tacit/wheel"
)

// keptAtOnce is how many Pairs' counters are handed to the loop at once, and how many peers it looks after: in between it serves others.
const keptAtOnce = 256

// used are the Pairs whose counters may have changed, by the loop that they are of: the data plane tells of all at once.
type used struct {
	mu sync.Mutex
	of []map[uint32]bool
}

// usedBy takes those of a loop.
func (s *shared) usedBy(loop int) []uint32 {
	s.used.mu.Lock()
	defer s.used.mu.Unlock()
	for _, id := range s.dp.Used() {
		s.used.of[int(id)%len(s.used.of)][id] = true
	}
	ids := slices.Collect(maps.Keys(s.used.of[loop]))
	clear(s.used.of[loop])
	return ids
}

// readSoon has the counters of a peer's Pairs read in the next round, though nobody uses them: of one that has just come up, or has taken another's place, nothing that
// was said before was heeded.
func (l *loop) readSoon(p *peer) {
	l.used.mu.Lock()
	defer l.used.mu.Unlock()
	for _, a := range p.sas {
		if a.up {
			l.used.of[l.shard][a.pair.ID] = true
		}
	}
}

// tick begins the second's housekeeping: of the Pairs that were used, and of the peers whose turn it is. The counters of the Pairs are read beside the loop: a data plane may
// need a system call or two for each, and a loop that waits for thousands of them answers nobody. A round that takes long is followed by a rest three times as long.
func (l *loop) tick(now time.Time) {
	if l.measuring || now.Before(l.measured) {
		return
	}
	l.measuring = true
	go func() {
		for ids := range slices.Chunk(l.usedBy(l.shard), keptAtOnce) {
			usages := l.measure(ids)
			l.reportAndWait(func(now time.Time) { l.count(now, usages) })
		}
		var peers []*peer
		l.reportAndWait(func(now time.Time) {
			l.pardon(now)
			peers = l.rota.Due(now)
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
			if !p.calm(now) {
				l.rota.Set(p, now, now) // in this very round
			}
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

// calmTicks is how seldom a peer is looked after of which nothing is expected. Some are more often, by their address and the time: those that have begun
// together do not stay so. Where linger is short it is less. What ends by itself has a time of its own in turn.
const (
	calmTicks = 128
	calmPart  = 2 // of linger
)

// Place is for the wheel of the housekeeping.
func (p *peer) Place() *wheel.Place { return &p.stop }

// turn is when the peer wants to be looked after, if no event comes before. Most peers are calm: a hundred thousand of them are hardly noticed.
func (p *peer) turn(now time.Time) time.Time {
	soon := now.Add(tick)
	if !p.calm(now) {
		return soon
	}
	a := p.remote.As16()
	address := binary.BigEndian.Uint64(a[:8]) ^ binary.BigEndian.Uint64(a[8:])
	calmly := min(calmTicks*tick, p.linger/calmPart)
	if at(now).Sub(p.talked(now)) < calmTicks*tick { // soon again, probably; and who has no SA has only places to give back
		calmly = min(calmly, calmTicks*tick/4)
	}
	then := at(now).Add(calmly - time.Duration(mixed(address^uint64(at(now)/moment(tick))<<32)%uint64(calmly/2)))
	if end := p.pad.StandsUntil(); !end.IsZero() {
		then = min(then, momentOf(now, end))
	}
	unnamed := p.pad.Lame(now)
	if unnamed != (p.state == lame) && p.authenticated() != nil {
		return soon
	}
	if p.state == lame {
		then = min(then, p.since.Add(p.renew))
	}
	for _, a := range p.sas {
		if a.initiator {
			then = min(then, a.renew)
		}
		if a.key == nil || unnamed {
			then = min(then, a.talked(now).Add(p.linger))
		}
		if unnamed && !a.asked.IsZero() {
			then = min(then, a.asked.Add(askedAgain))
		}
	}
	return timeOf(now, max(then, at(soon)))
}

// talked is when a packet came or left last, or the Child SA came up.
func (a *association) talked(now time.Time) moment {
	in, out := a.usage.moments(now)
	return max(a.since, in, out)
}

// silent reports whether a packet has left since the peer was heard, and when that was.
func (a *association) silent(now time.Time) (heard moment, silent bool) {
	in, out := a.usage.moments(now)
	heard = max(a.since, a.heard, in)
	return heard, out.After(heard)
}

// talked is that of its SAs; of a peer without any, now.
func (p *peer) talked(now time.Time) (last moment) {
	if len(p.sas) == 0 {
		return at(now)
	}
	for _, a := range p.sas {
		last = max(last, a.talked(now))
	}
	return last
}

// mixed is a number without a pattern for each (S. Vigna, splitmix64).
func mixed(n uint64) uint64 {
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// quiet reports whether the peer may be forgotten.
func (p *peer) quiet(now time.Time) bool {
	return p.pad.Expire(now) && !p.anybody.counts(now) && p.state == idle && p.attempt == nil && len(p.sas) == 0 && len(p.waiting) == 0 && p.held.IsZero()
}

// calm reports whether a tick can do nothing before an event comes, or an end that has no hurry.
func (p *peer) calm(now time.Time) bool {
	switch {
	case p.attempt != nil, len(p.waiting) > 0, len(p.anybody.waiting) > 0, !p.contested.IsZero(), !p.parting.IsZero(), !p.held.IsZero(), now.Before(p.broken):
		return false
	case !p.latch.doubted.IsZero(), p.latch.sever, len(p.latch.knocks) > 0:
		return false
	}
	for _, a := range p.sas {
		_, silent := a.silent(now)
		if !a.up || a.deleting || a.parted || !a.armed && !a.checked || !a.probed.IsZero() || silent {
			return false
		}
	}
	return true
}

// spoke tells the engine of ESP that has left: a NAT that has seen it needs no keepalive.
func (l *loop) spoke(p *peer, u *evUsage) {
	for _, a := range p.sas {
		if a.up && a.pair.ID == u.pair {
			l.engine.Spoke(a.id, u.u.LastOut)
		}
	}
}
