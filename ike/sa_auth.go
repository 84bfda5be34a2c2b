package ike

import (
	"crypto"
	"crypto/hmac"
	"fmt"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// authState is what IKE_AUTH needs beside the handshake.
type authState struct {
	local, remote *wire.ID
	remoteID      ID
	method        *wire.Auth       // the peer's AUTH
	family        family           // how the peer signed, if it did
	remoteKey     crypto.PublicKey // the key of Authorization.Keys that it proved
	remoteRaw     crypto.PublicKey // the key of its CERT, if it proved that
	asked         ID               // the IDr that the initiator asked for
	asksKey       bool             // it wants our key in a CERT
	methods       bool             // it has said that it takes NULL and a second authentication
	second        secondState
	offersNone    bool // responder: it has said that it takes an IKE SA without a Child SA
	childless     bool // there will be no Child SA

	scheme scheme
	token  uint64     // of the SignatureWanted that is out
	ours   *wire.Auth // our AUTH, when it is made

	request []wire.Payload // responder: the request, until the caller has authorized it
	offer   []wire.Payload // responder: the first of two requests, which has the Child SA in it
	child   []wire.Payload // responder: what it says about the Child SA; nil: the data plane has not answered
}

// localOctets and remoteOctets are what AUTH of either end covers (RFC 7296, 2.15).
func (s *sa) localOctets() []byte {
	hs := s.hs
	_, _, skp, _ := hs.keys.local(s.initiator)
	message, nonce := hs.message1, hs.nr
	if !s.initiator {
		message, nonce = hs.message2, hs.ni
	}
	return signedOctets(s.keys.suite.prf, message, nonce, skp, hs.auths.local.Signed(), hs.mix.auth)
}

// Of two messages that an initiator may have sent either will do.
func (s *sa) remoteOctets() (all [][]byte) {
	hs := s.hs
	_, _, _, skp := hs.keys.local(s.initiator)
	messages, nonce := [][]byte{hs.message2}, hs.ni
	if !s.initiator {
		messages, nonce = [][]byte{hs.message1}, hs.nr
		if hs.cookied != nil {
			messages = append(messages, hs.cookied)
		}
	}
	for _, m := range messages {
		all = append(all, signedOctets(s.keys.suite.prf, m, nonce, skp, hs.auths.remote.Signed(), hs.mix.auth))
	}
	return all
}

// beginAuth makes our ID and AUTH as initiator.
func (s *sa) beginAuth() {
	a := &s.hs.auths
	if s.hs.peer.LocalID.Kind == IDFQDN && s.tellsNow() {
		s.signName()
		return
	}
	a.local = &wire.ID{Kind: wire.IDNull}
	s.signNobody()
	s.sendAuth()
}

// signName makes our ID and AUTH with our name and key.
func (s *sa) signName() {
	s.hs.auths.local = &wire.ID{Kind: wire.IDFQDN, Data: []byte(s.e.cfg.Name)}
	s.setState(signing)
	if err := s.wantSignature(); err != nil {
		s.fail(err)
		s.e.forget(s)
	}
}

// signNull makes our AUTH without a key.
func (s *sa) signNull() {
	_, _, skp, _ := s.hs.keys.local(s.initiator)
	s.hs.auths.ours = &wire.Auth{Method: wire.AuthNull, Data: nullAuth(s.keys.suite.prf, skp, s.localOctets())}
}

// wantSignature asks the caller for our signature.
func (s *sa) wantSignature() error {
	a := &s.hs.auths
	sch, err := chooseScheme(s.e.cfg.Public, s.hs.hashes, a.family)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAuthentication, err)
	}
	a.scheme, a.token = sch, s.e.token()
	s.emit(SignatureWanted{SA: s.id, Token: a.token, Data: sch.digest(s.localOctets()), Opts: sch.opts()})
	return nil
}

