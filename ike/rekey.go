package ike

import (
	"bytes"
	"encoding/binary"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// current is the Child SA that carries the traffic and may be rekeyed; nil if there is none.
func (c *children) current() *childSA {
	for _, x := range c.list {
		if x.state == childUp && !x.rekeyAt.IsZero() {
			return x
		}
	}
	return nil
}

// wantsRekey reports whether a rekey of ours should begin.
func (c *children) wantsRekey(s *sa) bool {
	x := c.current()
	return x != nil && c.mine == nil && c.theirs == nil && (s.out.wantRekey || due(x.rekeyAt, s.e.now))
}

// rekeyDue is when pump has something to do for the Child SAs.
func (c *children) rekeyDue(s *sa) time.Time {
	var first time.Time
	for _, x := range c.list {
		if x.serves() {
			first = earliest(first, x.deleteAt)
		}
	}
	if c.mine == nil && c.theirs == nil {
		if x := c.current(); x != nil {
			first = earliest(first, x.rekeyAt)
		}
	}
	return first
}

// startRekey asks for a new Child SA in place of the current one (RFC 7296, 1.3.3), with a key exchange if the peer takes it.
func (s *sa) startRekey() {
	s.out.wantRekey = false
	c := &s.child
	n := &negotiation{
		old: c.current(), fresh: &childSA{initiator: true, in: s.e.newSPI()},
		mode: c.pair.Mode, selector: c.pair.Selector, ni: s.e.random(nonceLen),
	}
	ps := []wire.Payload{&wire.Notify{Protocol: wire.ProtocolESP, SPI: espSPI(n.old.in), Type: wire.RekeySA}}
	if n.mode == ipsec.Transport {
		ps = append(ps, status(wire.UseTransportMode, nil))
	}
	// Two proposals, with a key exchange and without: a peer that has no use for our KE payload takes the second, and no
	// round trip is lost.
	sap := s.e.offer.espProposal(n.fresh.in, groupNone)
	var ke []wire.Payload
	if !c.noPFS {
		if sh, err := newShare(s.e.cfg.Rand, s.e.offer.groups[0]); err == nil {
			n.share = &sh
			ke = []wire.Payload{&wire.KE{Group: sh.group, Data: sh.public()}}
			plain := sap.Proposals[0]
			plain.Number = 2
			sap = s.e.offer.espProposal(n.fresh.in, sh.group)
			sap.Proposals = append(sap.Proposals, plain)
		}
	}
	ps = append(append(append(ps, sap, &wire.Nonce{Data: n.ni}), ke...), tsPayloads(n.selector, true)...)
	n.old.setState(s.e, childRekeying)
	c.mine = n
	s.send(taskRekey, wire.CreateChildSA, ps...)
}

// onRekeyResponse reads the new Child SA. A peer whose answer makes no sense has an SA that we do not know: all of it goes.
func (s *sa) onRekeyResponse(ps []wire.Payload, err error) {
	n := s.child.mine
	if s.state != established || n == nil {
		return
	}
	if f := failure(ps); err == nil && f != nil {
		s.rekeyRefused(n, f)
		return
	}
	if err == nil {
		err = ruleCreateChildResponse.check(ps)
	}
	if err == nil {
		err = s.acceptRekey(n, ps)
	}
	if err != nil {
		s.reject(err, bye())
	}
}

// acceptRekey checks the response before anything changes.
func (s *sa) acceptRekey(n *negotiation, ps []wire.Payload) error {
	group, nonce := groupNone, get[*wire.Nonce](ps).Data
	if n.share != nil {
		group = n.share.group
	}
	suite, out, ok := s.e.offer.acceptESP(get[*wire.SA](ps), group)
	sel, within := accept(n.selector, getTS(ps, false), getTS(ps, true))
	transport := notify(ps, wire.UseTransportMode) != nil
	switch {
	case !ok || !within || sel != n.selector || transport != (n.mode == ipsec.Transport):
		return errPeer("the new Child SA is not what we asked for")
	case len(nonce) < s.keys.suite.prf.Size()/2 || bytes.Equal(nonce, n.ni):
		return errPeer("nonce")
	}
	var shared []byte
	if suite.group != groupNone {
		ke := get[*wire.KE](ps)
		if ke == nil || ke.Group != suite.group {
			return errPeer("no key exchange of group %d", suite.group)
		}
		var err error
		if shared, err = n.share.secret(ke.Data); err != nil {
			return err
		}
	}
	n.fresh.out = out
	s.want(n, suite, n.ni, nonce, shared)
	return nil
}

// rekeyRefused: the old Child SA serves on, and is tried again; not beyond thrice its lifetime.
func (s *sa) rekeyRefused(n *negotiation, f *wire.Notify) {
	s.child.abandon(s.e, n)
	// CHILD_SA_NOT_FOUND: what the peer does not have cannot carry traffic, so all of it goes (RFC 7296, 2.25).
	lost := f.Type == wire.ChildSANotFound && n.old.state == childRekeying
	if lost || s.e.now.Sub(n.old.born) > 3*s.e.cfg.ChildLifetime {
		s.reject(NotifyError{f.Type}, bye())
		return
	}
	if f.Type != wire.TemporaryFailure && n.share != nil {
		s.child.noPFS = true
	}
	s.child.retry(s, n.old)
	s.child.checkDown(s, NotifyError{f.Type})
}

// retry lets a Child SA that could not be rekeyed serve on for a while.
func (c *children) retry(s *sa, old *childSA) {
	if old.state != childRekeying {
		return
	}
	old.setState(s.e, childUp)
	wait := min(max(s.e.cfg.ChildLifetime/8, 100*time.Millisecond), 30*time.Second)
	old.rekeyAt = s.e.now.Add(wait + jitter(s.e.jitter, wait))
}

// onCreateChildRequest answers the peer's CREATE_CHILD_SA: a rekey of a Child SA is granted; another Child SA, or a rekey of
// the IKE SA, is refused with NO_ADDITIONAL_SAS (RFC 7296, 1.3: also "in response to an IKE SA rekey request").
func (s *sa) onCreateChildRequest(ps []wire.Payload) {
	if err := ruleCreateChildRequest.check(ps); err != nil {
		s.malformed(err)
		return
	}
	n, suite, err := s.answerRekey(ps)
	if err != nil {
		s.reply(answer(err))
		return
	}
	if err := s.wantRekey(n, suite, ps); err != nil {
		delete(s.e.spis, n.fresh.in)
		s.reply(answer(err))
	}
}

// answerRekey checks that the request is a rekey that we grant.
func (s *sa) answerRekey(ps []wire.Payload) (*negotiation, espSuite, error) {
	r := notify(ps, wire.RekeySA)
	if r == nil {
		return nil, espSuite{}, refuse(wire.NoAdditionalSAs, "one Child SA is all")
	}
	var old *childSA
	if r.Protocol == wire.ProtocolESP && len(r.SPI) == 4 {
		old = s.child.byOut(ipsec.SPI(binary.BigEndian.Uint32(r.SPI)))
	}
	switch {
	case old == nil:
		return nil, espSuite{}, refuse(wire.ChildSANotFound, "no Child SA %x", r.SPI)
	case s.state != established, old != s.child.current(), s.child.mine != nil, s.child.theirs != nil:
		return nil, espSuite{}, refuse(wire.TemporaryFailure, "it is %v", old.state)
	}
	if transport := notify(ps, wire.UseTransportMode) != nil; !transport && s.child.pair.Mode == ipsec.Transport {
		return nil, espSuite{}, refuse(wire.NoProposalChosen, "a rekey does not change the mode")
	}
	if len(get[*wire.Nonce](ps).Data) < s.keys.suite.prf.Size()/2 {
		return nil, espSuite{}, refuse(wire.InvalidSyntax, "nonce")
	}
	n, suite, err := s.chooseChild(ps, s.child.pair.Selector, get[*wire.KE](ps))
	if err != nil {
		return nil, espSuite{}, err
	}
	n.old, n.mode = old, s.child.pair.Mode
	return n, suite, nil
}

// wantRekey derives the keys and asks the data plane; the answer goes out when that has answered.
func (s *sa) wantRekey(n *negotiation, suite espSuite, ps []wire.Payload) error {
	ni, nr := get[*wire.Nonce](ps).Data, s.e.random(nonceLen)
	n.reply = append(n.reply, &wire.Nonce{Data: nr})
	// RFC 7296, 2.17: with a key exchange of its own the new Child SA has perfect forward secrecy.
	var shared []byte
	if suite.group != groupNone {
		sh, err := newShare(s.e.cfg.Rand, suite.group)
		if err != nil {
			return refuse(wire.TemporaryFailure, "%v", err)
		}
		if shared, err = sh.secret(get[*wire.KE](ps).Data); err != nil {
			return refuse(wire.InvalidSyntax, "key exchange: %v", err)
		}
		n.reply = append(n.reply, &wire.KE{Group: suite.group, Data: sh.public()})
	}
	if n.mode == ipsec.Transport {
		n.reply = append(n.reply, status(wire.UseTransportMode, nil))
	}
	s.child.theirs = n
	s.want(n, suite, ni, nr, shared)
	return nil
}
