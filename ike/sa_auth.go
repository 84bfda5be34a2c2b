package ike

import (
	"crypto"
	"crypto/hmac"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// authState is what IKE_AUTH needs beside the handshake.
type authState struct {
	local, remote *wire.ID
	remoteID      ID
	method        *wire.Auth // the peer's AUTH
	family        family     // how the peer signed, if it did

	scheme scheme
	token  uint64     // of the SignatureWanted that is out
	ours   *wire.Auth // our AUTH, when it is made

	request []wire.Payload // responder: the request, until the caller has authorized it
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
	return concat(signedOctets(s.keys.suite.prf, message, nonce, skp, hs.auths.local.Signed()), hs.mix.auth)
}

func (s *sa) remoteOctets() []byte {
	hs := s.hs
	_, _, _, skp := hs.keys.local(s.initiator)
	message, nonce := hs.message2, hs.ni
	if !s.initiator {
		message, nonce = hs.message1, hs.nr
	}
	return concat(signedOctets(s.keys.suite.prf, message, nonce, skp, hs.auths.remote.Signed()), hs.mix.auth)
}

// beginAuth makes our ID and AUTH as initiator.
func (s *sa) beginAuth() {
	a := &s.hs.auths
	a.local = &wire.ID{Kind: wire.IDNull}
	if s.hs.peer.LocalID.Kind == IDFQDN {
		a.local = &wire.ID{Kind: wire.IDFQDN, Data: []byte(s.e.cfg.Name)}
		s.setState(signing)
		if err := s.wantSignature(); err != nil {
			s.fail(err)
			s.e.forget(s)
		}
		return
	}
	s.signNull()
	s.sendAuth()
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
	case s.initiator:
		s.sendAuth()
	default:
		s.finishAuth()
	}
}

// sendAuth sends the IKE_AUTH request with the offer of the first Child SA.
func (s *sa) sendAuth() {
	hs := s.hs
	want := allowed(hs.auth, s.local.Addr(), s.remote.Addr())
	n := &negotiation{fresh: &childSA{initiator: true, in: s.e.newSPI()}, mode: hs.auth.Mode, selector: want}
	s.child.mine = n
	ps := []wire.Payload{hs.auths.local}
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
	if n.mode == ipsec.Transport {
		ps = append(ps, status(wire.UseTransportMode, nil))
	}
	ps = append(ps, s.e.offer.espProposal(n.fresh.in, groupNone))
	ps = append(ps, tsPayloads(want, true)...)
	s.setState(authSent)
	s.send(taskAuth, wire.IKEAuth, ps...)
}

// onAuthResponse verifies the responder, and only then believes what it says.
func (s *sa) onAuthResponse(ps []wire.Payload, err error) {
	if err == nil && get[*wire.Auth](ps) == nil {
		if n := failure(ps); n != nil { // the responder has no SA: there is nothing to delete
			s.fail(NotifyError{n.Type})
			s.e.forget(s)
			return
		}
	}
	if err == nil {
		err = ruleAuthResponse.check(ps)
	}
	var key crypto.PublicKey
	if err == nil {
		a := &s.hs.auths
		a.remote, a.method = getID(ps, true), get[*wire.Auth](ps)
		key, err = s.verifyResponder()
	}
	if err != nil {
		s.reject(err, &wire.Notify{Type: wire.AuthenticationFailed})
		return
	}
	if s.quiet { // deleted while we waited
		s.reject(nil, bye())
		return
	}
	s.setState(established)
	s.emitEstablished(key, s.hs.rtt)
	s.firstChild(ps)
}

// verifyResponder checks IDr (TRUST.md A-14) and AUTH.
func (s *sa) verifyResponder() (crypto.PublicKey, error) {
	a := &s.hs.auths
	var err error
	if a.remoteID, err = toID(a.remote); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAuthentication, err)
	}
	if want := s.hs.peer.RemoteID; want.Kind != 0 && a.remoteID != normal(want) {
		return nil, fmt.Errorf("%w: the peer says it is %q, not %q", ErrAuthentication, a.remoteID.Value, want.Value)
	}
	return s.verify(s.hs.auth)
}

// verify checks the peer's AUTH: a key of auth's that made the signature, or nobody where that is allowed.
func (s *sa) verify(auth Authorization) (crypto.PublicKey, error) {
	a := &s.hs.auths
	if a.method.Method == wire.AuthNull {
		_, _, _, skp := s.hs.keys.local(s.initiator)
		switch {
		case !auth.Anonymous:
			return nil, fmt.Errorf("%w: NULL authentication is not allowed", ErrAuthentication)
		case !hmac.Equal(a.method.Data, nullAuth(s.keys.suite.prf, skp, s.remoteOctets())):
			return nil, fmt.Errorf("%w: AUTH is wrong", ErrAuthentication)
		}
		return nil, nil
	}
	sch, sig, err := parseAuth(a.method)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAuthentication, err)
	}
	a.family = sch.family
	if key, ok := sch.prove(auth.Keys, s.remoteOctets(), sig); ok {
		return key, nil
	}
	if !auth.Anonymous {
		return nil, fmt.Errorf("%w: the signature is by none of the %d keys", ErrAuthentication, len(auth.Keys))
	}
	return nil, nil
}