// onSignature takes the signature.
func (s *sa) onSignature(r Signature) {
	if s.hs == nil || s.hs.auths.token == 0 || s.hs.auths.token != r.Token {
		return
	}
	a := &s.hs.auths
	a.token = 0
	err := r.Err
	if err == nil {
		a.ours, err = a.scheme.payload(r.Sig)
	}
	switch {
	case err != nil && s.initiator:
		s.fail(fmt.Errorf("our signature: %w", err))
	case err != nil:
		s.deny(fmt.Errorf("our signature: %w", err))
	case s.initiator && a.second == secondDue:
		s.sendSecond()
	case s.initiator:
		s.sendAuth()
	default:
		s.finishAuth()
	}
}

// sendAuth sends the IKE_AUTH request with the offer of the first Child SA.
func (s *sa) sendAuth() {
	hs := s.hs
	ps := append([]wire.Payload{hs.auths.local}, s.ourCert()...)
	if hs.auth.Anonymous || hs.auth.Known != nil { // the key of nobody we know is worth something too: we know it again
		ps = append(ps, askKey()...)
	}
	if id := hs.peer.RemoteID; id.Kind != 0 {
		w, err := fromID(id)
		if err != nil {
			s.fail(err)
			return
		}
		w.Responder = true
		ps = append(ps, w)
	}
	ps = append(ps, hs.auths.ours)
	if !hs.auths.childless {
		ps = append(ps, s.offerFirstChild()...)
	}
	ps = append(append(ps, s.announceSecond()...), s.e.crashToken(s.spi())...)
	s.setState(authSent)
	s.send(taskAuth, wire.IKEAuth, ps...)
}

// offerFirstChild is the offer of the first Child SA.
func (s *sa) offerFirstChild() []wire.Payload {
	want := allowed(s.hs.auth, s.own(), s.remote.Addr())
	n := &negotiation{fresh: &childSA{initiator: true, in: s.e.newSPI()}, mode: s.hs.auth.Mode, selector: want}
	s.child.mine = n
	var ps []wire.Payload
	switch {
	case s.outside():
		n.mode = ipsec.Tunnel
	case s.translates():
		ps = append(ps, s.askInner(n))
	}
	if n.mode == ipsec.Transport {
		ps = append(ps, status(wire.UseTransportMode, nil))
	}
	if s.hs.peer.ClearRefused {
		ps = append(ps, saysRefused())
	}
	return append(append(ps, s.e.offer.espProposal(n.fresh.in, groupNone)), tsPayloads(n.selector, true)...)
}

// onAuthResponse verifies the responder, and only then believes what it says.
func (s *sa) onAuthResponse(ps []wire.Payload, err error) {
	a := &s.hs.auths
	if err == nil && get[*wire.Auth](ps) == nil {
		if n := s.refusal(ps); n != nil { // the responder has no SA: there is nothing to delete
			s.fail(s.refused(n.Type))
			s.e.forget(s)
			return
		}
	}
	if err == nil {
		err = s.authResponseRule().check(ps)
	}
	if err == nil && a.second != secondDue {
		a.remote, a.method = getID(ps, true), get[*wire.Auth](ps)
		a.remoteKey, err = s.verifyResponder(ps)
	}
	switch {
	case err != nil:
		s.reject(err, &wire.Notify{Type: wire.AuthenticationFailed})
	case s.quiet: // deleted while we waited
		s.reject(nil, bye())
	case a.second == secondAnnounced:
		s.beginSecond()
	default:
		s.setState(established)
		s.emitEstablished(s.hs.rtt)
		s.keepToken(ps)
		s.onInitialContact(ps)
		if a.childless {
			s.stayChildless()
			return
		}
		s.firstChild(ps)
	}
}

// verifyResponder checks IDr (TRUST.md A-14) and AUTH.
func (s *sa) verifyResponder(ps []wire.Payload) (crypto.PublicKey, error) {
	a := &s.hs.auths
	var err error
	if a.remoteID, err = toID(a.remote); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAuthentication, err)
	}
	if want := s.hs.peer.RemoteID; want.Kind != 0 && a.remoteID != normal(want) {
		return nil, fmt.Errorf("%w: the peer says it is %q, not %q", ErrAuthentication, a.remoteID.Value, want.Value)
	}
	return s.verify(s.hs.auth, ps)
}

