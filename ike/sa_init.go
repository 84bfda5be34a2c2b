package ike

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"tacit/ike/wire"
)

// handshake is what an SA needs until both ends are authenticated, and forgets then.
type handshake struct {
	peer  Peer          // initiator
	auth  Authorization // what the peer must prove
	began moment

	ni, nr             []byte
	message1, message2 []byte // the IKE_SA_INIT messages, which AUTH signs (RFC 7296, 2.15)
	cookied            []byte // responder: message1 as it came again, with another COOKIE; nil: it did not
	keys               saKeys
	hashes             []uint16 // SIGNATURE_HASH_ALGORITHMS of the peer
	rtt                time.Duration

	attempts   []attempt // initiator: our IKE_SA_INIT requests, by group
	cookie     []byte
	usedCookie int   // COOKIEs obeyed: one, and the true one if that was forged
	usedKE     int   // INVALID_KE_PAYLOADs obeyed: one, and one that leads back if that was forged
	agreeing   bool  // a response is in, and its key exchange is being computed
	hint       error // an error notification that nobody has signed: the reason if nothing better comes (TRUST.md A-16)

	mix   intermediate
	auths authState // sa_auth.go
}

// attempt is one IKE_SA_INIT request of ours.
type attempt struct {
	share   share
	message []byte
}

// nonceLen of ours. It is at least half of the longest PRF key (RFC 7296, 2.10).
const nonceLen = 32

// mayInitiate checks a Peer.
func (s *sa) mayInitiate() error {
	p := s.hs.peer
	switch {
	case !p.Local.IsValid() || !p.Remote.IsValid() || p.Remote.Addr().IsUnspecified() || p.Remote.Addr().IsMulticast():
		return fmt.Errorf("%w: no IKE from %v to %v", ErrRefused, p.Local, p.Remote)
	case p.Local.Addr().Unmap() == p.Remote.Addr().Unmap():
		return ErrSelf
	case p.Auth.Refuse:
		return ErrRefused
	case p.LocalID.Kind == IDFQDN && (s.e.cfg.Name == "" || s.e.cfg.Public == nil):
		return fmt.Errorf("%w: no name or no key of our own", ErrAuthentication)
	}
	return nil
}

// sendInit sends the IKE_SA_INIT request with a share of the group; a second one after COOKIE or INVALID_KE_PAYLOAD is the
// same but for that (RFC 7296, 2.6 and 1.2).
func (s *sa) sendInit(group uint16) {
	hs := s.hs
	if hs.ni == nil {
		hs.ni = s.e.random(nonceLen)
	}
	if a := s.attempt(group); a != nil {
		s.sendAttempt(a)
		return
	}
	sh, err := newShare(s.e.cfg.Rand, group)
	if err != nil {
		s.fail(err)
		return
	}
	s.compute(sh, nil, func(r SharedSecret) {
		if s.state == initSent && s.attempt(group) == nil {
			hs.attempts = append(hs.attempts, attempt{share: r.share})
			s.sendAttempt(s.current())
		}
	})
}

// sendAttempt sends the request, as it is with what is known by now.
func (s *sa) sendAttempt(a *attempt) {
	hs, group := s.hs, a.share.group
	var ps []wire.Payload
	if hs.cookie != nil {
		ps = append(ps, status(wire.Cookie, hs.cookie))
	}
	ps = append(ps, s.e.initProposal(group), &wire.KE{Group: group, Data: a.share.public()}, &wire.Nonce{Data: hs.ni})
	ps = append(ps, s.e.natPayloads(s.spiI, 0, s.local, s.remote)...)
	ps = append(ps, status(wire.SignatureHashAlgorithms, ourHashes()), status(wire.IKEv2FragmentationSupport, nil))
	if s.e.mixes() {
		ps = append(ps, status(wire.IntermediateExchange, nil))
	}
	if s.asksSecond() {
		ps = append(ps, methodPayloads()...)
	}
	data, err := (&wire.Message{Header: s.header(wire.IKESAInit, 0, false), Payloads: ps}).Marshal()
	if err != nil {
		s.fail(err)
		return
	}
	a.message = data
	s.launch(taskInit, data)
}

