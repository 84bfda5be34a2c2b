package ike

import (
	"crypto"
	"time"
)

// lateFor is how long a signature is kept whose key is still being looked up.
const lateFor = time.Minute

// lateProof is a signature that no key of the Authorization made, of a peer that came up as nobody meanwhile (TRUST.md R7).
type lateProof struct {
	scheme scheme
	signed [][]byte // digests, or with Ed25519 the octets themselves, of which any may be what it signed
	sig    []byte
	until  moment
}

// Promote makes a peer of an Authorization that was Pending somebody, if one of the keys made its signature: Promoted follows, and a
// rekey of the Child SA, whose Pair is Authenticated then. Otherwise the peer stays nobody. It can be tried once, for a minute.
func (e *Endpoint) Promote(now time.Time, id SAID, keys []crypto.PublicKey) Output {
	return e.with(now, id, func(s *sa) { s.promote(keys) })
}

func (s *sa) promote(keys []crypto.PublicKey) {
	p := s.late
	s.late = nil
	if p == nil || s.state > rekeying {
		return
	}
	key, ok := p.scheme.prove(keys, p.signed, p.sig)
	if !ok {
		return
	}
	s.key = key
	s.child.rekeyNow(s.e.now)
	s.emit(Promoted{SA: s.id, RemoteID: s.remoteID, Key: key})
}

// forgetLate drops the signature when its time is over, and says when that is.
func (s *sa) forgetLate() moment {
	if s.late == nil {
		return 0
	}
	if due(s.late.until, s.e.now) {
		s.late = nil
		return 0
	}
	return s.late.until
}
