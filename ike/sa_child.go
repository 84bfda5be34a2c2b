package ike

import (
	"fmt"
	"net/netip"
	"slices"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// outer are the outer addresses: with ports if the ESP travels in UDP.
func (s *sa) outer() (local, remote netip.AddrPort) {
	if s.encapsulates() && s.local.Port() != portIKE {
		return s.local, s.remote
	}
	return netip.AddrPortFrom(s.local.Addr(), 0), netip.AddrPortFrom(s.remote.Addr(), 0)
}

// pairOf is a Child SA as the data plane calls it.
func (s *sa) pairOf(p *child, c *childSA) ipsec.Pair {
	local, remote := s.outer()
	pair := ipsec.Pair{
		ID: p.id, Local: local, Remote: remote, Mode: p.mode, Selector: p.selector, Authenticated: s.key != nil,
		In: ipsec.SA{SPI: c.in}, Out: ipsec.SA{SPI: c.out},
	}
	if in := s.inner; in != nil && p.selector.Local == single(in.ours) {
		pair.Inner, pair.Selector.Local = in.ours, single(s.local.Addr().Unmap())
	}
	return pair
}

// want asks the data plane for the Child SA. ni, nr and shared are those of its exchange.
func (s *sa) want(n *negotiation, suite espSuite, ni, nr, shared, added []byte) {
	rekey := n.child != nil
	if !rekey {
		b := &firstborn{child: child{id: s.e.nextPair}, sa: *n.fresh}
		b.sas = b.list[:0]
		n.child, n.fresh = &b.child, &b.sa
		s.e.nextPair += uint32(s.e.cfg.Shards)
		s.child.all = append(s.child.all, n.child)
	}
	c := n.fresh
	in, out := deriveChild(s.keys.suite.prf, s.keys.d, suite.cipher, ni, nr, shared, added).pair(suite, c.initiator, c.in, c.out)
	n.token, n.deadline = s.e.token(), s.e.now.Add(installWithin)
	n.low = lower(ni, nr)
	p := s.pairOf(&child{id: n.child.id, mode: n.mode, selector: n.selector}, c)
	p.In, p.Out = in, out
	n.pair = p.WithoutKeys()
	c.setState(s.e, childInbound)
	s.emit(ChildWanted{SA: s.id, Token: n.token, Pair: p, Initiator: c.initiator, Rekey: rekey})
}

// firstChild reads the Child SA of an IKE_AUTH response. Without one the IKE SA is of no use to us.
func (s *sa) firstChild(ps []wire.Payload) {
	n, ni, nr := s.child.mine, s.hs.ni, s.hs.nr
	s.hs = nil
	if f := failure(ps); f != nil {
		s.reject(s.refused(f.Type), bye())
		return
	}
	sap, tsi, tsr := get[*wire.SA](ps), getTS(ps, false), getTS(ps, true)
	if sap == nil || tsi == nil || tsr == nil {
		s.reject(errPeer("IKE_AUTH response without a Child SA"), bye())
		return
	}
	if n.inner {
		if err := s.takeInner(ps); err != nil {
			s.reject(err, bye())
			return
		}
		n.selector.Local = single(s.own())
	}
	s.child.grant = grant{n.selector, n.mode}
	suite, out, ok := s.e.offer.acceptESP(sap, groupNone)
	sel, within := accept(n.selector, tsi, tsr)
	if !ok || !within {
		s.reject(errPeer("the Child SA is not what we asked for"), bye())
		return
	}
	if notify(ps, wire.UseTransportMode) == nil {
		n.mode = ipsec.Tunnel // "If the responder declines the request, the Child SA will be established in tunnel mode."
	}
	n.selector, n.fresh.out = sel, out
	s.want(n, suite, ni, nr, nil, nil)
}

// answerFirstChild chooses the Child SA of an IKE_AUTH request: what it answers is in authState.child, at once for a refusal,
// after the data plane's word otherwise.
func (s *sa) answerFirstChild(ps []wire.Payload) {
	a, auth := &s.hs.auths, s.hs.auth
	s.child.grant = grant{allowed(auth, s.own(), s.remote.Addr()), auth.Mode}
	n, suite, err := s.chooseChild(ps, nil, nil)
	if err != nil {
		a.child = []wire.Payload{answer(err)}
		return
	}
	n.mode = s.chooseMode(ps, n.selector)
	n.replyMode()
	n.reply = append(s.replyInner(), n.reply...)
	s.child.theirs = n
	s.want(n, suite, s.hs.ni, s.hs.nr, nil, nil)
}

// chooseMode is transport mode where the peer asks for it, we like it, and it is about the two hosts themselves.
func (s *sa) chooseMode(ps []wire.Payload, sel ipsec.Selector) ipsec.Mode {
	hosts := sel.Local.IsSingleIP() && sel.Local.Addr() == s.local.Addr().Unmap() && sel.Remote.IsSingleIP() && sel.Remote.Addr() == s.remote.Addr().Unmap()
	if s.child.grant.mode == ipsec.Transport && hosts && notify(ps, wire.UseTransportMode) != nil {
		return ipsec.Transport
	}
	return ipsec.Tunnel
}

// replyMode echoes USE_TRANSPORT_MODE.
func (n *negotiation) replyMode() {
	if n.mode == ipsec.Transport {
		n.reply = append(n.reply, status(wire.UseTransportMode, nil))
	}
}

// chooseChild makes a responder's choice of algorithms and traffic: what is rekeyed keeps its selector (RFC 7296, 2.9.2). ke is the
// KE payload's, nil without one.
func (s *sa) chooseChild(ps []wire.Payload, rekeyed *child, ke *wire.KE) (*negotiation, espSuite, error) {
	tsi, tsr := getTS(ps, false), getTS(ps, true)
	if tsi == nil || tsr == nil {
		return nil, espSuite{}, refuse(wire.InvalidSyntax, "no traffic selectors")
	}
	want, group := s.child.grant.selector, groupNone
	if rekeyed != nil {
		want = rekeyed.selector
	}
	if ke != nil {
		group = ke.Group
	}
	in := s.e.newSPI()
	suite, out, sap, ok := s.e.offer.chooseESP(get[*wire.SA](ps), s.state == established, s.e.mixes(), group, in)
	sel, within := narrow(want, tsi.Selectors, tsr.Selectors)
	switch {
	case !ok:
		delete(s.e.spis, in)
		return nil, espSuite{}, refuse(wire.NoProposalChosen, "no ESP proposal of ours")
	case suite.group != groupNone && suite.group != group:
		delete(s.e.spis, in)
		return nil, espSuite{}, invalidKE(suite.group, group)
	case !within || rekeyed != nil && sel != want:
		delete(s.e.spis, in)
		return nil, espSuite{}, refuse(wire.TSUnacceptable, "traffic selectors without %v", want)
	}
	n := &negotiation{child: rekeyed, fresh: &childSA{in: in, out: out}, selector: sel, reply: []wire.Payload{sap}}
	return n, suite, nil
}

// onInstalled takes the data plane's word.
func (s *sa) onInstalled(r Installed) {
	if n := s.child.mine; n != nil && n.token != 0 && n.token == r.Token {
		s.installedMine(n, r.Err)
	} else if n := s.child.theirs; n != nil && n.token != 0 && n.token == r.Token {
		s.installedTheirs(n, r.Err)
	}
}

// installedTheirs: the data plane has the Child SA that the peer asked for, so the answer may go out.
func (s *sa) installedTheirs(n *negotiation, err error) {
	c := &s.child
	n.token = 0
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrInstall, err)
		c.abandon(s.e, n)
	}
	if s.hs != nil { // of IKE_AUTH: the signature may still be out
		s.hs.auths.child = append(n.reply, tsPayloads(n.selector, false)...)
		if err != nil {
			s.hs.auths.child = []wire.Payload{&wire.Notify{Type: wire.NoProposalChosen}}
			c.checkDown(s, err)
		}
		s.finishAuth()
		return
	}
	if err != nil {
		s.reply(&wire.Notify{Type: wire.TemporaryFailure})
		c.checkDown(s, err)
		return
	}
	if !n.followed {
		n.reply = append(n.reply, tsPayloads(n.selector, false)...)
	}
	s.reply(n.reply...)
	c.answered(s)
}

