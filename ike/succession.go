package ike

import (
	"bytes"
	"encoding/binary"
	"time"

	"tacit/ike/wire"
)

// An IKE SA is rekeyed by another that takes its place (RFC 7296, 1.3.2, 2.8, 2.18): it inherits the Child SAs and the caller, who
// goes on calling it as before. The end that asked for it deletes the old one. Both may ask at once (2.8.2): then there are two
// new ones for a moment, and the four nonces say which of them stays.

// kin are the other IKE SAs that an IKE SA has to do with.
type kin struct {
	rekey          *succession // our request for an heir is out
	asked, awaited *followUp   // additional key exchanges, ours and the peer's, that are under way
	elder          *sa         // it may become the heir of: the peer has asked for it while our own request was out
	before         *sa         // what it has replaced, while that is still there
	heir           *sa         // what has replaced it
	cross          *crossing
	since          moment // since when the peer answers our rekeys with TEMPORARY_FAILURE
}

// family is the SA's kin, made on the first call.
func (s *sa) family() *kin {
	if s.kin == nil {
		s.kin = &kin{}
	}
	return s.kin
}

// maxForebears is how many closed IKE SAs are kept, for repeats of their last request, of those that one has succeeded.
const maxForebears = 8

// crowded reports whether what the SA has replaced is not over, or there has been too much of it lately (TRUST.md A-23).
func (k *kin) crowded() bool {
	n := 0
	for b := k.before; b != nil && b.kin != nil; b = b.kin.before {
		if n++; b.state != closed || n > maxForebears {
			return true
		}
	}
	return false
}

// succession is a rekey of the IKE SA that we have asked for.
type succession struct {
	spi      SAID // ours of the new one
	ni       []byte
	share    share
	again    bool   // INVALID_KE_PAYLOAD was obeyed
	answered bool   // the response is in, and more is computed or asked for
	rival    *sa    // the new one that the peer has asked for meanwhile; with an additional key exchange there is none until the peer follows up
	rivalLow []byte // the lower nonce of that
}

// rivalLives reports whether there is a rival that the peer has not deleted.
func (r *succession) rivalLives() bool {
	return r != nil && r.rival != nil && r.rival.state == established
}

// rekeySA derives the keys of the new IKE SA: "SKEYSEED = prf(SK_d (old), g^ir (new) | Ni | Nr)", with the old SA's PRF (RFC 7296, 2.18);
// with an additional key exchange it ends in "| SK(1)" (RFC 9370, 2.2.4), which is nil without.
func (s *sa) rekeySA(suite ikeSuite, shared, added, ni, nr []byte, spiI, spiR uint64) saKeys {
	return expandSA(suite, prf(s.keys.suite.prf, s.keys.d, shared, ni, nr, added), ni, nr, spiI, spiR)
}

// withoutSPIs makes the proposals of a rekey look like those of IKE_SA_INIT, which carry no SPI. spis are the SPIs by the number of
// the proposal.
func withoutSPIs(p *wire.SA) (bare *wire.SA, spis map[uint8]uint64) {
	bare, spis = &wire.SA{}, map[uint8]uint64{}
	for _, q := range p.Proposals {
		if q.Protocol == wire.ProtocolIKE && len(q.SPI) == 8 {
			spis[q.Number] = binary.BigEndian.Uint64(q.SPI)
			q.SPI = nil
			bare.Proposals = append(bare.Proposals, q)
		}
	}
	return bare, spis
}

// startIKERekey asks for an heir.
func (s *sa) startIKERekey() {
	s.family().rekey = &succession{spi: s.e.newSAID()}
	s.setState(rekeying)
	s.askHeir(s.keys.suite.group)
}

// askHeir sends the request with a share of the group: "implementations MUST perform a new Diffie-Hellman exchange" (RFC 7296, 2.18).
func (s *sa) askHeir(group uint16) {
	r := s.kin.rekey
	sh, err := newShare(s.e.cfg.Rand, group)
	if err != nil {
		s.heirRefused(&wire.Notify{Type: wire.TemporaryFailure})
		return
	}
	r.share, r.ni = sh, s.e.random(nonceLen)
	s.compute(sh, nil, func(got SharedSecret) {
		if s.state != rekeying || s.kin.rekey != r { // the peer's own rekey was quicker
			return
		}
		r.share = got.share
		sap := s.heirProposal(group)
		for i := range sap.Proposals {
			sap.Proposals[i].SPI = spiBytes(uint64(r.spi))
		}
		ps := []wire.Payload{sap, &wire.Nonce{Data: r.ni}, &wire.KE{Group: group, Data: r.share.public()}}
		s.send(taskRekey, wire.CreateChildSA, append(ps, s.e.crashToken(r.spi)...)...)
	})
}