// verifyNull checks AUTH of NULL authentication: it proves that the peer made the key exchange, and no more.
func (s *sa) verifyNull() error {
	_, _, _, skp := s.hs.keys.local(s.initiator)
	for _, octets := range s.remoteOctets() {
		if hmac.Equal(s.hs.auths.method.Data, nullAuth(s.keys.suite.prf, skp, octets)) {
			return nil
		}
	}
	return fmt.Errorf("%w: AUTH is wrong", ErrAuthentication)
}

// errAnother says that the peer is allowed to be nobody, and is not the nobody that it may be.
var errAnother = fmt.Errorf("%w: it is not the one who was here before", ErrAuthentication)

// verify checks the peer's AUTH: a key of auth's that made the signature, or nobody where that is allowed. A key that comes in CERT
// is never one of auth's: who proves that is still nobody (RFC 7670, 5).
func (s *sa) verify(auth Authorization, ps []wire.Payload) (crypto.PublicKey, error) {
	a := &s.hs.auths
	if a.method.Method == wire.AuthNull {
		if !auth.Anonymous {
			return nil, fmt.Errorf("%w: NULL authentication is not allowed", ErrAuthentication)
		}
		if auth.Same != nil && !auth.Same(nil) {
			return nil, errAnother
		}
		return nil, s.verifyNull()
	}
	sch, sig, err := parseAuth(a.method)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAuthentication, err)
	}
	a.family = sch.family
	var signed [][]byte
	for _, octets := range s.remoteOctets() {
		signed = append(signed, sch.digest(octets))
	}
	if key, ok := sch.prove(auth.Keys, signed, sig); ok {
		return key, nil
	}
	raw, sent := sch.prove(rawKeys(ps), signed, sig)
	switch {
	case sent && auth.Known != nil && auth.Known(raw):
		return raw, nil
	case !auth.Anonymous:
		return nil, fmt.Errorf("%w: the signature is by none of the %d keys", ErrAuthentication, len(auth.Keys))
	case sent:
		a.remoteRaw = raw
	default:
		raw = nil
	}
	if auth.Same != nil && !auth.Same(raw) {
		return nil, errAnother
	}
	if auth.Pending {
		s.late = &lateProof{sch, signed, sig, s.e.now.Add(lateFor)}
	}
	return nil, nil
}

func (s *sa) emitEstablished(rtt time.Duration) {
	a := &s.hs.auths
	s.key, s.remoteID = a.remoteKey, a.remoteID
	s.emit(Established{
		SA: s.id, Local: s.local, Remote: s.remote, Initiator: s.initiator,
		RemoteID: a.remoteID, Key: a.remoteKey, Raw: a.remoteRaw, NAT: s.nat.facts(), Summary: s.e.summary(s.keys.suite), RTT: rtt,
	})
}

// onAuthRequest takes the initiator's IKE_AUTH: the caller is asked whom to believe.
func (s *sa) onAuthRequest(d Datagram, ps []wire.Payload) {
	s.setState(authWaiting)
	a := &s.hs.auths
	if get[*wire.Auth](ps) == nil && getID(ps, false) != nil { // EAP
		s.deny(fmt.Errorf("%w: no AUTH", ErrAuthentication))
		return
	}
	rule := ruleAuthRequest
	if a.childless = s.asksNone(ps); a.childless {
		rule = ruleChildlessAuthRequest
	}
	if err := rule.check(ps); err != nil {
		s.reply(answer(err))
		s.fail(err)
		return
	}
	var err error
	a.remote, a.method, a.request = getID(ps, false), get[*wire.Auth](ps), ps
	a.asksKey = a.asksKey || asksRawKey(ps)
	if a.remoteID, err = toID(a.remote); err != nil {
		s.deny(err)
		return
	}
	if a.asked, err = s.asked(getID(ps, true)); err != nil {
		s.deny(err)
		return
	}
	s.quiet = false
	if notify(ps, wire.AnotherAuthFollows) != nil {
		a.second = secondAnnounced
	}
	s.wantAuthorization()
}

