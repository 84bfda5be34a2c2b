package daemon

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"tacit/pad"
)

// An SA is of one of our own addresses; that an address proved its key counts for all of them. A program may send from another one,
// and ours change: no packet of this host goes to the address in clear (TRUST.md I1), so the others are held, and get SAs of their own when
// something is sent from them.

// evElsewhere: the address proved its key at another of our addresses.
type evElsewhere struct {
	at   time.Time
	key  pad.Key
	last pad.Claim
}

// elsewhere takes the proof over: settle holds the address, and what nobody's key is behind ends.
func (p *peer) elsewhere(e evElsewhere) (do []action) {
	p.pad.Elsewhere(e.at, e.key)
	if k, _, _ := p.pad.Key(); k.ID == e.key.ID {
		p.claimed(e.last)
	}
	for _, a := range p.sas {
		if a.key == nil {
			p.ending = "the address has proved a key at another of our addresses"
			do = append(do, p.dismiss(a)...)
		}
	}
	return do
}

// spread tells the peers at our other addresses of a proof, and reports whether there are any whose hold is still being set. It does so when the
// proof has become a good deal newer, or our addresses have changed.
func (l *loop) spread(now time.Time, p *peer) bool {
	k, at, ok := p.pad.Key()
	if !ok || !p.pad.Held(now) || p.last.Name == "" || !p.proves(k) || p.outer.IsValid() { // what is assigned is so by one of our addresses
		return false
	}
	env := l.d.host.environment()
	if at.Sub(p.spreadAt) < p.linger/10 && p.spreadTo == env {
		return false
	}
	p.spreadAt, p.spreadTo = at, env
	// Until the next time a proof may be newer by a tenth of linger: the others are held for that much longer.
	return l.tell(now, p, env, evElsewhere{at.Add(p.linger / 10), k, *p.last})
}

// tell tells the peers at our other addresses, and reports whether there are any.
func (l *loop) tell(now time.Time, p *peer, env *pad.Environment, e evElsewhere) (told bool) {
	for _, own := range env.Own {
		if !speaks(own, p.remote) || own == p.local {
			continue
		}
		if q := l.peerOf(now, own, p.remote); q != nil {
			l.step(now, q, e)
			told = true
		}
	}
	return told
}

// readdress has addresses that this host has got held as its others are: at once, for its programs may send from them. The peer of an
// address that it has left has a proof without an SA, or had that from another in its turn: it counts for as long as it did.
func (l *loop) readdress(now time.Time) {
	env := l.d.host.environment()
	for _, p := range slices.Collect(maps.Values(l.peers)) { // more of them come
		l.spread(now, p)
		if k, at, ok := p.pad.Key(); ok && p.pad.Held(now) && p.last.Name != "" && !p.proves(k) {
			l.tell(now, p, env, evElsewhere{at, k, *p.last})
		}
	}
}

// proves reports whether an SA of this peer, not of a sibling, stands behind the proof.
func (p *peer) proves(k pad.Key) bool {
	for _, a := range p.sas {
		if a.key != nil && k.Is(a.key) {
			return true
		}
	}
	return false
}

// speaks reports whether packets to the remote address can come from an address of ours.
func speaks(own, remote netip.Addr) bool {
	return own.Is4() == remote.Is4() && !own.IsLoopback() && !own.IsLinkLocalUnicast() && !own.IsMulticast()
}
