package ike

import (
	"fmt"

	"tacit/ike/wire"
)

// A name that is told only to who has proved itself (TRUST.md A-52), by a second authentication (RFC 4739):
//
//	initiator                                                    responder
//	IDi (ID_NULL), AUTH (NULL), SA, TSi, TSr, MULTIPLE_AUTH_SUPPORTED,
//	    ANOTHER_AUTH_FOLLOWS  ──►
//	                                                         ◄── IDr, AUTH
//	IDi (our name), AUTH  ──►
//	                                                         ◄── SA, TSi, TSr
//
// Many know RFC 4739 and not NULL authentication, so a responder must have said both: in its IKE_SA_INIT response, where we asked
// by the same notifications, it lists NULL among its SUPPORTED_AUTH_METHODS (RFC 9593).

// secondState is where the second authentication stands.
type secondState uint8

const (
	secondNone      secondState = iota // there is none
	secondAnnounced                    // ANOTHER_AUTH_FOLLOWS is out, or in
	secondDue                          // the responder has proved itself
)

// announcesNull is SUPPORTED_AUTH_METHODS with NULL authentication in it (RFC 9593, 3.2.1).
var announcesNull = []byte{2, wire.AuthNull}

// methodPayloads ask a responder whether a second authentication is possible, and are the answer.
func methodPayloads() []wire.Payload {
	return []wire.Payload{status(wire.MultipleAuthSupported, nil), status(wire.SupportedAuthMethods, announcesNull)}
}

// takesSecond reports whether the message of an IKE_SA_INIT exchange holds both.
func takesSecond(ps []wire.Payload) bool {
	n := notify(ps, wire.SupportedAuthMethods)
	return n != nil && notify(ps, wire.MultipleAuthSupported) != nil && announced(n.Data, wire.AuthNull)
}

// announced looks for a method in the data of SUPPORTED_AUTH_METHODS: announcements that begin with their own length.
func announced(data []byte, method uint8) bool {
	for len(data) >= 2 && data[0] >= 2 && int(data[0]) <= len(data) {
		if data[1] == method {
			return true
		}
		data = data[data[0]:]
	}
	return false
}

// asksSecond reports whether we would tell our name in a second authentication.
func (s *sa) asksSecond() bool {
	return s.hs.peer.LocalID.Kind == IDFQDN && s.hs.peer.Tell != TellFirst
}

// tellsNow decides whether the first IKE_AUTH request has our name in it, and prepares the second if not.
func (s *sa) tellsNow() bool {
	a := &s.hs.auths
	if s.hs.peer.TellBehindNAT && !s.translates() {
		return false
	}
	if s.asksSecond() && a.methods {
		a.second = secondAnnounced
	}
	return a.second == secondNone && s.hs.peer.Tell != TellOnlyAfter
}

// announceSecond is what the first request says about the second.
func (s *sa) announceSecond() []wire.Payload {
	if s.hs.auths.second == secondNone {
		return nil
	}
	return []wire.Payload{status(wire.MultipleAuthSupported, nil), status(wire.AnotherAuthFollows, nil)}
}

// authResponseRule is which payloads the response to our latest IKE_AUTH request may hold.
func (s *sa) authResponseRule() rule {
	switch a := &s.hs.auths; {
	case a.second == secondDue:
		return ruleSecondAuthResponse
	case a.second == secondAnnounced, a.childless:
		return ruleProofResponse
	}
	return ruleAuthResponse
}

// refusal is the notification by which the responder says that it has no SA. In the second response, which has no AUTH in any case,
// other failures are the Child SA's.
func (s *sa) refusal(ps []wire.Payload) *wire.Notify {
	if s.hs.auths.second == secondDue {
		return notify(ps, wire.AuthenticationFailed)
	}
	return failure(ps)
}

// beginSecond: the responder has proved itself. One that proved no key and is allowed to be nobody does not learn our name.
func (s *sa) beginSecond() {
	a := &s.hs.auths
	a.second = secondDue
	if a.remoteKey == nil {
		s.sendSecond()
		return
	}
	a.ours = nil
	s.signName()
}

// sendSecond sends the second IKE_AUTH request.
func (s *sa) sendSecond() {
	s.setState(authSent)
	s.send(taskAuth, wire.IKEAuth, s.ourProof()...)
}

// answerFirst proves us to an initiator that will tell its name after that, and that the caller does not refuse. Only NULL comes first.
func (s *sa) answerFirst(ps []wire.Payload) {
	a := &s.hs.auths
	err := s.verifyNull()
	switch {
	case a.method.Method != wire.AuthNull || a.remoteID.Kind != IDNull || !a.methods:
		err = fmt.Errorf("%w: a second authentication after method %d", ErrAuthentication, a.method.Method)
	case err == nil:
		err = s.identify()
	}
	if err != nil {
		s.deny(err)
		return
	}
	a.offer = ps
	s.proveOurselves()
	s.finishAuth()
}

// onSecondAuth takes the second IKE_AUTH request. There is no third.
func (s *sa) onSecondAuth(ps []wire.Payload) {
	a := &s.hs.auths
	s.setState(authWaiting)
	err := ruleSecondAuthRequest.check(ps)
	if err != nil {
		s.reply(answer(err))
		s.fail(err)
		return
	}
	if notify(ps, wire.AnotherAuthFollows) != nil {
		s.deny(fmt.Errorf("%w: a third authentication", ErrAuthentication))
		return
	}
	a.remote, a.method, a.request = getID(ps, false), get[*wire.Auth](ps), ps
	if a.remoteID, err = toID(a.remote); err != nil {
		s.deny(err)
		return
	}
	s.wantAuthorization()
}