// installedMine: the data plane has the Child SA that we asked for, or has not. Then the peer's half must go again.
func (s *sa) installedMine(n *negotiation, err error) {
	c := &s.child
	c.mine = nil
	switch {
	case err == nil:
		c.up(s, n)
	case len(n.child.sas) == 0 && len(c.all) == 1: // it was to be the first
		delete(s.e.spis, n.fresh.in)
		s.reject(fmt.Errorf("%w: %w", ErrInstall, err), bye())
	default:
		s.discard(n)
		if n.old != nil {
			c.retry(s, n.child, n.old)
		}
	}
}

// discard lets the peer know that a Child SA that it has made with us is not wanted. Our data plane does not have it.
func (s *sa) discard(n *negotiation) {
	if n.fresh.state == childOffered {
		n.fresh.setState(s.e, childInbound)
	}
	n.fresh.setState(s.e, childUp)
	n.fresh.endAt, n.fresh.unborn = s.e.now, true
	n.child.sas = append(n.child.sas, n.fresh)
}

// overdue gives up a data plane that does not answer: a rekey that hangs would keep all others from being made. Should it answer yet,
// the Child SA that nobody knows any more is taken from it again.
func (c *children) overdue(s *sa) {
	for _, n := range [...]*negotiation{c.mine, c.theirs} {
		if n == nil || n.token == 0 || s.hs != nil || !due(n.deadline, s.e.now) {
			continue
		}
		s.emit(ChildRetired{s.id, n.child.id, n.fresh.in})
		late := fmt.Errorf("no answer in %v", installWithin)
		if n == c.mine {
			s.installedMine(n, late)
		} else {
			s.installedTheirs(n, late)
		}
		if s.quiet {
			return
		}
	}
}