// heirProposal is what we ask for.
func (s *sa) heirProposal(group uint16) *wire.SA {
	if s.hybrid {
		return s.e.offer.hybridProposal(group, true)
	}
	return s.e.offer.ikeProposal(group)
}

// onIKERekeyResponse takes the heir that the peer has made, and decides between it and the one that the peer may have asked for.
func (s *sa) onIKERekeyResponse(ps []wire.Payload, err error) {
	if s.state != rekeying {
		return // the peer's own rekey was quicker
	}
	if f := failure(ps); err == nil && f != nil {
		s.heirRefused(f)
		return
	}
	if err == nil {
		err = ruleIKERekey.check(ps)
	}
	r := s.kin.rekey
	if err == nil {
		err = s.acceptHeir(r, ps)
	}
	if err != nil {
		s.reject(err, bye())
	}
}

// acceptHeir checks the response before anything changes, and has the key exchanges made.
func (s *sa) acceptHeir(r *succession, ps []wire.Payload) error {
	bare, spis := withoutSPIs(get[*wire.SA](ps))
	suite, ok := s.e.offer.acceptIKE(bare, s.heirProposal(groupNone))
	ke, nonce, theirs := get[*wire.KE](ps), get[*wire.Nonce](ps).Data, spis[get[*wire.SA](ps).Proposals[0].Number]
	switch {
	case !ok || len(get[*wire.SA](ps).Proposals) != 1 || suite.group != r.share.group || ke.Group != suite.group:
		return errPeer("the new IKE SA is not what we asked for")
	case theirs == uint64(r.spi):
		return errPeer("the new IKE SA has our own SPI")
	case len(nonce) < max(suite.prf.Size(), s.keys.suite.prf.Size())/2 || bytes.Equal(nonce, r.ni):
		return errPeer("nonce")
	}
	r.answered = true
	s.compute(r.share, ke.Data, func(got SharedSecret) {
		if s.state != rekeying || s.kin.rekey != r {
			return
		}
		if got.err != nil {
			s.reject(got.err, bye())
			return
		}
		low := lower(r.ni, nonce)
		if suite.add != groupNone && s.outdone(r, low) { // there is nothing to delete yet
			return
		}
		inherit := func(added []byte, _ *wire.KE) {
			keys := s.rekeySA(suite, got.secret, added, r.ni, nonce, uint64(r.spi), theirs)
			c, err := newCrypto(suite, keys, true)
			if err != nil {
				s.reject(err, bye())
				return
			}
			t := s.beget(true, r.spi, theirs, c)
			t.keepToken(ps)
			s.inherit(r, t, low)
		}
		if suite.add == groupNone {
			s.hybrid = false // the peer does not want it
			inherit(nil, nil)
		} else if err := s.askFollowUp(suite.add, ps, inherit, s.heirRefused); err != nil {
			s.reject(err, bye())
		}
	})
	return nil
}

// outdone decides, when all four nonces are known, between our rekey, with low, and the peer's that meets it (RFC 7296, 2.8.2). It reports whether the
// peer's stays; then we go on with that, or let it be followed up. Which end has not seen yet that they meet follows its own up: then ours is refused with
// TEMPORARY_FAILURE (RFC 9370, 2.2.4).
func (s *sa) outdone(r *succession, low []byte) bool {
	lives := r.rivalLives()
	switch {
	case !lives && !s.awaits():
		return false
	case bytes.Compare(low, r.rivalLow) > 0:
		if lives {
			r.rival.setState(replaced) // the peer deletes it
			r.rival.kin.elder = nil
			s.e.schedule(r.rival)
		}
		s.forsake() // "MUST NOT initiate the IKE_FOLLOWUP_KE exchange"
		return false
	case lives:
		s.yield()
	default:
		s.kin.rekey = nil
		s.setState(established)
		s.timer.rekey = s.e.now.Add(s.backoff(s.e.cfg.IKELifetime))
	}
	return true
}

// inherit takes the heir that we have asked for, unless the one that the peer may have asked for stays.
func (s *sa) inherit(r *succession, t *sa, low []byte) {
	if s.outdone(r, low) { // ours has the lowest nonce: its creator deletes it
		t.setState(deleting)
		t.send(taskDelete, wire.Informational, bye())
		s.e.schedule(t)
		return
	}
	s.kin.rekey = nil
	s.setState(deleting)
	s.succeed(t)
	s.send(taskDelete, wire.Informational, bye()) // "MUST be the last request sent over the old IKE SA"
	if t.keys.suite.add != s.keys.suite.add {     // the children get keys of the hybrid as well
		t.child.rekeyNow(s.e.now)
		s.e.schedule(t)
	}
}