func (s *sa) attempt(group uint16) *attempt {
	for i := range s.hs.attempts {
		if s.hs.attempts[i].share.group == group {
			return &s.hs.attempts[i]
		}
	}
	return nil
}

// onInitResponse takes the response to IKE_SA_INIT. Nothing of it is authentic yet: what makes no sense is dropped and the
// timer goes on (TRUST.md A-16).
func (s *sa) onInitResponse(d Datagram, h wire.Header) {
	m, err := wire.Parse(d.Data)
	if err != nil {
		s.e.drop("malformed")
		return
	}
	if sa := get[*wire.SA](m.Payloads); sa == nil {
		s.onInitNotify(m.Payloads)
		return
	}
	if s.hs.agreeing {
		s.e.drop("repeat")
		return
	}
	if err := s.acceptInit(d, h, m.Payloads); err != nil {
		s.badInit(err)
	}
}

// onInitNotify: COOKIE and INVALID_KE_PAYLOAD are obeyed twice, all else is only remembered.
func (s *sa) onInitNotify(ps []wire.Payload) {
	if ruleNotifyOnly.check(ps) != nil {
		s.e.drop("malformed")
		return
	}
	hs := s.hs
	if n := notify(ps, wire.Cookie); n != nil {
		if hs.usedCookie == 2 || len(n.Data) == 0 || len(n.Data) > 64 || bytes.Equal(n.Data, hs.cookie) {
			s.e.drop("cookie")
			return
		}
		hs.usedCookie++
		hs.cookie = bytes.Clone(n.Data)
		s.sendInit(s.current().share.group)
		return
	}
	n := failure(ps)
	if n == nil {
		s.e.drop("malformed")
		return
	}
	if n.Type == wire.InvalidKEPayload && len(n.Data) == 2 {
		g := binary.BigEndian.Uint16(n.Data)
		if hs.usedKE == 2 || !s.e.offer.has(g) || s.current().share.group == g {
			s.e.drop("invalid-ke")
			return
		}
		hs.usedKE++
		s.sendInit(g)
		return
	}
	s.e.drop("unauthenticated-notify")
	hs.hint = NotifyError{n.Type}
}

// current is the latest attempt.
func (s *sa) current() *attempt { return &s.hs.attempts[len(s.hs.attempts)-1] }

// acceptInit checks the whole response before anything changes.
func (s *sa) acceptInit(d Datagram, h wire.Header, ps []wire.Payload) error {
	if err := ruleInit.check(ps); err != nil {
		return err
	}
	if h.ResponderSPI == 0 || h.ResponderSPI == h.InitiatorSPI {
		return errPeer("responder SPI %x", h.ResponderSPI)
	}
	suite, ok := s.e.offer.acceptIKE(get[*wire.SA](ps), s.e.initProposal(groupNone))
	if !ok {
		return errPeer("it chose what we did not offer")
	}
	ke, nonce := get[*wire.KE](ps), get[*wire.Nonce](ps).Data
	a := s.attempt(ke.Group) // of several attempts the response's group tells which one it answers
	if suite.add != groupNone && !s.e.hybrid(ps) {
		return errPeer("an additional key exchange without IKE_INTERMEDIATE")
	}
	if a == nil || ke.Group != suite.group {
		return errPeer("key exchange of group %d", ke.Group)
	}
	if len(nonce) < suite.prf.Size()/2 || bytes.Equal(nonce, s.hs.ni) {
		return errPeer("nonce")
	}
	rtt := s.e.now.Sub(s.out.last)
	d.Data = bytes.Clone(d.Data)
	s.hs.agreeing = true
	s.compute(a.share, ke.Data, func(r SharedSecret) {
		if s.state != initSent {
			return
		}
		s.hs.agreeing = false
		if r.err != nil {
			s.badInit(r.err)
			return
		}
		s.hs.rtt = rtt
		s.agreed(d, h, ps, suite, a.message, r.secret)
	})
	return nil
}

// badInit: the response made no sense. Nothing of it is authentic, so the timer goes on (TRUST.md A-16).
func (s *sa) badInit(err error) {
	s.e.drop("bad-init-response")
	s.hs.hint = errPeer("IKE_SA_INIT response: %v", err)
}

