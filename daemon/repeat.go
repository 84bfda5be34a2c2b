package daemon

import (
	"net/netip"
	"time"

	"tacit/ike"
	"tacit/ipsec"
	"tacit/policy"
)

// What leaves in clear although the other end may refuse it (clear-or-private, with `packets = true`): the data plane keeps copies for a moment. An end that
// has dropped what came in clear, and therefore begins, says so in IKE_AUTH, or in a probe when it had begun already; then the copies leave through its SA. To one that has not said it nothing is sent twice.

const (
	watchFor    = time.Second     // an address is watched for so long, and left alone then; at most a tick longer
	refusedFor  = 3 * time.Second // that packets were dropped is worth telling for so long: as long as a data plane keeps copies
	watchedWhy  = "its class is clear-or-private"
	maxWatched  = 16384 // addresses of all loops that were, and are left alone now
	maxWatching = 4096  // addresses of a loop; the packets of more ask again
)

// watches reports whether a rule has copies kept of what leaves in clear.
func watches(r policy.Rule) bool { return r.PacketAction() == ipsec.Watch }

// watch notes that the data plane watches an address. It reports false if something else than that rule makes packets to it wait.
func (l *loop) watch(now time.Time, local, remote netip.Addr) bool {
	k := key{local, remote}
	if p := l.peers[k]; p != nil && (p.pad.Held(now) || !p.held.IsZero()) || !watches(l.d.rules.Load().ForAddr(remote)) {
		return false
	}
	w := l.packets.watched
	if _, ok := w[k]; ok || len(w) >= maxWatching {
		return true
	}
	w[k] = now
	return true
}

// unwatch leaves the addresses alone that were watched for long enough: their packets need not pass by the data plane.
func (l *loop) unwatch(now time.Time) {
	for k, since := range l.packets.watched {
		if now.Sub(since) < watchFor {
			continue
		}
		delete(l.packets.watched, k)
		r := l.d.rules.Load().ForAddr(k.remote)
		if p := l.peers[k]; !watches(r) || p != nil && len(p.sas) > 0 {
			continue
		}
		d := l.packets.watchedBefore.get(now, k.remote)
		if d == nil {
			d = &denial{addr: k.remote, why: watchedWhy, until: now.Add(mostDenial)}
			if gone := l.packets.watchedBefore.put(d); gone != nil {
				l.release(gone)
			}
		}
		l.settleFor(now, r, k.local, d, d.until)
	}
}

// watchAgain has an address watched that has an SA now: what leaves before the peer uses that, or after it has ended, may be refused.
func (l *loop) watchAgain(p *peer) {
	if d := l.packets.watchedBefore.of[p.remote]; d != nil && watches(l.d.rules.Load().ForAddr(p.remote)) {
		l.packets.watchedBefore.drop(d)
		l.release(d)
	}
}

// doRepeat: the peer has refused what left in clear, and uses its SA now.
type doRepeat struct{ pair uint32 }

func (l *loop) repeat(p *peer, a doRepeat) {
	if !watches(l.d.rules.Load().ForAddr(p.remote)) {
		return // there is another rule by now
	}
	l.jobAt(ipsec.Host(p.local, p.remote), "repeating", func() error { return l.dp.Repeat(a.pair) }, l.failed("sending again what was refused", p.remote))
}

// hearsRefusal: the peer has dropped what left in clear.
func (p *peer) hearsRefusal(sa ike.SAID) []action {
	a := p.sa(sa)
	if a == nil {
		return nil
	}
	if a.refused = true; a.up && a.armed {
		return a.repeats()
	}
	return nil
}

// repeats has it sent again, once.
func (a *association) repeats() []action {
	if !a.refused {
		return nil
	}
	a.refused = false
	return []action{doRepeat{a.pair.ID}}
}

// spokeClear: packets of the peer's came in clear and were dropped.
func (p *peer) spokeClear(now time.Time) []action {
	p.refused = at(now)
	return p.probeAll(now)
}

// provokedBy notes that such packets had its reverse zone asked.
func (p *peer) provokedBy(now time.Time, q *quest) {
	if q.provoked {
		p.refused = at(now)
	}
}

// tellsRefusal decides whether a peer is told that its packets were dropped. It must have been so with all of the last moments, or it would get twice what came
// through: so it is where the address is private, or held, and has been for as long as copies are kept.
func (l *loop) tellsRefusal(now time.Time, p *peer) bool {
	recent := func(m moment) bool { return at(now).Sub(m) < refusedFor }
	if p.refused.IsZero() || !recent(p.refused) {
		return false
	}
	private := l.d.rules.Load().ForAddr(p.remote).PacketAction() == ipsec.Hold && !recent(l.ruled)
	return private || !p.held.IsZero() && !recent(p.shut)
}
