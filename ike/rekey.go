package ike

import (
	"bytes"
	"encoding/binary"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// CREATE_CHILD_SA for Child SAs: more of them, and new ones for old (RFC 7296, 1.3.1, 1.3.3, 2.8). Both ends may ask at once
// (2.8.1): both are answered, and each end compares the four nonces when it has seen them.

// wish is a Child SA that we are to ask for.
type wish struct {
	child    *child // of an existing Pair, which has lost its SAs; nil: a new Pair
	selector ipsec.Selector
	at       moment // not before
}

const (
	temporaryFor = 5 * time.Minute // "If a peer continues to receive TEMPORARY_FAILURE [...] after several minutes" (RFC 7296, 2.25)
	longestRetry = 30 * time.Second
)

// lower is the one of two nonces that is the lower: "an octet-by-octet comparison", and the shorter if one begins the other
// (RFC 7296, 2.8.1), which is how bytes.Compare orders.
func lower(a, b []byte) []byte {
	if bytes.Compare(a, b) < 0 {
		return a
	}
	return b
}

// current is the Child SA that carries the traffic and may be rekeyed; nil if there is none.
func (p *child) current() *childSA {
	for _, x := range p.sas {
		if x.state == childUp && !x.rekeyAt.IsZero() {
			return x
		}
	}
	return nil
}

// mayRekey is when a Child SA is to be rekeyed and can be.
func (c *childSA) mayRekey() moment {
	if c.rekeyAt.Before(c.sureAt) {
		return c.sureAt
	}
	return c.rekeyAt
}

// toRekey finds a Child SA whose rekey is due.
func (c *children) toRekey(now moment) (*child, *childSA) {
	if c.mine != nil || c.theirs != nil {
		return nil, nil
	}
	for _, p := range c.all {
		if x := p.current(); x != nil && due(x.mayRekey(), now) {
			return p, x
		}
	}
	return nil, nil
}

// toCreate takes the first wish whose time has come.
func (c *children) toCreate(now moment) (wish, bool) {
	if c.mine != nil || c.theirs != nil {
		return wish{}, false
	}
	for i, w := range c.wishes {
		if !now.Before(w.at) {
			c.wishes = append(c.wishes[:i:i], c.wishes[i+1:]...)
			return w, true
		}
	}
	return wish{}, false
}

// workDue is when pump has something to do for the Child SAs.
func (c *children) workDue() moment {
	var first moment
	idle := c.mine == nil && c.theirs == nil
	for _, p := range c.all {
		for _, x := range p.sas {
			if x.serves() {
				first = earliest(first, x.endAt)
			}
		}
		if x := p.current(); x != nil && idle {
			first = earliest(first, x.mayRekey())
		}
	}
	for _, w := range c.wishes {
		if idle {
			first = earliest(first, w.at)
		}
	}
	return first
}

// rekeyNow makes the rekeys of all Child SAs due.
func (c *children) rekeyNow(now moment) {
	for _, p := range c.all {
		if x := p.current(); x != nil {
			x.rekeyAt = now
		}
	}
}

// startRekey asks for a new Child SA in place of an old one (RFC 7296, 1.3.3).
func (s *sa) startRekey(p *child, old *childSA) {
	old.setState(s.e, childRekeying)
	s.ask(&negotiation{child: p, old: old, mode: p.mode, selector: p.selector}, s.keys.suite.group)
}

// startCreate asks for another Child SA (RFC 7296, 1.3.1).
func (s *sa) startCreate(w wish) {
	n := &negotiation{child: w.child, mode: s.child.grant.mode, selector: w.selector}
	if w.child != nil {
		n.mode, n.selector = w.child.mode, w.child.selector
	}
	s.ask(n, s.keys.suite.group)
}

// startWish asks for what we wish to have, if it is time.
func (s *sa) startWish() bool {
	w, ok := s.child.toCreate(s.e.now)
	if ok {
		s.startCreate(w)
	}
	return ok
}

// ask sends the request, with a key exchange of the group if the peer takes one.
func (s *sa) ask(n *negotiation, group uint16) {
	if n.fresh == nil {
		n.fresh = &childSA{initiator: true, in: s.e.newSPI()}
	}
	n.ni, n.share = s.e.random(nonceLen), nil
	s.child.mine = n
	if n.child != nil && n.child.noPFS {
		group = groupNone
	}
	if group == groupNone {
		s.sendAsk(n, groupNone)
		return
	}
	sh, err := newShare(s.e.cfg.Rand, group)
	if err != nil {
		s.sendAsk(n, groupNone)
		return
	}
	s.out.state, s.out.task = waiting, taskChild // so that no other request takes its place while this one is computed
	s.compute(sh, nil, func(r SharedSecret) {
		s.out.state = idle
		switch {
		case s.state == established && s.child.mine == n:
			n.share = &r.share
			s.sendAsk(n, group)
		case s.state == deleting:
			s.leaveTaking()
		}
	})
}

// sendAsk sends the request.
func (s *sa) sendAsk(n *negotiation, group uint16) {
	var ps []wire.Payload
	if n.old != nil {
		ps = append(ps, &wire.Notify{Protocol: wire.ProtocolESP, SPI: espSPI(n.old.in), Type: wire.RekeySA})
	}
	if n.mode == ipsec.Transport {
		ps = append(ps, status(wire.UseTransportMode, nil))
	}
	ps = append(ps, s.e.offer.rekeyProposal(n.fresh.in, group), &wire.Nonce{Data: n.ni})
	if group != groupNone {
		ps = append(ps, &wire.KE{Group: group, Data: n.share.public()})
	}
	ps = append(ps, tsPayloads(n.selector, true)...)
	s.send(taskChild, wire.CreateChildSA, ps...)
}

// onChildResponse reads the new Child SA. A peer whose answer makes no sense has an SA that we do not know: all of it goes.
func (s *sa) onChildResponse(ps []wire.Payload, err error) {
	n := s.child.mine
	if s.state != established || n == nil {
		return
	}
	if f := failure(ps); err == nil && f != nil {
		s.childRefused(n, f)
		return
	}
	if err == nil {
		err = ruleCreateChildResponse.check(ps)
	}
	if err == nil {
		err = s.acceptChild(n, ps)
	}
	if err != nil {
		s.reject(err, bye())
	}
}

// acceptChild checks the response before anything changes.
func (s *sa) acceptChild(n *negotiation, ps []wire.Payload) error {
	group, nonce := groupNone, get[*wire.Nonce](ps).Data
	if n.share != nil {
		group = n.share.group
	}
	suite, out, ok := s.e.offer.acceptESP(get[*wire.SA](ps), group)
	sel, within := accept(n.selector, getTS(ps, false), getTS(ps, true))
	transport := notify(ps, wire.UseTransportMode) != nil
	switch {
	case !ok || !within || transport && n.mode != ipsec.Transport:
		return errPeer("the new Child SA is not what we asked for")
	case n.child != nil && (sel != n.selector || transport != (n.mode == ipsec.Transport)):
		return errPeer("the new Child SA is not like the old one")
	case len(nonce) < s.keys.suite.prf.Size()/2 || bytes.Equal(nonce, n.ni):
		return errPeer("nonce")
	}
	agreed := func(shared []byte) {
		n.fresh.out, n.selector = out, sel
		if !transport {
			n.mode = ipsec.Tunnel
		}
		if !s.collided(n, nonce) {
			s.want(n, suite, n.ni, nonce, shared, nil)
		}
	}
	if suite.group == groupNone {
		agreed(nil)
		return nil
	}
	ke := get[*wire.KE](ps)
	if ke == nil || ke.Group != suite.group {
		return errPeer("no key exchange of group %d", suite.group)
	}
	s.compute(*n.share, ke.Data, func(r SharedSecret) {
		switch {
		case s.state != established || s.child.mine != n || n.token != 0:
		case r.err != nil:
			s.reject(r.err, bye())
		default:
			agreed(r.secret)
		}
	})
	return nil
}

// collided settles simultaneous rekeys when all four nonces are known: "the SA created with the lowest of the four nonces [...]
// SHOULD be closed by the endpoint that created it" (RFC 7296, 2.8.1). It reports whether that is ours.
func (s *sa) collided(n *negotiation, nr []byte) bool {
	r := n.rival
	pending := r != nil && s.child.theirs == r && s.awaits()
	if r == nil || !pending && r.fresh.state != childInbound && r.fresh.state != childUp { // the peer has deleted it already
		return false
	}
	if mine := lower(n.ni, nr); bytes.Compare(mine, r.low) > 0 {
		if pending { // the peer does not follow it up (RFC 9370, 2.2.4)
			s.forsake()
			return false
		}
		r.redundant = true
		if r.fresh.state == childUp {
			r.fresh.rekeyAt, r.fresh.endAt = 0, s.e.now.Add(replacedFor)
		}
		return false
	}
	s.child.mine = nil
	s.discard(n)
	s.child.retry(s, n.child, n.old) // the peer deletes it, when its own SA is up; if that does not come up, we try again
	return true
}

// childRefused: the old Child SA serves on, and is tried again.
func (s *sa) childRefused(n *negotiation, f *wire.Notify) {
	c := &s.child
	if g, ok := otherGroup(f); ok && n.share != nil && !n.again && g != n.share.group && s.e.offer.has(g) {
		n.again = true
		s.ask(n, g)
		return
	}
	c.abandon(s.e, n)
	p, err := n.child, NotifyError{f.Type}
	if f.Type != wire.TemporaryFailure && p != nil && n.share != nil {
		p.noPFS = true
	}
	switch {
	case n.old != nil && f.Type == wire.ChildSANotFound:
		s.lost(p, n.old)
	case n.old != nil:
		if s.patience(p, n.old, f) {
			c.retry(s, p, n.old)
		}
	case f.Type == wire.TemporaryFailure:
		c.wishes = append(c.wishes, wish{child: p, selector: n.selector, at: s.e.now.Add(s.backoff(s.e.cfg.ChildLifetime))})
	default:
		s.emit(ChildRefused{s.id, n.selector, err})
	}
	if s.state == established {
		c.checkDown(s, err)
	}
}

// otherGroup reads INVALID_KE_PAYLOAD.
func otherGroup(f *wire.Notify) (uint16, bool) {
	if f.Type != wire.InvalidKEPayload || len(f.Data) != 2 {
		return 0, false
	}
	return binary.BigEndian.Uint16(f.Data), true
}

// patience ends the IKE SA when a Child SA could not be rekeyed for far too long: the two ends do not agree on what there is.
func (s *sa) patience(p *child, old *childSA, f *wire.Notify) bool {
	switch {
	case f.Type != wire.TemporaryFailure:
		p.since = 0
	case p.since.IsZero():
		p.since = s.e.now
	}
	stuck := !p.since.IsZero() && s.e.now.Sub(p.since) > temporaryFor
	if old.heir == nil && (stuck || s.e.now.Sub(old.born) > 3*s.e.cfg.ChildLifetime) {
		s.reject(NotifyError{f.Type}, bye())
		return false
	}
	return true
}

// lost takes a Child SA away that the peer does not have: "SHOULD silently delete the Child SA (if it still exists) and send a
// request to create a new Child SA from scratch" (RFC 7296, 2.25). What it received is taken until that is up.
func (s *sa) lost(p *child, old *childSA) {
	if old.state != childRekeying {
		return
	}
	s.retire(old)
	old.endAt = s.e.now.Add(replacedFor)
	if p.serving() == 0 {
		s.child.wishes = append(s.child.wishes, wish{child: p, at: s.e.now})
	}
}

// retry lets a Child SA that could not be rekeyed serve on for a while, unless the peer has rekeyed it meanwhile.
func (c *children) retry(s *sa, p *child, old *childSA) {
	if old.state != childRekeying {
		return
	}
	old.setState(s.e, childUp)
	if old.heir == nil {
		old.rekeyAt = s.e.now.Add(s.backoff(s.e.cfg.ChildLifetime))
	}
}

// backoff is how long to wait before a refused exchange is tried again: at random, so that the two ends get out of step.
func (s *sa) backoff(life time.Duration) time.Duration {
	wait := min(max(life/8, 100*time.Millisecond), longestRetry)
	return wait + jitter(s.e.jitter, wait)
}

// onCreateChildRequest answers the peer's CREATE_CHILD_SA.
func (s *sa) onCreateChildRequest(ps []wire.Payload) {
	if err := ruleCreateChildRequest.check(ps); err != nil {
		s.malformed(err)
		return
	}
	s.forsake()
	var err error
	switch r := notify(ps, wire.RekeySA); {
	case len(get[*wire.Nonce](ps).Data) < s.keys.suite.prf.Size()/2:
		err = refuse(wire.InvalidSyntax, "nonce")
	case r == nil && get[*wire.SA](ps).Proposals[0].Protocol == wire.ProtocolIKE:
		err = s.answerIKERekey(ps)
	case r != nil:
		err = s.answerRekey(ps, r)
	default:
		err = s.answerCreate(ps)
	}
	if err != nil {
		s.reply(answer(err))
	}
}

// answerCreate grants another Child SA.
func (s *sa) answerCreate(ps []wire.Payload) error {
	switch {
	case s.state != established:
		return refuse(wire.TemporaryFailure, "the IKE SA is %v", s.state)
	case len(s.child.all) >= maxChildren:
		return refuse(wire.NoAdditionalSAs, "%d Child SAs", len(s.child.all))
	}
	n, suite, err := s.chooseChild(ps, nil, get[*wire.KE](ps))
	if err != nil {
		return err
	}
	n.mode = s.chooseMode(ps, n.selector)
	return s.answerChild(n, suite, ps)
}

// answerRekey grants a rekey, also of what we are rekeying (RFC 7296, 2.25.1), but not of what we are closing, be it that we have
// rekeyed it already.
func (s *sa) answerRekey(ps []wire.Payload, r *wire.Notify) error {
	var p *child
	var old *childSA
	if r.Protocol == wire.ProtocolESP && len(r.SPI) == 4 {
		p, old = s.child.byOut(ipsec.SPI(binary.BigEndian.Uint32(r.SPI)))
	}
	switch {
	case s.state != established:
		return refuse(wire.TemporaryFailure, "the IKE SA is %v", s.state)
	case old == nil:
		err := refuse(wire.ChildSANotFound, "no Child SA %x", r.SPI)
		if r.Protocol == wire.ProtocolESP && len(r.SPI) == 4 { // "copied from the SPI field in the REKEY_SA notification"
			err.spi = r.SPI
		}
		return err
	case !s.child.rekeyable(old), p.serving() >= maxServing:
		return refuse(wire.TemporaryFailure, "it is %v", old.state)
	}
	if transport := notify(ps, wire.UseTransportMode) != nil; !transport && p.mode == ipsec.Transport {
		return refuse(wire.NoProposalChosen, "a rekey does not change the mode")
	}
	n, suite, err := s.chooseChild(ps, p, get[*wire.KE](ps))
	if err != nil {
		return err
	}
	n.old, n.mode = old, p.mode
	return s.answerChild(n, suite, ps)
}

// rekeyable reports whether nothing has taken a Child SA's place yet. Our own request for that may be out, but not be answered.
func (c *children) rekeyable(x *childSA) bool {
	switch x.state {
	case childUp:
		return !x.rekeyAt.IsZero()
	case childRekeying:
		return c.mine != nil && c.mine.old == x && c.mine.token == 0 && c.mine.rival == nil
	}
	return false
}

// answerChild derives the keys and asks the data plane; the answer goes out when that has answered.
func (s *sa) answerChild(n *negotiation, suite espSuite, ps []wire.Payload) error {
	ni, nr := get[*wire.Nonce](ps).Data, s.e.random(nonceLen)
	n.reply = append(n.reply, &wire.Nonce{Data: nr})
	s.child.theirs = n
	// RFC 7296, 2.17: with a key exchange of its own the new Child SA has perfect forward secrecy.
	s.answerKE(suite.group, get[*wire.KE](ps), func(shared []byte, ke *wire.KE, err error) {
		if s.child.theirs != n { // the IKE SA has ended
			return
		}
		if err != nil {
			s.child.abandon(s.e, n)
			s.reply(answer(err))
			return
		}
		if ke != nil {
			n.reply = append(n.reply, ke)
		}
		n.replyMode()
		if suite.add == groupNone {
			s.grantChild(n, suite, ni, nr, shared, nil)
			return
		}
		s.meetChild(n, ni, nr)
		link := s.awaitFollowUp(suite.add, func(added []byte, ke *wire.KE) {
			n.followed, n.reply = true, []wire.Payload{ke}
			s.grantChild(n, suite, ni, nr, shared, added)
		}, func(*wire.Notify) {
			s.child.abandon(s.e, n)
			s.child.checkDown(s, nil)
		})
		s.reply(append(append(n.reply, tsPayloads(n.selector, false)...), link)...)
	})
	return nil
}

// grantChild asks the data plane for what the peer wants.
func (s *sa) grantChild(n *negotiation, suite espSuite, ni, nr, shared, added []byte) {
	s.want(n, suite, ni, nr, shared, added)
	s.meetChild(n, ni, nr)
}

// meetChild remembers that the peer rekeys a Child SA that we rekey as well.
func (s *sa) meetChild(n *negotiation, ni, nr []byte) {
	n.low = lower(ni, nr)
	if m := s.child.mine; n.old != nil && m != nil && m.old == n.old {
		m.rival = n
	}
}

// answerKE makes our half of a key exchange and the shared secret, and goes on with then; nothing for groupNone.
func (s *sa) answerKE(group uint16, theirs *wire.KE, then func(shared []byte, ours *wire.KE, err error)) {
	if group == groupNone {
		then(nil, nil, nil)
		return
	}
	if slow(group) && len(s.e.work) >= maxWork {
		then(nil, nil, refuse(wire.TemporaryFailure, "too many key exchanges at once"))
		return
	}
	sh, err := newShare(s.e.cfg.Rand, group)
	if err != nil {
		then(nil, nil, refuse(wire.TemporaryFailure, "%v", err))
		return
	}
	s.compute(sh, theirs.Data, func(r SharedSecret) {
		if !s.open() || !s.in.busy {
			return
		}
		if r.err != nil {
			then(nil, nil, refuse(wire.InvalidSyntax, "key exchange: %v", r.err))
			return
		}
		then(r.secret, &wire.KE{Group: group, Data: r.share.public()}, nil)
	})
}