// agreed goes on with the keys of the exchange.
func (s *sa) agreed(d Datagram, h wire.Header, ps []wire.Payload, suite ikeSuite, request, shared []byte) {
	nonce := get[*wire.Nonce](ps).Data
	keys := deriveSA(suite, s.hs.ni, nonce, shared, s.spiI, h.ResponderSPI)
	crypto, err := newCrypto(suite, keys, true)
	if err != nil {
		s.badInit(err)
		return
	}
	s.spiR = h.ResponderSPI
	s.initDone(crypto, keys, d, ps)
	s.hs.nr, s.hs.message1, s.hs.message2 = nonce, request, d.Data
	s.hs.attempts = nil
	s.nat = detect(ps, s.spiI, s.spiR, d.Local, d.Remote)
	s.seenOutside(ps, s.spiR, d.Local)
	s.answered()
	if s.encapsulates() {
		s.local, s.remote = float(s.local), float(s.remote)
	}
	if suite.add != groupNone {
		s.startIntermediate()
		return
	}
	s.beginAuth()
}

// initDone notes what both roles know after IKE_SA_INIT.
func (s *sa) initDone(c saCrypto, keys saKeys, d Datagram, ps []wire.Payload) {
	s.keys.set(c)
	s.hs.keys = keys
	s.hs.hashes = parseHashes(notify(ps, wire.SignatureHashAlgorithms))
	s.hybrid = s.e.hybrid(ps)
	a := &s.hs.auths
	a.asksKey, a.methods, a.childless = asksRawKey(ps), takesSecond(ps), s.choosesNone(ps)
	s.frag.on = notify(ps, wire.IKEv2FragmentationSupport) != nil // we say so always
	s.follow(d)
	s.timer.heard = s.e.now
}

// encapsulates reports whether our ESP travels in UDP: both ends come to the same result, since a wish of one end looks like a
// NAT to the other.
func (s *sa) encapsulates() bool {
	return s.nat.supported && (s.nat.local || s.nat.remote || s.e.cfg.Encapsulate)
}

// newCrypto is made of the keys that last.
func newCrypto(suite ikeSuite, k saKeys, initiator bool) (c saCrypto, err error) {
	sealKey, openKey, _, _ := k.local(initiator)
	c = saCrypto{suite: suite, d: k.d}
	if c.seal, err = newSealer(suite.cipher, sealKey); err != nil {
		return saCrypto{}, err
	}
	if c.open, err = newSealer(suite.cipher, openKey); err != nil {
		return saCrypto{}, err
	}
	return c, nil
}

// onInitRequest takes the first message of an initiator. Until it has shown, by a cookie, that it is where it says, and until
// its message is found good, nothing is kept of it; and no answer is longer than the request (TRUST.md ).
func (e *Endpoint) onInitRequest(d Datagram, h wire.Header) {
	switch {
	case e.sas[SAID(h.InitiatorSPI)] != nil:
		e.drop("reflected")
		return
	case h.Flags&wire.FlagInitiator == 0 || h.ResponderSPI != 0 || h.MessageID != 0:
		e.drop("malformed")
		return
	case e.repeatedInit(d, h):
		return
	}
	all, there := e.cfg.Census.Of(network(d.Remote))
	switch {
	case all.SAs >= e.cfg.MaxSAs, there.Open >= e.cfg.MaxPerNetwork:
		e.drop("too-many-sas")
		return
	case all.Half >= e.cfg.MaxHalfOpen || there.Half >= max(e.cfg.MaxHalfOpen/4, 1):
		e.drop("too-many-half-open")
		return
	}
	m, err := wire.Parse(d.Data)
	if err == nil {
		err = ruleInit.check(m.Payloads)
	}
	if err != nil {
		e.drop("malformed")
		if n := answer(err); n.Type == wire.UnsupportedCriticalPayload {
			e.answerInit(d, h, n)
		}
		return
	}
	ni := get[*wire.Nonce](m.Payloads).Data
	c := notify(m.Payloads, wire.Cookie)
	shown := c != nil && e.cookies.valid(c.Data, ni, d.Remote.Addr(), h.InitiatorSPI)
	if !shown && e.crowded(all, there) {
		e.demandCookie(d, h, ni)
		return
	}
	e.respondInit(d, h, m.Payloads, shown)
}

