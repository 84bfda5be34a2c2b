package ike

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// childState is where a Child SA stands.
//
//	offered ──► inbound ──► up ◄──► rekeying ──► deleting ──► retired
//	                         └──────────────────────┘            ▲
//	                         └──── deleted by the peer ──────────┘
type childState uint8

const (
	childOffered  childState = iota // its exchange is under way
	childInbound                    // the data plane has been asked to accept it
	childUp                         // both ends have it
	childRekeying                   // up, and another is to take its place
	childDeleting                   // our DELETE is out
	childRetired                    // deleted; packets that are late are still taken for a moment
)

func (s childState) String() string {
	return [...]string{"offered", "inbound", "up", "rekeying", "deleting", "retired"}[s]
}

// childArrows are the allowed changes.
var childArrows = map[childState][]childState{
	childOffered:  {childInbound},
	childInbound:  {childUp},
	childUp:       {childRekeying, childDeleting, childRetired},
	childRekeying: {childUp, childDeleting, childRetired},
	childDeleting: {childRetired},
}

// childSA is two SAs of ESP that were made together.
type childSA struct {
	state     childState
	initiator bool // we asked for it
	in, out   ipsec.SPI
	born      time.Time
	rekeyAt   time.Time // zero: another has taken its place
	deleteAt  time.Time // when we delete it, if nobody else does
	retireAt  time.Time
	unborn    bool // the data plane never had it
	replaces  *childSA
}

// setState is the only place where the state changes.
func (c *childSA) setState(e *Endpoint, to childState) {
	if !slices.Contains(childArrows[c.state], to) {
		e.drop("no arrow from child " + c.state.String() + " to " + to.String()) // a mistake of this package
	}
	c.state = to
}

// children are the Child SAs of an IKE SA: one Pair, which keeps its ID over rekeys.
type children struct {
	pair   ipsec.Pair // what all have in common; ID 0: there is none
	list   []*childSA
	mine   *negotiation // in an exchange of ours
	theirs *negotiation // in one of the peer's
	noPFS  bool         // the peer has refused a key exchange at a rekey
}

// negotiation is a Child SA in the making.
type negotiation struct {
	old, fresh *childSA // old: nil for the first
	mode       ipsec.Mode
	selector   ipsec.Selector
	ni         []byte
	share      *share
	token      uint64         // of the ChildWanted that is out
	reply      []wire.Payload // responder
	pair       ipsec.Pair     // without keys
}

// outer are the outer addresses: with ports if the ESP travels in UDP.
func (s *sa) outer() (local, remote netip.AddrPort) {
	if s.encapsulates() && s.local.Port() != portIKE {
		return s.local, s.remote
	}
	return netip.AddrPortFrom(s.local.Addr(), 0), netip.AddrPortFrom(s.remote.Addr(), 0)
}

// want asks the data plane for the Child SA. ni, nr and shared are those of its exchange.
func (s *sa) want(n *negotiation, suite espSuite, ni, nr, shared []byte) {
	c := n.fresh
	in, out := deriveChild(s.keys.suite.prf, s.keys.d, suite.cipher, ni, nr, shared).pair(suite, c.initiator, c.in, c.out)
	if s.child.pair.ID == 0 {
		s.child.pair.ID = s.e.nextPair
		s.e.nextPair++
	}
	p := ipsec.Pair{ID: s.child.pair.ID, Mode: n.mode, Selector: n.selector, In: in, Out: out, Authenticated: s.proved}
	p.Local, p.Remote = s.outer()
	n.token = s.e.token()
	n.pair = p
	n.pair.In.Key, n.pair.In.Salt, n.pair.Out.Key, n.pair.Out.Salt = nil, nil, nil, nil
	c.setState(s.e, childInbound)
	s.emit(ChildWanted{SA: s.id, Token: n.token, Pair: p, Initiator: c.initiator, Rekey: n.old != nil})
}

// firstChild reads the Child SA of an IKE_AUTH response. Without one the IKE SA is of no use to us.
func (s *sa) firstChild(ps []wire.Payload) {
	n, ni, nr := s.child.mine, s.hs.ni, s.hs.nr
	s.hs = nil
	if f := failure(ps); f != nil {
		s.reject(NotifyError{f.Type}, bye())
		return
	}
	sap, tsi, tsr := get[*wire.SA](ps), getTS(ps, false), getTS(ps, true)
	if sap == nil || tsi == nil || tsr == nil {
		s.reject(errPeer("IKE_AUTH response without a Child SA"), bye())
		return
	}
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
	s.want(n, suite, ni, nr, nil)
}

