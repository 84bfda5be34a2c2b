package daemon

import (
	"context"
	"net/netip"
	"time"

	"tacit/pad"
	"tacit/policy"
)

// Room for the peers that we want, where strangers have taken all of it (TRUST.md R8, A-51).

const looked = 256 // peers that are looked at for one that can go

// spare is how many peers may be there beyond the most of the configuration, while those end that made room.
func spare(most int) int { return max(8, most/64) }

// wanted has f run in the loop of a peer that this host has asked for, with nil if there is no room, unless ctx has ended. When there are too many, one that serves
// nobody in particular goes for it, of the same loop or else of any: the places are everybody's, and strangers who came at once may have left theirs in one loop.
func (s *shards) wanted(ctx context.Context, local, remote netip.Addr, f func(now time.Time, l *loop, p *peer)) error {
	l := s.of(remote)
	return l.post(ctx, func(now time.Time) {
		p := l.peerOf(now, local, remote)
		if p == nil && l.makeRoom(now) {
			p = l.peerInSpare(now, local, remote)
		}
		if p != nil {
			f(now, l, p)
			return
		}
		k := key{local, remote}
		if l.seeking[k] = append(l.seeking[k], func(now time.Time, p *peer) {
			if ctx.Err() == nil {
				f(now, l, p)
			}
		}); len(l.seeking[k]) == 1 {
			go s.seek(ctx, l, k)
		}
	})
}

// seek has another loop make room for a peer, once for all who want it, and runs what they want of it.
func (s *shards) seek(ctx context.Context, l *loop, k key) {
	made := s.roomBeside(ctx, l)
	_ = l.post(context.WithoutCancel(ctx), func(now time.Time) {
		p := l.peerOf(now, k.local, k.remote)
		if p == nil && made {
			p = l.peerInSpare(now, k.local, k.remote)
		}
		all := l.seeking[k]
		delete(l.seeking, k)
		for _, f := range all {
			f(now, p)
		}
	})
}

// roomBeside has one of the other loops make room, and reports whether one could.
func (s *shards) roomBeside(ctx context.Context, l *loop) bool {
	for _, other := range s.loops {
		if ctx.Err() != nil { // nobody is to go for who has given up
			return false
		}
		var made bool
		if other != l && other.ask(ctx, func(now time.Time) { made = ctx.Err() == nil && other.makeRoom(now) }) == nil && made {
			return true
		}
	}
	return false
}

// peerInSpare is peerOf where somebody has just made room, and may not be gone yet.
func (l *loop) peerInSpare(now time.Time, local, remote netip.Addr) *peer {
	most := l.d.cfg.File.MaxPeers
	return l.peerUpTo(now, local, remote, most+spare(most))
}

// makeRoom ends the SAs of the idlest of some peers: a map yields them in no order. It reports whether one could go.
func (l *loop) makeRoom(now time.Time) bool {
	var idlest *peer
	var since moment
	rules, n := l.d.rules.Load(), 0
	for _, p := range l.peers {
		if n++; n > looked {
			break
		}
		if when, ok := p.idle(now); ok && (idlest == nil || when.Before(since)) && rules.ForAddr(p.place()).Class != policy.Private {
			idlest, since = p, when
		}
	}
	if idlest == nil {
		return false
	}
	l.step(now, idlest, evRoom{})
	return true
}

// evRoom: the peer's place is needed.
type evRoom struct{}

// giveWay ends all SAs of the peer. One without any is forgotten at once.
func (p *peer) giveWay() (do []action) {
	if p.bare() {
		p.pad, p.anybody = pad.NewAddress(p.linger), nobodyAsked
		return nil
	}
	p.ending = "its place was needed, and nobody used it"
	for _, a := range p.live() {
		do = append(do, p.dismiss(a)...)
	}
	return do
}

// bare reports whether nothing stands on the address: of such a peer it is only remembered what it refused.
func (p *peer) bare() bool {
	return len(p.sas) == 0 && p.state == idle && p.held.IsZero() && p.latch == noLatch
}

// idle says since when a peer has not been used that nobody stands behind, and whether that is long enough: all of its SAs are nobody's, if it has any, and
// nothing is asked of it.
func (p *peer) idle(now time.Time) (since moment, ok bool) {
	if p.pad.Live() || p.pad.Held(now) || p.attempt != nil || len(p.waiting) > 0 || len(p.anybody.waiting) > 0 {
		return since, false
	}
	if p.bare() {
		return p.since, !p.quiet(now) // else it is about to be asked
	}
	n := 0
	for _, a := range p.live() {
		if a.key != nil || a.deleting {
			return since, false
		}
		n++
		in, out := a.usage.moments(now)
		since = max(since, a.since, in, out)
	}
	return since, n > 0 && at(now).Sub(since) >= armedWithin
}
