package ike

import (
	"bytes"
	"encoding/binary"

	"tacit/ike/wire"
)

// IKE_INTERMEDIATE (RFC 9242) carries a second key exchange, by ML-KEM, between IKE_SA_INIT and IKE_AUTH (RFC 9370, 2.2.2): one who
// records the traffic must then break both. Its messages do not fit one datagram, which IKE_SA_INIT must.

// PostQuantum says when an initiator has the keys made by the hybrid of a curve and ML-KEM-768. Peers that do not know it are not
// disturbed. A responder does what it is asked for, but not with Off.
type PostQuantum uint8

// The choices.
const (
	After  PostQuantum = iota // established in two round trips; then the IKE SA and its children are rekeyed at once
	Before                    // before IKE_AUTH, in three round trips
	Off
)

// mixes reports whether we use ML-KEM. In a rekey that the peer begins its proposal is word enough (RFC 9370, 2.2.4): strongSwan 6 says that it
// knows IKE_INTERMEDIATE where it has proposed or chosen the hybrid, and not otherwise.
func (e *Endpoint) mixes() bool { return e.cfg.PostQuantum != Off }

// hybrid reports whether ML-KEM may be used in an initial exchange: both ends must have said that they know IKE_INTERMEDIATE.
func (e *Endpoint) hybrid(ps []wire.Payload) bool {
	return e.mixes() && notify(ps, wire.IntermediateExchange) != nil
}

// hybridAfter has the IKE SA and its children rekeyed to the hybrid at once: its initiator does it, for as soon as they have a use.
func (s *sa) hybridAfter() {
	if s.initiator && s.hybrid && s.e.cfg.PostQuantum == After && s.keys.suite.add == groupNone {
		s.timer.rekey = s.e.now
	}
}

// intermediate is what an SA keeps of IKE_INTERMEDIATE.
type intermediate struct {
	share share  // initiator
	done  bool   // the keys are mixed
	ours  []byte // of the request and of the response, what AUTH covers
	auth  []byte // and both: IntAuth
}

// intAuth is IntAuth_i1 or IntAuth_r1 of RFC 9242, 3.3.2: "prf(SK_pi1, IntAuth_i1A | IntAuth_i1P)", where A is the message up to the content of
// its Encrypted payload and P is that content in clear, the length fields counting no more than that. A message in fragments
// counts as if it were whole.
func (s *sa) intAuth(h wire.Header, first wire.PayloadType, plain []byte, ofInitiator bool) ([]byte, error) {
	m := wire.Message{Header: h, Payloads: []wire.Payload{&wire.Encrypted{First: first, Body: plain}}}
	b, err := m.Marshal()
	if err != nil {
		return nil, err
	}
	skp := s.hs.keys.pr
	if ofInitiator {
		skp = s.hs.keys.pi
	}
	return prf(s.keys.suite.prf, skp, b), nil
}

// startIntermediate sends the initiator's encapsulation key.
func (s *sa) startIntermediate() {
	sh, err := newShare(s.e.cfg.Rand, s.keys.suite.add)
	if err == nil {
		s.hs.mix.share = sh
		ke := &wire.KE{Group: sh.group, Data: sh.public()}
		var first wire.PayloadType
		var plain []byte
		if first, plain, err = wire.MarshalPayloads([]wire.Payload{ke}); err == nil {
			s.hs.mix.ours, err = s.intAuth(s.header(wire.Intermediate, s.out.next, false), first, plain, true)
		}
		if err == nil {
			s.setState(mixing)
			s.send(taskIntermediate, wire.Intermediate, ke)
			return
		}
	}
	s.fail(err)
}

// onIntermediateResponse takes the encapsulated secret. The response is sealed by who has made the first key exchange, so that what is
// wrong with it is the peer's mistake.
func (s *sa) onIntermediateResponse(h wire.Header, got received, err error) {
	var secret []byte
	if f := failure(got.payloads); err == nil && f != nil {
		err = NotifyError{f.Type}
	}
	if err == nil {
		err = ruleIntermediate.check(got.payloads)
	}
	if err == nil {
		secret, err = s.hs.mix.share.accept(get[*wire.KE](got.payloads))
	}
	var theirs []byte
	if err == nil {
		theirs, err = s.intAuth(h, got.first, got.plain, false)
	}
	if err == nil {
		err = s.mixKeys(secret, concat(s.hs.mix.ours, theirs), s.out.next)
	}
	if err != nil {
		s.fail(err)
		s.e.forget(s)
		return
	}
	s.beginAuth()
}

// onIntermediateRequest encapsulates a secret. The answer goes out under the keys that the request came with.
func (s *sa) onIntermediateRequest(h wire.Header, got received) {
	err := ruleIntermediate.check(got.payloads)
	var secret, theirs, ours []byte
	var ke *wire.KE
	if err == nil {
		secret, ke, err = encapsulated(s.keys.suite.add, get[*wire.KE](got.payloads))
	}
	if err == nil {
		theirs, err = s.intAuth(h, got.first, got.plain, true)
	}
	if err == nil {
		var first wire.PayloadType
		var plain []byte
		if first, plain, err = wire.MarshalPayloads([]wire.Payload{ke}); err == nil {
			ours, err = s.intAuth(s.header(wire.Intermediate, s.in.next-1, true), first, plain, false)
		}
	}
	if err != nil {
		s.malformed(err)
		return
	}
	s.reply(ke)
	last := s.keys.open
	last.key = bytes.Clone(last.key)
	s.in.open = &last
	if err := s.mixKeys(secret, concat(theirs, ours), s.in.next); err != nil {
		s.fail(err)
	}
}

// mixKeys goes over to the keys of both exchanges: "SKEYSEED(n) = prf(SK_d(n-1), SK(n) | Ni | Nr)" (RFC 9370, 2.2.2). AUTH covers what was
// said: "IntAuth = IntAuth_iN | IntAuth_rN | IKE_AUTH_MID" (RFC 9242, 3.3.2), the last being the Message ID of the IKE_AUTH request.
func (s *sa) mixKeys(secret, said []byte, authID uint32) error {
	hs, suite := s.hs, s.keys.suite
	keys := expandSA(suite, prf(suite.prf, s.keys.d, secret, hs.ni, hs.nr), hs.ni, hs.nr, s.spiI, s.spiR)
	c, err := newCrypto(suite, keys, s.initiator)
	if err != nil {
		return err
	}
	s.keys.set(c)
	hs.keys = keys
	hs.mix = intermediate{done: true, auth: binary.BigEndian.AppendUint32(said, authID)}
	return nil
}