// answered: the reply to the peer's exchange is out, so the Child SA is up.
func (c *children) answered(s *sa) {
	if n := c.theirs; n != nil {
		c.theirs = nil
		if s.in.exch == wire.CreateChildSA { // before IKE_AUTH is answered the peer takes no requests at all
			n.fresh.sureAt, c.unsure = s.e.now.Add(replacedFor), true
		}
		c.up(s, n)
	}
}

// sure: the peer has sent another request, so it has our last answer, the window being 1.
func (c *children) sure() {
	if !c.unsure {
		return
	}
	c.unsure = false
	for _, p := range c.all {
		for _, x := range p.sas {
			x.sureAt = 0
		}
	}
}

// up makes the new Child SA the one that counts. The one that it replaces is deleted by whoever began the rekey; a responder
// waits for that.
func (c *children) up(s *sa, n *negotiation) {
	now, f, p := s.e.now, n.fresh, n.child
	f.setState(s.e, childUp)
	f.born = now
	p.sas = append(p.sas, f)
	if n.redundant {
		f.endAt = now.Add(replacedFor)
		return
	}
	life := s.e.cfg.ChildLifetime
	if !f.initiator {
		life = life * 3 / 2
	}
	f.rekeyAt = now.Add(life - jitter(s.e.jitter, life/10))
	if s.key != nil && !n.pair.Authenticated { // the peer has become somebody while the data plane was asked
		f.rekeyAt = now
	}
	rekey := p.selector.Local.IsValid()
	p.mode, p.selector, p.since = n.mode, n.selector, 0
	s.timer.childless = 0
	if n.old != nil && n.old.serves() {
		f.replaces, n.old.heir = n.old, f
		n.old.rekeyAt = 0
		n.old.endAt = now
		if !f.initiator {
			n.old.endAt = now.Add(replacedFor)
		}
	}
	for _, x := range p.sas { // what the peer had lost was kept until now
		if x.state == childRetired {
			x.endAt = earliest(x.endAt, now.Add(retireAfter))
		}
	}
	s.emit(ChildUp{SA: s.id, Pair: n.pair, Rekey: rekey})
	if !rekey {
		s.meet()
		s.hybridAfter()
		if !f.initiator {
			s.begunAnew(p)
		}
	}
}

// byOut finds the Child SA by the SPI that the peer receives on.
func (c *children) byOut(spi ipsec.SPI) (*child, *childSA) {
	for _, p := range c.all {
		for _, x := range p.sas {
			if x.out == spi && x.state != childRetired {
				return p, x
			}
		}
	}
	return nil, nil
}

// retire ends a Child SA for the peer. A packet that is still on its way is taken for a moment longer; the end that asked for
// the end waits twice as long, so that the other has gone over to the new SA by then even if it had nothing to receive.
func (s *sa) retire(x *childSA) {
	wait := retireAfter
	if x.state == childDeleting {
		wait *= 2
	}
	x.setState(s.e, childRetired)
	// The peer could not install the one that it asked for: the old one serves on.
	if old := x.replaces; old != nil && old.heir == x && old.serves() && x.heir == nil && !x.initiator {
		old.heir, old.endAt = nil, 0
		old.rekeyAt = s.e.now.Add(s.e.cfg.ChildLifetime)
	}
	x.rekeyAt, x.endAt = 0, s.e.now.Add(wait)
}

// deleted: the peer has answered our DELETE.
func (c *children) deleted(s *sa) {
	for _, p := range c.all {
		for _, x := range p.sas {
			if x.state == childDeleting {
				s.retire(x)
			}
		}
	}
	c.checkDown(s, nil)
}