func (s *sa) emitEstablished(key crypto.PublicKey, rtt time.Duration) {
	s.key = key
	s.emit(Established{
		SA: s.id, Local: s.local, Remote: s.remote, Initiator: s.initiator,
		RemoteID: s.hs.auths.remoteID, Key: key, Summary: s.keys.suite.String(), RTT: rtt,
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
	if err := ruleAuthRequest.check(ps); err != nil {
		s.reply(answer(err))
		s.fail(err)
		return
	}
	var err error
	a.remote, a.method, a.request = getID(ps, false), get[*wire.Auth](ps), ps
	if a.remoteID, err = toID(a.remote); err != nil {
		s.deny(err)
		return
	}
	asked, err := s.asked(getID(ps, true))
	if err != nil {
		s.deny(err)
		return
	}
	s.quiet = false
	s.emit(AuthorizationWanted{
		SA: s.id, Local: s.local, Remote: s.remote, ID: a.remoteID,
		Null: a.method.Method == wire.AuthNull, Asked: asked,
	})
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
	if auth.Refuse {
		s.deny(ErrRefused)
		return
	}
	key, err := s.verify(auth)
	if err != nil {
		s.deny(err)
		return
	}
	a.local = &wire.ID{Responder: true, Kind: wire.IDNull}
	signs := s.e.cfg.Public != nil && s.e.cfg.Name != ""
	if signs {
		a.local = &wire.ID{Responder: true, Kind: wire.IDFQDN, Data: []byte(s.e.cfg.Name)}
		if _, err := chooseScheme(s.e.cfg.Public, s.hs.hashes, a.family); err != nil {
			s.deny(fmt.Errorf("%w: %w", ErrAuthentication, err))
			return
		}
	}
	s.emitEstablished(key, 0)
	if signs {
		_ = s.wantSignature() // the scheme was found above
	} else {
		s.signNull()
	}
	s.answerFirstChild(ps)
	s.finishAuth()
}

// finishAuth answers IKE_AUTH when signature and data plane have answered.
func (s *sa) finishAuth() {
	a := &s.hs.auths
	if s.state != authWaiting || a.ours == nil || a.child == nil {
		return
	}
	s.reply(append([]wire.Payload{a.local, a.ours}, a.child...)...)
	s.setState(established)
	s.hs = nil
	s.child.answered(s)
}

// toID reads an identity. FQDNs are held to what a host name is made of, so that none can lie to a terminal or a log.
func toID(p *wire.ID) (ID, error) {
	id := ID{Kind: IDKind(p.Kind)}
	switch p.Kind {
	case wire.IDFQDN:
		id = normal(ID{IDFQDN, string(p.Data)})
		if !isName(id.Value) {
			return ID{}, fmt.Errorf("identity %q is not a host name", p.Data)
		}
	case wire.IDIPv4Addr, wire.IDIPv6Addr:
		addr, _ := netip.AddrFromSlice(p.Data)
		id.Value = addr.String()
	case wire.IDNull:
	default:
		if len(p.Data) > 255 {
			return ID{}, fmt.Errorf("identity of %d octets", len(p.Data))
		}
		id.Value = fmt.Sprintf("%x", p.Data)
	}
	return id, nil
}

// fromID is its inverse for the kinds that we send.
func fromID(id ID) (*wire.ID, error) {
	switch id.Kind {
	case IDFQDN:
		return &wire.ID{Kind: wire.IDFQDN, Data: []byte(normal(id).Value)}, nil
	case IDIPv4, IDIPv6:
		addr, err := netip.ParseAddr(id.Value)
		if err != nil {
			return nil, err
		}
		return &wire.ID{Kind: uint8(id.Kind), Data: addr.AsSlice()}, nil
	case IDNull:
		return &wire.ID{Kind: wire.IDNull}, nil
	}
	return nil, fmt.Errorf("no identity of type %d", id.Kind)
}

// normal is the form that identities are compared in.
func normal(id ID) ID {
	if id.Kind == IDFQDN {
		id.Value = strings.ToLower(strings.TrimSuffix(id.Value, "."))
	}
	return id
}

func isName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_') {
			return false
		}
	}
	return true
}
