package ike

import (
	"bytes"
	"crypto"
	"net/netip"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// Both ends may begin at once, and then there are two IKE SAs where one would do. No RFC says which of them goes. Here both are kept for
// a while, so that nothing depends on the order of messages; then the one in whose IKE_SA_INIT the lowest of the four nonces is
// ends, and the end that began it deletes it, as RFC 7296, 2.8.1 has it for rekeys. Before that both ends send with the other.
//
// Who is no tacit does not know that rule, and deletes neither. Then the one ends that was finished first: others take the last one for
// theirs. When that ends, libreswan begins again, and openiked takes away the policies of both.

const (
	youngFor = 10 * time.Second // from established to when the loser goes
	patient  = 20 * time.Second // longer than that we wait for a peer that does not delete its own
)

// youngKey finds the SA that crosses another: that with the same peer and the other role.
type youngKey struct {
	remote    netip.Addr
	initiator bool
}

// crossing is what an SA keeps while it is young, and a loser until it ends.
type crossing struct {
	key   youngKey
	low   []byte // the lower nonce of its IKE_SA_INIT
	done  moment // when the peer had it, as much earlier as a message takes to it
	twin  *sa    // what it has lost against
	ours  bool   // a loser: we are to end it
	left  bool   // a loser: the other was preferred, and a data plane takes a moment for that; then the peer, who may forget this one at once, is told
	at    moment
	alone bool // the one that it has won against is gone, and was no tacit's
}

// remember keeps the nonces of an SA that has just been authenticated, if we may have begun one with the same peer.
func (s *sa) remember() {
	s.named = s.hs.auths.local.Kind != wire.IDNull
	if s.lodges() { // others are behind the same address
		return
	}
	c := &crossing{key: youngKey{s.remote.Addr(), s.initiator}, low: bytes.Clone(lower(s.hs.ni, s.hs.nr)), done: s.e.now, at: s.e.now.Add(youngFor)}
	if s.initiator { // the peer had it when it answered
		c.done = c.done.Add(-s.hs.rtt)
	}
	s.family().cross = c
}

// meet looks, when the first Child SA is up, for an SA that crosses this one.
func (s *sa) meet() {
	if s.kin == nil || s.kin.cross == nil {
		return
	}
	c := s.kin.cross
	s.e.young[c.key] = s
	o := s.e.young[youngKey{c.key.remote, !c.key.initiator}]
	if o == nil || !o.open() || o.quiet {
		return
	}
	loser, winner := s, o
	first, ruled := bytes.Compare(c.low, o.kin.cross.low) < 0, s.token != nil && o.token != nil // between tacits
	if !ruled {
		first = c.done.Before(o.kin.cross.done)
	}
	if !first {
		loser, winner = o, s
	}
	l := loser.kin.cross
	l.twin, l.ours, l.at = winner, l.key.initiator || !ruled, s.e.now.Add(youngFor)
	if !l.ours {
		l.at = l.at.Add(patient)
	}
	if loser != s {
		s.e.schedule(loser)
	}
}

// reconsiderDue is when the SA is not young any more.
func (s *sa) reconsiderDue() moment {
	if !s.open() || s.kin == nil || s.kin.cross == nil {
		return 0
	}
	return s.kin.cross.at
}

// matured forgets an SA that was young. Maps keep their room: when thousands have come at once and all are older now, the map goes too.
func (e *Endpoint) matured(k youngKey, s *sa) {
	if e.young[k] == s {
		delete(e.young, k)
	}
	if len(e.young) == 0 {
		e.young = map[youngKey]*sa{}
	}
}

// reconsider ends a loser, and forgets the nonces of the others.
func (s *sa) reconsider() {
	if !due(s.reconsiderDue(), s.e.now) {
		return
	}
	c := s.kin.cross
	s.e.matured(c.key, s)
	switch {
	case s.covered() && !c.left:
		s.prefer()
		c.left, c.at = true, s.e.now.Add(retireAfter)
	case s.covered():
		c.at = 0
		s.out.wantDelete = true
		if w := c.twin.latest(); s.token == nil || w.token == nil {
			w.outlived()
		}
	case *s.kin == kin{cross: c}:
		s.kin = nil
	default:
		s.kin.cross = nil
	}
}

// outlived: the SA that this one was preferred to is about to go.
func (s *sa) outlived() {
	k := s.family()
	if k.cross == nil {
		k.cross = &crossing{}
	}
	s.e.matured(k.cross.key, s)
	k.cross.alone, k.cross.at = true, s.e.now.Add(patient)
	s.e.schedule(s)
}

// begunAnew: the peer has made a Pair. If one for the same traffic stands in an SA that has outlived another, the peer took the other for the last one, whose
// end it has seen: which of the two it was is reckoned from when messages come, and a busy host reads them late. The new one is the last now, to both
// ends, and the one that stood goes.
func (s *sa) begunAnew(p *child) {
	if s.kin == nil || s.kin.cross == nil || !s.kin.cross.alone {
		return
	}
	for _, q := range s.child.all {
		if q == p || q.selector != p.selector {
			continue
		}
		for _, x := range q.sas {
			if x.serves() {
				x.rekeyAt, x.endAt = 0, s.e.now.Add(youngFor)
			}
		}
	}
}

// covered reports whether the winner stands in for this SA: both ends have proved no less there, and the same traffic has a Child SA.
func (s *sa) covered() bool {
	if s.kin == nil || s.kin.cross == nil || s.kin.cross.twin == nil {
		return false
	}
	w := s.kin.cross.twin.latest()
	if !w.open() || w.quiet || s.key != nil && !sameKey(s.key, w.key) || s.named && !w.named {
		return false
	}
	for _, p := range s.child.all {
		if w.child.carrying(p.selector) == nil {
			return false
		}
	}
	return true
}

func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && b != nil && k.Equal(b)
}

// carrying is the Pair that is up for the traffic.
func (c *children) carrying(sel ipsec.Selector) *child {
	for _, p := range c.all {
		if p.selector == sel && p.newest() != nil {
			return p
		}
	}
	return nil
}

// prefer has the winner's Pairs send instead of this SA's, whose inbound halves go on taking what the peer may still send.
func (s *sa) prefer() {
	w := s.kin.cross.twin.latest()
	for _, p := range s.child.all {
		if q := w.child.carrying(p.selector); q != nil {
			w.emit(ChildPreferred{SA: w.id, Pair: w.pairOf(q, q.newest())})
		}
	}
}

// part ends a loser for the peer. For the caller it ends a little later, when no packet is on its way any more.
func (s *sa) part(wait time.Duration) {
	s.prefer()
	s.setState(closed)
	s.forgetRequest()
	s.timer.report = s.e.now.Add(wait)
}
