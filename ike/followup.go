package ike

import (
	"crypto/hmac"
	"time"

	"tacit/ike/wire"
)

// IKE_FOLLOWUP_KE carries the additional key exchange of a CREATE_CHILD_SA (RFC 9370, 2.2.4). Nothing comes of that until it is done.
// A "link" in ADDITIONAL_KEY_EXCHANGE says which one it belongs to.

// followUp is an additional key exchange that is to be made.
type followUp struct {
	link  []byte
	until moment // responder: then it is forgotten
	share share  // initiator
	group uint16
	then  func(secret []byte, ke *wire.KE) // ke: what a responder answers
	lost  func(n *wire.Notify)             // initiator: the peer refuses; responder: nil, nothing more comes
}

// followWithin is how long a responder waits for IKE_FOLLOWUP_KE.
const followWithin = 30 * time.Second

// askFollowUp sends our half, as the response ps of a CREATE_CHILD_SA wants it.
func (s *sa) askFollowUp(group uint16, ps []wire.Payload, then func([]byte, *wire.KE), lost func(*wire.Notify)) error {
	n := notify(ps, wire.AdditionalKeyExchange)
	if n == nil || len(n.Data) == 0 {
		return errPeer("no ADDITIONAL_KEY_EXCHANGE")
	}
	sh, err := newShare(s.e.cfg.Rand, group)
	if err != nil {
		return err
	}
	s.family().asked = &followUp{share: sh, group: group, then: then, lost: lost}
	s.send(taskFollowUp, wire.FollowupKE, &wire.KE{Group: group, Data: sh.public()}, status(n.Type, n.Data))
	return nil
}

// onFollowUpResponse takes the other half. The response is sealed, so that what is wrong with it is the peer's mistake.
func (s *sa) onFollowUpResponse(ps []wire.Payload, err error) {
	if !s.open() || s.kin == nil || s.kin.asked == nil {
		return // another rekey was quicker
	}
	f := s.kin.asked
	s.kin.asked = nil
	if n := failure(ps); err == nil && n != nil {
		f.lost(n)
		return
	}
	if err == nil {
		err = ruleIntermediate.check(ps)
	}
	var secret []byte
	if err == nil {
		secret, err = f.share.accept(get[*wire.KE](ps))
	}
	if err != nil {
		s.reject(err, bye())
		return
	}
	f.then(secret, nil)
}

// accept takes the peer's half of an additional key exchange.
func (sh share) accept(ke *wire.KE) ([]byte, error) {
	if ke.Group != sh.group {
		return nil, errPeer("additional key exchange %d", ke.Group)
	}
	secret, err := sh.secret(ke.Data)
	if err != nil {
		return nil, errPeer("additional key exchange: %v", err)
	}
	return secret, nil
}

// encapsulated makes the responder's half of an additional key exchange.
func encapsulated(group uint16, ke *wire.KE) (secret []byte, ours *wire.KE, err error) {
	if ke.Group != group {
		return nil, nil, refuse(wire.InvalidSyntax, "additional key exchange %d", ke.Group)
	}
	public, secret, err := encapsulate(ke.Data)
	if err != nil {
		return nil, nil, refuse(wire.InvalidSyntax, "additional key exchange: %v", err)
	}
	return secret, &wire.KE{Group: group, Data: public}, nil
}

// awaitFollowUp waits for the peer's half; the notification goes into the response.
func (s *sa) awaitFollowUp(group uint16, then func([]byte, *wire.KE), lost func(*wire.Notify)) *wire.Notify {
	link := s.e.random(8)
	s.family().awaited = &followUp{link: link, until: s.e.now.Add(followWithin), group: group, then: then, lost: lost}
	return status(wire.AdditionalKeyExchange, link)
}

// awaits reports whether the peer is to follow up.
func (s *sa) awaits() bool { return s.kin != nil && s.kin.awaited != nil }

// onFollowUpRequest answers IKE_FOLLOWUP_KE. A link that we do not know, or no longer, is answered with STATE_NOT_FOUND.
func (s *sa) onFollowUpRequest(ps []wire.Payload) {
	if err := ruleIntermediate.check(ps); err != nil {
		s.malformed(err)
		return
	}
	n := notify(ps, wire.AdditionalKeyExchange)
	if !s.awaits() || n == nil || !hmac.Equal(n.Data, s.kin.awaited.link) {
		s.reply(&wire.Notify{Type: wire.StateNotFound})
		return
	}
	f := s.kin.awaited
	s.kin.awaited = nil
	if !s.open() {
		f.lost(nil)
		s.reply(&wire.Notify{Type: wire.TemporaryFailure})
		return
	}
	secret, ke, err := encapsulated(f.group, get[*wire.KE](ps))
	if err != nil {
		f.lost(nil)
		s.reply(answer(err))
		return
	}
	f.then(secret, ke)
}

// forsake forgets a follow-up that the peer did not make: in time, or before it asked for something else.
func (s *sa) forsake() {
	if s.awaits() {
		f := s.kin.awaited
		s.kin.awaited = nil
		f.lost(nil)
	}
}

// followUpDue is when forsake is due.
func (s *sa) followUpDue() moment {
	if !s.awaits() {
		return 0
	}
	return s.kin.awaited.until
}