// beget makes an IKE SA that may become the heir. The caller does not hear of it before it does.
func (s *sa) beget(initiator bool, ours SAID, theirs uint64, c saCrypto) *sa {
	t := &sa{
		e: s.e, id: ours, initiator: initiator, state: established, quiet: true, guest: s.guest,
		spiI: uint64(ours), spiR: theirs, local: s.local, remote: s.remote, origin: s.origin, nat: s.nat, inner: s.inner, frag: s.frag, hybrid: s.hybrid, slot: -1,
	}
	if !initiator {
		t.spiI, t.spiR = t.spiR, t.spiI
	}
	t.keys.set(c)
	t.live()
	t.timer.heard, t.timer.spoke = s.e.now, s.e.now
	s.e.enter(ours, t)
	return t
}

// succeed makes t the SA that the caller means: "An IKE SA so created inherits all of the original IKE SA's Child SAs" (RFC 7296, 2.8).
func (s *sa) succeed(t *sa) {
	f, of := t.family(), s.family()
	f.elder, f.before, of.heir = nil, s, t
	f.cross, of.cross = of.cross, nil
	if f.cross != nil && s.e.young[f.cross.key] == s {
		s.e.young[f.cross.key] = t
	}
	t.id, t.owner, t.hushed = s.id, s.owner, s.hushed
	t.key, t.named, t.remoteID, t.late = s.key, s.named, s.remoteID, s.late // what has been proved until now
	s.late = nil
	s.e.heirs[t.id] = t
	t.child, s.child = s.child, children{}
	t.timer.childless = s.timer.childless
	s.e.rejoin(s, t)
	t.out.wantProbe, t.out.wantTell, t.out.wantDelete = s.out.wantProbe, s.out.wantTell, s.out.wantDelete
	s.out.wantProbe, s.out.wantTell, s.out.wantDelete = false, false, false
	s.quiet, t.quiet = true, false
	t.emit(Rekeyed{SA: t.id, Initiator: t.initiator, Summary: t.e.summary(t.keys.suite)})
	if t.remote != s.remote { // one of the two was followed, and only s had Pairs
		t.redirect()
	}
	s.e.schedule(t)
}

// yield gives way to the heir that the peer has asked for, and forgets our own request (RFC 7296, 2.25.2).
func (s *sa) yield() {
	t := s.kin.rekey.rival
	s.kin.rekey = nil
	s.setState(replaced)
	s.succeed(t)
	s.forgetRequest()
	t.reassure()
}

// forgetRequest forgets the request that is out, and what has come of its answer.
func (s *sa) forgetRequest() {
	s.e.release(&s.out.parts)
	s.out = request{next: s.out.next}
}

// reassure asks for a sign of life if there has been none on a new SA: the peer may not have got to know it.
func (s *sa) reassure() {
	if s.open() && s.in.next+s.out.next == 0 {
		s.out.wantProbe = true
		s.pump()
		s.e.schedule(s)
	}
}

// heirRefused: the old SA serves on, or the peer's own heir takes its place. A peer that does not rekey IKE SAs (NO_ADDITIONAL_SAS:
// RFC 7296, 1.3) is asked less and less often, until the lifetime ends.
func (s *sa) heirRefused(f *wire.Notify) {
	r := s.kin.rekey
	if g, ok := otherGroup(f); ok && !r.again && g != r.share.group && s.e.offer.has(g) {
		r.again = true
		s.askHeir(g)
		return
	}
	if r.rivalLives() {
		s.yield()
		return
	}
	s.kin.rekey = nil
	s.setState(established)
	now, since := s.e.now, s.kin.since
	s.kin.since = 0
	if f.Type != wire.TemporaryFailure {
		s.timer.rekey = now.Add(max(time.Second, s.timer.end.Sub(now)/2))
		return
	}
	if since.IsZero() {
		since = now
	}
	if s.kin.since = since; now.Sub(since) > temporaryFor {
		s.reject(NotifyError{f.Type}, bye())
		return
	}
	s.timer.rekey = now.Add(s.backoff(s.e.cfg.IKELifetime))
}