// answerFirstChild chooses the Child SA of an IKE_AUTH request: what it answers is in authState.child, at once for a refusal,
// after the data plane's word otherwise.
func (s *sa) answerFirstChild(ps []wire.Payload) {
	a, auth := &s.hs.auths, s.hs.auth
	n, suite, err := s.chooseChild(ps, allowed(auth, s.local.Addr(), s.remote.Addr()), nil)
	if err != nil {
		a.child = []wire.Payload{answer(err)}
		return
	}
	host := n.selector.Local.Addr() == s.local.Addr().Unmap() && n.selector.Remote.Addr() == s.remote.Addr().Unmap()
	n.mode = ipsec.Tunnel
	if auth.Mode == ipsec.Transport && host && notify(ps, wire.UseTransportMode) != nil {
		n.mode = ipsec.Transport
		n.reply = append(n.reply, status(wire.UseTransportMode, nil))
	}
	s.child.theirs = n
	s.want(n, suite, s.hs.ni, s.hs.nr, nil)
}

// chooseChild makes a responder's choice of algorithms and traffic. ke is the KE payload's, nil without one.
func (s *sa) chooseChild(ps []wire.Payload, want ipsec.Selector, ke *wire.KE) (*negotiation, espSuite, error) {
	tsi, tsr := getTS(ps, false), getTS(ps, true)
	if tsi == nil || tsr == nil {
		return nil, espSuite{}, refuse(wire.InvalidSyntax, "no traffic selectors")
	}
	group, rekey := groupNone, s.child.pair.ID != 0
	if ke != nil {
		group = ke.Group
	}
	in := s.e.newSPI()
	suite, out, sap, ok := s.e.offer.chooseESP(get[*wire.SA](ps), rekey, group, in)
	sel, within := narrow(want, tsi.Selectors, tsr.Selectors)
	switch {
	case !ok:
		delete(s.e.spis, in)
		return nil, espSuite{}, refuse(wire.NoProposalChosen, "no ESP proposal of ours")
	case suite.group != groupNone && suite.group != group:
		delete(s.e.spis, in)
		err := refuse(wire.InvalidKEPayload, "the key exchange is of group %d", group)
		err.data = []byte{byte(suite.group >> 8), byte(suite.group)}
		return nil, espSuite{}, err
	case !within || rekey && sel != want:
		delete(s.e.spis, in)
		return nil, espSuite{}, refuse(wire.TSUnacceptable, "traffic selectors without %v", want)
	}
	n := &negotiation{fresh: &childSA{in: in, out: out}, selector: sel, reply: []wire.Payload{sap}}
	return n, suite, nil
}

// onInstalled takes the data plane's word.
func (s *sa) onInstalled(r Installed) {
	c := &s.child
	switch n := c.mine; {
	case n != nil && n.token != 0 && n.token == r.Token:
		c.mine = nil
		s.installedMine(n, r.Err)
		return
	}
	n := c.theirs
	if n == nil || n.token == 0 || n.token != r.Token {
		return
	}
	n.token = 0
	if s.hs != nil { // of IKE_AUTH: the signature may still be out
		s.hs.auths.child = append(n.reply, tsPayloads(n.selector, false)...)
		if r.Err != nil {
			s.child.abandon(s.e, n)
			s.hs.auths.child = []wire.Payload{&wire.Notify{Type: wire.NoProposalChosen}}
			s.emit(ChildDown{s.id, c.pair.ID, fmt.Errorf("%w: %w", ErrInstall, r.Err)})
			c.pair.ID = 0
		}
		s.finishAuth()
		return
	}
	if r.Err != nil {
		c.abandon(s.e, n)
		s.reply(&wire.Notify{Type: wire.TemporaryFailure})
		c.checkDown(s, r.Err)
		return
	}
	s.reply(append(n.reply, tsPayloads(n.selector, false)...)...)
	c.answered(s)
}

// installedMine: the data plane has the Child SA that we asked for.
func (s *sa) installedMine(n *negotiation, err error) {
	switch {
	case err == nil:
		s.child.up(s, n)
	case n.old == nil:
		delete(s.e.spis, n.fresh.in)
		s.reject(fmt.Errorf("%w: %w", ErrInstall, err), bye())
	default: // the peer has the new one: it must go again, and the old one serves on
		n.fresh.setState(s.e, childUp)
		n.fresh.deleteAt, n.fresh.unborn = s.e.now, true
		s.child.list = append(s.child.list, n.fresh)
		s.child.retry(s, n.old)
	}
}

// answered: the reply to the peer's exchange is out, so the Child SA is up.
func (c *children) answered(s *sa) {
	if n := c.theirs; n != nil {
		c.theirs = nil
		c.up(s, n)
	}
}