// crowded reports whether there are so many half-open SAs, in all or of the newcomer's network, that it must return a cookie.
func (e *Endpoint) crowded(all, there Tally) bool {
	most := e.cfg.CookieAbove
	return most < 0 || all.Half >= most || there.Half >= max(most/4, 1)
}

// demandCookie answers without keeping anything (RFC 7296, 2.6).
func (e *Endpoint) demandCookie(d Datagram, h wire.Header, ni []byte) {
	e.drop("cookie-demanded")
	e.answerInit(d, h, status(wire.Cookie, e.cookies.give(ni, d.Remote.Addr(), h.InitiatorSPI)))
}

// repeatedInit answers a repeat from memory. Anything else from the same SPI and address is not believed, but for the same message with another COOKIE:
// somebody has forged our demand for one, and the initiator signs what it sent last. Or somebody has seen the message, and nobody sends that but he: AUTH tells
// (TRUST.md A-16).
func (e *Endpoint) repeatedInit(d Datagram, h wire.Header) bool {
	s := e.half[halfKey{h.InitiatorSPI, d.Remote}]
	if s == nil {
		return false
	}
	if s.state != initReceived {
		e.drop("repeat")
		return true
	}
	switch first := s.hs.message1; {
	case bytes.Equal(d.Data, first):
	case bytes.Equal(withoutCookie(d.Data), withoutCookie(first)):
		s.hs.cookied = bytes.Clone(d.Data)
	default:
		e.drop("repeat")
		return true
	}
	s.answerAgain(d)
	return true
}

// withoutCookie is what follows the header of a message, and a COOKIE that is its first payload; nil for what is no message.
func withoutCookie(b []byte) []byte {
	m, err := wire.Parse(b)
	if err != nil || len(m.Payloads) == 0 {
		return nil
	}
	rest := b[wire.HeaderLen:]
	if n, ok := m.Payloads[0].(*wire.Notify); ok && n.Type == wire.Cookie {
		rest = rest[8+len(n.SPI)+len(n.Data):]
	}
	return rest
}

// respondInit chooses the algorithms and has the key exchange computed. shown: the initiator has returned a cookie, without which it
// gets no arithmetic that takes long (TRUST.md A-22).
func (e *Endpoint) respondInit(d Datagram, h wire.Header, ps []wire.Payload, shown bool) {
	ke, ni := get[*wire.KE](ps), get[*wire.Nonce](ps).Data
	suite, sap, ok := e.offer.chooseIKE(get[*wire.SA](ps), ke.Group, e.wantsHybrid(ps))
	switch {
	case !ok:
		e.drop("no-proposal")
		e.answerInit(d, h, &wire.Notify{Type: wire.NoProposalChosen})
		return
	case suite.group != ke.Group:
		e.drop("invalid-ke")
		e.answerInit(d, h, status(wire.InvalidKEPayload, binary.BigEndian.AppendUint16(nil, suite.group)))
		return
	case len(ni) < suite.prf.Size()/2:
		e.drop("malformed")
		return
	case slow(suite.group) && !shown:
		e.demandCookie(d, h, ni)
		return
	case slow(suite.group) && len(e.work) >= maxWork:
		e.drop("busy")
		return
	}
	sh, err := newShare(e.cfg.Rand, suite.group)
	if err != nil {
		e.drop("random")
		return
	}
	s := e.newSA(false, d.Local, d.Remote)
	s.spiI, s.quiet = h.InitiatorSPI, true // the caller hears of it when it has something to decide
	d.Data = bytes.Clone(d.Data)
	s.hs.message1 = d.Data
	s.in = window{next: 1, busy: true, exch: wire.IKESAInit} // its repeats are repeatedInit's
	e.half[halfKey{s.spiI, d.Remote}] = s
	s.compute(sh, ke.Data, func(r SharedSecret) {
		if s.state != initReceived || s.keys.known() {
			return
		}
		if r.err == nil {
			r.err = s.finishInit(d, ps, suite, sap, r, shown)
		}
		if r.err != nil {
			e.drop("bad-ke")
			e.forget(s)
		}
	})
	e.schedule(s)
}