// answerIKERekey makes the heir that the peer asks for.
func (s *sa) answerIKERekey(ps []wire.Payload) error {
	switch {
	case !s.open():
		return refuse(wire.TemporaryFailure, "it is %v", s.state)
	case s.child.busy():
		return refuse(wire.TemporaryFailure, "a Child SA is being made or closed")
	case s.kin != nil && (s.kin.crowded() || s.kin.rekey.rivalLives() || s.kin.rekey != nil && s.kin.rekey.answered): // TRUST.md A-23: one at a time
		return refuse(wire.TemporaryFailure, "its last rekey is not over")
	}
	if err := ruleIKERekey.check(ps); err != nil {
		return err
	}
	ke, ni := get[*wire.KE](ps), get[*wire.Nonce](ps).Data
	bare, spis := withoutSPIs(get[*wire.SA](ps))
	hybrid := declined
	if s.e.mixes() {
		hybrid = preferred
	}
	suite, sap, ok := s.e.offer.chooseIKE(bare, ke.Group, hybrid)
	switch {
	case !ok:
		return refuse(wire.NoProposalChosen, "no IKE proposal of ours")
	case suite.group != ke.Group:
		return invalidKE(suite.group, ke.Group)
	case len(ni) < suite.prf.Size()/2:
		return refuse(wire.InvalidSyntax, "nonce")
	}
	spi, theirs, nr := s.e.newSAID(), spis[sap.Proposals[0].Number], s.e.random(nonceLen)
	sap.Proposals[0].SPI = spiBytes(uint64(spi))
	s.answerKE(suite.group, ke, func(shared []byte, ours *wire.KE, err error) {
		if err != nil {
			s.reply(answer(err))
			return
		}
		first := append([]wire.Payload{sap, &wire.Nonce{Data: nr}, ours}, s.e.crashToken(spi)...)
		grant := func(added []byte, last *wire.KE) {
			if s.child.busy() { // it was not when the peer asked first, and what is under way would not end in the heir
				s.reply(&wire.Notify{Type: wire.TemporaryFailure})
				return
			}
			c, err := newCrypto(suite, s.rekeySA(suite, shared, added, ni, nr, theirs, uint64(spi)), false)
			if err != nil {
				s.reply(&wire.Notify{Type: wire.NoProposalChosen})
				return
			}
			t := s.beget(false, spi, theirs, c)
			t.hybrid = t.hybrid || suite.add != groupNone
			t.keepToken(ps)
			if last != nil {
				first = []wire.Payload{last}
			}
			s.reply(first...)
			s.grantHeir(t, lower(ni, nr))
		}
		if suite.add == groupNone {
			grant(nil, nil)
			return
		}
		if s.state == rekeying {
			if s.kin.rekey.answered { // meanwhile
				s.reply(&wire.Notify{Type: wire.TemporaryFailure})
				return
			}
			s.kin.rekey.rivalLow = bytes.Clone(lower(ni, nr))
		}
		s.reply(append(first, s.awaitFollowUp(suite.add, grant, func(*wire.Notify) {}))...)
	})
	return nil
}

// grantHeir: the peer has been told of the heir that it asked for. While our own request is out it is only kept.
func (s *sa) grantHeir(t *sa, low []byte) {
	if s.state == rekeying {
		s.kin.rekey.rival, s.kin.rekey.rivalLow = t, bytes.Clone(low)
		t.family().elder = s
		return
	}
	s.setState(replaced)
	s.succeed(t)
}

// chosen: the peer uses the heir that it has asked for, so it has decided already that this one stays.
func (s *sa) chosen(ps []wire.Payload) {
	if s.kin == nil || s.kin.elder == nil {
		return
	}
	if d := get[*wire.Delete](ps); d != nil && d.Protocol == wire.ProtocolIKE { // or that it goes
		return
	}
	old := s.kin.elder
	old.yield()
	s.e.schedule(old)
}

// onDelete ends the SA on the peer's word. If it was rekeyed, it was not the last.
func (s *sa) onDelete() {
	switch {
	case s.state == rekeying && s.kin.rekey.rivalLives(): // the peer did not notice that we rekey as well (RFC 7296, 2.8.2)
		s.yield()
		s.fail(nil)
	case s.covered() && !s.child.busy():
		s.part(retireAfter)
	case s.state == replaced && s.kin.heir != nil:
		s.kin.heir.reassure()
		s.fail(nil)
	default:
		s.fail(nil)
	}
}

// disown ends an heir that was not chosen together with the SA.
func (s *sa) disown() {
	if s.kin != nil && s.kin.rekey.rivalLives() {
		t := s.kin.rekey.rival
		s.kin.rekey = nil
		s.e.forget(t)
	}
}

// grown cuts the ties of an SA that is forgotten, so that nothing keeps it.
func (s *sa) grown() {
	if s.kin == nil {
		return
	}
	if t := s.kin.heir; t != nil && t.kin.before == s {
		t.kin.before = nil
	}
	if o := s.kin.elder; o != nil && o.kin != nil && o.kin.rekey != nil && o.kin.rekey.rival == s {
		o.kin.rekey.rival = nil
	}
	if c := s.kin.cross; c != nil {
		s.e.matured(c.key, s)
	}
}

// latest is the SA that serves now in the place of one that may have been rekeyed.
func (s *sa) latest() *sa {
	for s.kin != nil && s.kin.heir != nil {
		s = s.kin.heir
	}
	return s
}