// serves reports whether neither end has begun to delete it.
func (c *childSA) serves() bool { return c.state == childUp || c.state == childRekeying }

// newest is the Child SA that traffic is to use; nil: there is none.
func (p *child) newest() *childSA {
	for _, x := range p.sas {
		if x.serves() && x.heir == nil && !x.unborn {
			return x
		}
	}
	return nil
}

// serving counts the Child SAs that are not gone for the peer.
func (p *child) serving() (n int) {
	for _, x := range p.sas {
		if x.state != childRetired {
			n++
		}
	}
	return n
}

// stale is a Child SA that we must delete.
func (c *children) stale(now moment) *childSA {
	for _, p := range c.all {
		for _, x := range p.sas {
			if due(x.endAt, now) && x.serves() {
				return x
			}
		}
	}
	return nil
}

// deleteChild sends the DELETE of one (RFC 7296, 1.4.1).
func (s *sa) deleteChild(x *childSA) {
	x.setState(s.e, childDeleting)
	x.endAt = 0
	for _, p := range s.child.all {
		if slices.Contains(p.sas, x) && p.newest() == nil { // the last of its Pair: another may be there for the same traffic
			if q := s.child.carrying(p.selector); q != nil {
				s.emit(ChildPreferred{SA: s.id, Pair: s.pairOf(q, q.newest())})
			}
		}
	}
	s.send(taskDeleteChild, wire.Informational, &wire.Delete{Protocol: wire.ProtocolESP, SPIs: []uint32{uint32(x.in)}})
}

// busy reports whether we are creating, rekeying or closing a Child SA (RFC 7296, 2.25.1).
func (c *children) busy() bool {
	if c.mine != nil || c.theirs != nil {
		return true
	}
	for _, p := range c.all {
		for _, x := range p.sas {
			if x.state == childDeleting {
				return true
			}
		}
	}
	return false
}

// pending reports whether a Child SA of the Pair is coming.
func (c *children) pending(p *child) bool {
	return c.mine != nil && c.mine.child == p || c.theirs != nil && c.theirs.child == p ||
		slices.ContainsFunc(c.wishes, func(w wish) bool { return w.child == p })
}

// checkDown reports the end of the Pairs of which no Child SA is left and none is coming.
func (c *children) checkDown(s *sa, err error) {
	c.all = slices.DeleteFunc(c.all, func(p *child) bool {
		if p.serving() > 0 || c.pending(p) {
			return false
		}
		p.drop(s.e)
		s.emit(ChildDown{s.id, p.id, err})
		return true
	})
	if len(c.all) == 0 && c.mine == nil && c.theirs == nil && len(c.wishes) == 0 && s.timer.childless.IsZero() {
		s.timer.childless = s.e.now.Add(childlessFor)
	}
}

// drop frees all SPIs.
func (c *children) drop(e *Endpoint) {
	for _, p := range c.all {
		p.drop(e)
	}
	c.abandon(e, c.mine)
	c.abandon(e, c.theirs)
	c.all, c.wishes = nil, nil
}

func (p *child) drop(e *Endpoint) {
	for _, x := range p.sas {
		delete(e.spis, x.in)
	}
}

// abandon forgets a negotiation.
func (c *children) abandon(e *Endpoint, n *negotiation) {
	if n == nil {
		return
	}
	delete(e.spis, n.fresh.in)
	switch {
	case c.mine == n:
		c.mine = nil
	case c.theirs == n:
		c.theirs = nil
		if c.mine != nil && c.mine.rival == n {
			c.mine.rival = nil
		}
	}
}

// tick reports the inbound SAs whose time is over.
func (c *children) tick(s *sa) {
	c.overdue(s)
	for _, p := range c.all {
		p.sas = slices.DeleteFunc(p.sas, func(x *childSA) bool {
			if x.state != childRetired || !due(x.endAt, s.e.now) {
				return false
			}
			if !x.unborn {
				s.emit(ChildRetired{s.id, p.id, x.in})
			}
			if x.heir != nil && x.heir.replaces == x {
				x.heir.replaces = nil
			}
			delete(s.e.spis, x.in)
			return true
		})
	}
}

// wake is when tick wants to be called.
func (c *children) wake() moment {
	var first moment
	for _, n := range []*negotiation{c.mine, c.theirs} {
		if n != nil && n.token != 0 {
			first = earliest(first, n.deadline)
		}
	}
	for _, p := range c.all {
		for _, x := range p.sas {
			if x.state == childRetired {
				first = earliest(first, x.endAt)
			}
		}
	}
	return first
}