// up makes the new Child SA the one that counts. The one that it replaces is deleted by whoever began the rekey; a responder
// waits for that.
func (c *children) up(s *sa, n *negotiation) {
	now, f := s.e.now, n.fresh
	f.setState(s.e, childUp)
	f.born = now
	life := s.e.cfg.ChildLifetime
	if !f.initiator {
		life = life * 3 / 2
	}
	f.rekeyAt = now.Add(life - jitter(s.e.jitter, life/10))
	c.list = append(c.list, f)
	c.pair = n.pair
	s.timer.childless = time.Time{}
	if n.old != nil && n.old.serves() {
		f.replaces = n.old
		n.old.rekeyAt = time.Time{}
		n.old.deleteAt = now
		if !f.initiator {
			n.old.deleteAt = now.Add(replacedFor)
		}
	}
	s.emit(ChildUp{SA: s.id, Pair: n.pair, Rekey: n.old != nil})
}

// replacedFor is how long a responder waits for the DELETE of a Child SA that the peer has rekeyed.
const replacedFor = 30 * time.Second

// byOut finds the Child SA by the SPI that the peer receives on.
func (c *children) byOut(spi ipsec.SPI) *childSA {
	for _, x := range c.list {
		if x.out == spi && x.state != childRetired {
			return x
		}
	}
	return nil
}

// retire ends a Child SA for the peer. A packet that is still on its way is taken for a moment longer; the end that asked for
// the end waits twice as long, so that the other has gone over to the new SA by then even if it had nothing to receive.
func (c *children) retire(s *sa, x *childSA) {
	wait := retireAfter
	if x.state == childDeleting {
		wait *= 2
	}
	x.setState(s.e, childRetired)
	if old := x.replaces; old != nil && old.state == childUp { // the peer could not install the new one: the old one serves on
		old.deleteAt = time.Time{}
		old.rekeyAt = s.e.now.Add(s.e.cfg.ChildLifetime)
	}
	x.rekeyAt, x.deleteAt, x.replaces = time.Time{}, time.Time{}, nil
	x.retireAt = s.e.now.Add(wait)
}

// deleted: the peer has answered our DELETE.
func (c *children) deleted(s *sa) {
	for _, x := range c.list {
		if x.state == childDeleting {
			c.retire(s, x)
		}
	}
	c.checkDown(s, nil)
}

// serves reports whether neither end has begun to delete it.
func (c *childSA) serves() bool { return c.state == childUp || c.state == childRekeying }

// stale is a Child SA that we must delete.
func (c *children) stale(now time.Time) *childSA {
	for _, x := range c.list {
		if due(x.deleteAt, now) && x.serves() {
			return x
		}
	}
	return nil
}

// deleteChild sends the DELETE of one (RFC 7296, 1.4.1).
func (s *sa) deleteChild(x *childSA) {
	x.setState(s.e, childDeleting)
	x.deleteAt = time.Time{}
	s.send(taskDeleteChild, wire.Informational, &wire.Delete{Protocol: wire.ProtocolESP, SPIs: []uint32{uint32(x.in)}})
}

// checkDown reports the end of the Pair when no Child SA is left and none is coming.
func (c *children) checkDown(s *sa, err error) {
	if c.pair.ID == 0 || c.mine != nil || c.theirs != nil || s.state != established {
		return
	}
	for _, x := range c.list {
		if x.state != childRetired {
			return
		}
	}
	s.emit(ChildDown{s.id, c.pair.ID, err})
	c.drop(s.e)
	s.timer.childless = s.e.now.Add(childlessFor)
}

// drop frees all SPIs.
func (c *children) drop(e *Endpoint) {
	for _, x := range c.list {
		delete(e.spis, x.in)
	}
	c.abandon(e, c.mine)
	c.abandon(e, c.theirs)
	c.list, c.pair = nil, ipsec.Pair{}
}

// abandon forgets a negotiation.
func (c *children) abandon(e *Endpoint, n *negotiation) {
	if n == nil {
		return
	}
	delete(e.spis, n.fresh.in)
	if c.mine == n {
		c.mine = nil
	}
	if c.theirs == n {
		c.theirs = nil
	}
}

// tick reports the inbound SAs whose time is over.
func (c *children) tick(s *sa) {
	c.list = slices.DeleteFunc(c.list, func(x *childSA) bool {
		if !due(x.retireAt, s.e.now) {
			return false
		}
		if !x.unborn {
			s.emit(ChildRetired{s.id, c.pair.ID, x.in})
		}
		delete(s.e.spis, x.in)
		return true
	})
}

// wake is when tick wants to be called.
func (c *children) wake() time.Time {
	var first time.Time
	for _, x := range c.list {
		first = earliest(first, x.retireAt)
	}
	return first
}