func (s *sa) wantAuthorization() {
	a := &s.hs.auths
	e := AuthorizationWanted{
		SA: s.id, Local: s.local, Remote: s.remote, ID: a.remoteID, Began: s.e.time(s.hs.began),
		Null: a.method.Method == wire.AuthNull, More: a.second == secondAnnounced, Asked: a.asked, Inner: s.wantsInner(),
	}
	if raw := rawKeys(a.request); len(raw) > 0 && !e.Null {
		e.Raw = raw[0]
	}
	s.emit(e)
}

// asked refuses an IDr that is not ours: the initiator means somebody else (TRUST.md A-14).
func (s *sa) asked(p *wire.ID) (ID, error) {
	if p == nil || p.Kind == wire.IDNull {
		return ID{}, nil
	}
	id, err := toID(p)
	if err == nil && (id.Kind != IDFQDN || s.e.cfg.Name == "" || id.Value != normal(ID{IDFQDN, s.e.cfg.Name}).Value) {
		err = fmt.Errorf("the initiator asks for %q", id.Value)
	}
	return id, err
}

// deny answers IKE_AUTH with AUTHENTICATION_FAILED and closes.
func (s *sa) deny(err error) {
	s.reply(&wire.Notify{Type: wire.AuthenticationFailed})
	s.fail(err)
}

// authorize goes on with the request: its AUTH is verified, then our signature and the data plane are asked for together.
func (s *sa) authorize(auth Authorization) {
	if s.state != authWaiting || s.hs.auths.request == nil {
		return
	}
	a := &s.hs.auths
	ps := a.request
	a.request = nil
	s.hs.auth = auth
	switch {
	case auth.Refuse:
		s.deny(ErrRefused)
		return
	case a.second == secondAnnounced:
		s.answerFirst(ps)
		return
	}
	var err error
	if a.remoteKey, err = s.verify(auth, ps); err != nil {
		s.deny(err)
		return
	}
	first := a.second != secondDue
	if first {
		if err := s.identify(); err != nil {
			s.deny(err)
			return
		}
	} else {
		ps = a.offer
	}
	if inner := auth.Inner; inner.IsValid() {
		s.inside().theirs = inner
	}
	s.emitEstablished(0)
	s.onClearRefused(ps)
	s.keepToken(ps)
	s.onInitialContact(ps)
	if first {
		s.proveOurselves()
	}
	if a.childless {
		a.child = []wire.Payload{}
	} else {
		s.answerFirstChild(ps)
	}
	s.finishAuth()
}

// identify chooses our IDr: our name if we have one and the peer can verify our signature.
func (s *sa) identify() error {
	a := &s.hs.auths
	a.local = &wire.ID{Responder: true, Kind: wire.IDNull}
	if s.e.cfg.Public == nil || s.e.cfg.Name == "" {
		return nil
	}
	a.local = &wire.ID{Responder: true, Kind: wire.IDFQDN, Data: []byte(s.e.cfg.Name)}
	if _, err := chooseScheme(s.e.cfg.Public, s.hs.hashes, a.family); err != nil {
		return fmt.Errorf("%w: %w", ErrAuthentication, err)
	}
	return nil
}

// proveOurselves makes our AUTH as responder; identify has found that it can be made.
func (s *sa) proveOurselves() {
	if s.hs.auths.local.Kind == wire.IDNull {
		s.signNobody()
		return
	}
	_ = s.wantSignature()
}

// finishAuth answers IKE_AUTH when signature and data plane have answered.
func (s *sa) finishAuth() {
	a := &s.hs.auths
	if s.state == authWaiting && a.second == secondAnnounced && a.ours != nil {
		s.reply(s.ourProof()...)
		a.second = secondDue
		s.setState(authAgain)
		return
	}
	if s.state != authWaiting || a.ours == nil || a.child == nil {
		return
	}
	ps := append(a.child, s.e.crashToken(s.spi())...)
	if a.second != secondDue {
		ps = append(s.ourProof(), ps...)
	}
	s.reply(ps...)
	s.setState(established)
	if a.childless {
		s.stayChildless()
	}
	s.hs = nil
	s.child.answered(s)
}
