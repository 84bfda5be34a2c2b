package ike

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"tacit/ike/wire"
)

// ErrReplaced says that a newer IKE SA of the same peer has taken the place.
var ErrReplaced = errors.New("replaced by a newer one of the same peer")

// Who is authenticated, or allowed not to be, has his budget too (TRUST.md A-23).
const (
	requestBurst = 64                     // requests on an IKE SA that are served at once
	requestEvery = 100 * time.Millisecond // and then one in so much time
)

// contactAge protects an IKE SA from INITIAL_CONTACT: both ends may have initiated at once (RFC 7296, 2.4).
const contactAge = 10 * time.Second

// pairOfHosts is what counts as one peer: an address of its at one of ours. A host that keys each of our addresses is as many peers, and so are those
// behind a NAT: each is at the address that we have assigned to it.
type pairOfHosts struct{ local, remote netip.Addr }

func (s *sa) hosts() pairOfHosts {
	remote := s.remote.Addr().Unmap().WithZone("")
	if s.lodges() {
		remote = s.inner.theirs
	}
	return pairOfHosts{s.local.Addr().Unmap(), remote}
}

// join notes an IKE SA that is established now, and ends one of the same peer if it has asked for too many: the oldest of nobody, else
// the oldest.
func (e *Endpoint) join(s *sa) {
	s.since, s.hostPair = e.now, s.hosts()
	e.peers[s.hostPair] = append(e.peers[s.hostPair], s)
	e.cfg.Census.Count(network(s.origin), Tally{Open: +1})
	var asked, first, nobody *sa
	n := 0
	for _, x := range e.peers[s.hostPair] {
		if !x.guest || !x.open() && x != s {
			continue
		}
		n++
		if asked = x; first == nil {
			first = x
		}
		if nobody == nil && x.key == nil {
			nobody = x
		}
	}
	if n <= e.cfg.MaxPerPeer || asked != s {
		return
	}
	old := first
	if nobody != nil && nobody != s {
		old = nobody
	}
	e.drop("too-many-of-a-peer")
	e.depart(old)
	old.reject(ErrReplaced, bye())
	e.schedule(old)
}

// depart is join's opposite.
func (e *Endpoint) depart(s *sa) {
	if !s.hostPair.remote.IsValid() {
		return
	}
	left := slices.DeleteFunc(e.peers[s.hostPair], func(x *sa) bool { return x == s })
	if len(left) == 0 {
		delete(e.peers, s.hostPair)
	} else {
		e.peers[s.hostPair] = left
	}
	e.cfg.Census.Count(network(s.origin), Tally{Open: -1})
	s.hostPair = pairOfHosts{}
}

// rejoin lets t stand in the place of s: it is no younger, and has no new budget.
func (e *Endpoint) rejoin(s, t *sa) {
	since := s.since
	e.depart(s)
	e.join(t)
	t.since, t.spent = since, s.spent
}

// spend takes one request from the budget of the SA, and reports whether there was one.
func (s *sa) spend() bool {
	full := s.e.now.Add(-requestBurst * requestEvery)
	if s.spent.Before(full) {
		s.spent = full
	}
	if s.e.now.Sub(s.spent) < requestEvery {
		return false
	}
	s.spent = s.spent.Add(requestEvery)
	return true
}

// onInitialContact ends the other IKE SAs of the peer, on its word that it has none (RFC 7296, 2.4). That word counts for its own name,
// key and address only (TRUST.md A-54), so nobody's counts for nothing (RFC 7619).
func (s *sa) onInitialContact(ps []wire.Payload) {
	if notify(ps, wire.InitialContact) == nil {
		return
	}
	for _, x := range slices.Clone(s.e.peers[s.hosts()]) {
		same := x.remoteID == s.remoteID && sameKey(x.key, s.key)
		if x == s || !same || !x.open() || s.e.now.Sub(x.since) < contactAge {
			continue
		}
		x.fail(ErrReplaced)
		s.e.schedule(x)
	}
}
