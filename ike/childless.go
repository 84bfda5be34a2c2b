package ike

import (
	"time"

	"tacit/ike/wire"
)

// An IKE SA without a Child SA (RFC 6023) proves who is at an address and carries nothing. We take one from whoever heard that we do,
// and ask for one where the caller wants no more than the proof.

// childlessPeer is how long a peer that began without a Child SA may stay without.
const childlessPeer = time.Minute

// choosesNone decides, as initiator, that there will be no Child SA.
func (s *sa) choosesNone(ps []wire.Payload) bool {
	return s.hs.peer.Childless && notify(ps, wire.ChildlessIKEv2Supported) != nil
}

// asksNone reports whether an IKE_AUTH request is one without a Child SA, from an initiator that has heard that we take it.
func (s *sa) asksNone(ps []wire.Payload) bool {
	return s.hs.auths.offersNone && get[*wire.SA](ps) == nil && getTS(ps, false) == nil && getTS(ps, true) == nil
}

// stayChildless lets the SA that is established live without a Child SA, or until one is asked for: ours until the caller ends it, a
// peer's for a while.
func (s *sa) stayChildless() {
	auth := s.hs.auth
	s.child.grant = grant{allowed(auth, s.own(), s.remote.Addr()), auth.Mode}
	s.timer.childless = 0
	if !s.initiator {
		s.timer.childless = s.e.now.Add(childlessPeer)
	}
	s.hs = nil
}