// finishInit derives the keys and answers IKE_SA_INIT. An answer that is longer than the request goes only to who has shown, by a cookie,
// that it is there (TRUST.md A-21).
func (s *sa) finishInit(d Datagram, ps []wire.Payload, suite ikeSuite, sap *wire.SA, r SharedSecret, shown bool) error {
	e, ni := s.e, get[*wire.Nonce](ps).Data
	nr := e.random(max(min(nonceLen, len(ni)), suite.prf.Size()/2)) // no longer than the initiator's (TRUST.md A-21)
	keys := deriveSA(suite, ni, nr, r.secret, s.spiI, s.spiR)
	crypto, err := newCrypto(suite, keys, false)
	if err != nil {
		return err
	}
	out := []wire.Payload{sap, &wire.KE{Group: suite.group, Data: r.share.public()}, &wire.Nonce{Data: nr}}
	s.nat = detect(ps, s.spiI, 0, d.Local, d.Remote)
	s.seenOutside(ps, 0, d.Local)
	if s.nat.supported {
		out = append(out, e.natPayloads(s.spiI, s.spiR, d.Local, d.Remote)...)
	}
	out = append(out, status(wire.SignatureHashAlgorithms, ourHashes())) // also to who says none: it may be the one that signs (RFC 7427, 4)
	if notify(ps, wire.IKEv2FragmentationSupport) != nil {
		out = append(out, status(wire.IKEv2FragmentationSupport, nil))
	}
	if e.hybrid(ps) {
		out = append(out, status(wire.IntermediateExchange, nil))
	}
	if takesSecond(ps) {
		out = append(out, methodPayloads()...)
	}
	most := len(d.Data)
	if shown {
		most = wire.MaxMessage
	}
	data, err := s.sayUnasked(wire.Message{Header: s.header(wire.IKESAInit, 0, true), Payloads: out}, most)
	if err != nil {
		return err
	}
	if len(data) > most { // what was asked for in few octets, and is sent in many
		e.demandCookie(d, wire.Header{InitiatorSPI: s.spiI}, ni)
		e.forget(s)
		return nil
	}
	s.initDone(crypto, keys, d, ps)
	s.hs.ni, s.hs.nr, s.hs.message2 = ni, nr, data
	e.post(d, data)
	s.in.busy, s.in.reply = false, [][]byte{data}
	return nil
}

// sayUnasked marshals an IKE_SA_INIT response with what no request asks for: that the initiator show its key, and
// CHILDLESS_IKEV2_SUPPORTED. One with more than most octets goes without the last of these, or both: neither is worth a cookie
// (TRUST.md A-21).
func (s *sa) sayUnasked(m wire.Message, most int) (data []byte, err error) {
	var keys []wire.Payload
	if s.e.cfg.AskKeys {
		keys = askKey()
	}
	for i, more := range [][]wire.Payload{append(keys[:len(keys):len(keys)], status(wire.ChildlessIKEv2Supported, nil)), keys, nil} {
		with := wire.Message{Header: m.Header, Payloads: append(m.Payloads[:len(m.Payloads):len(m.Payloads)], more...)}
		if data, err = with.Marshal(); err != nil || len(data) <= most {
			s.hs.auths.offersNone = i == 0
			return data, err
		}
	}
	return data, nil
}

// answerInit is a stateless answer of one notification, with no SPI of ours.
func (e *Endpoint) answerInit(d Datagram, h wire.Header, n *wire.Notify) {
	e.answer(d, &wire.Message{
		Header:   wire.Header{InitiatorSPI: h.InitiatorSPI, Exchange: wire.IKESAInit, Flags: wire.FlagResponse, MessageID: h.MessageID},
		Payloads: []wire.Payload{n},
	})
}

// onVersion answers a request of a higher major version, once a second at most (RFC 7296, 2.5).
func (e *Endpoint) onVersion(d Datagram, h wire.Header, v *wire.VersionError) {
	e.drop("version")
	if !v.Higher() || h.InitiatorSPI == 0 || h.Flags&wire.FlagResponse != 0 || e.now.Sub(e.lastVersion) < time.Second {
		return
	}
	e.lastVersion = e.now
	e.answer(d, &wire.Message{
		Header: wire.Header{InitiatorSPI: h.InitiatorSPI, ResponderSPI: h.ResponderSPI, Exchange: h.Exchange,
			Flags: wire.FlagResponse, MessageID: h.MessageID},
		Payloads: []wire.Payload{&wire.Notify{Type: wire.InvalidMajorVersion}},
	})
}
