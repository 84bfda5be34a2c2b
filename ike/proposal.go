package ike

import (
	"crypto"
	"encoding/binary"
	"slices"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// offer is the set of algorithms that an Endpoint proposes and accepts, each list best first.
type offer struct {
	ike, esp    []cipherSuite
	integrities []ipsec.Integrity
	groups      []uint16
}

var defaultOffer = offer{ikeCiphers, espCiphers, integrities, groups}

func (o offer) has(group uint16) bool { return slices.Contains(o.groups, group) }

// ciphers are those for a protocol.
func (o offer) ciphers(protocol wire.Protocol) []cipherSuite {
	if protocol == wire.ProtocolIKE {
		return o.ike
	}
	return o.esp
}

// protection lists the ciphers of one kind as transforms: those that are combined-mode, or the others with their integrity algorithms.
// The two kinds need a proposal each (RFC 7296, 3.3.3).
func (o offer) protection(protocol wire.Protocol, combined bool) []wire.Transform {
	ts := make([]wire.Transform, 0, 16)
	for _, c := range o.ciphers(protocol) {
		if c.cipher.Combined() == combined {
			ts = append(ts, wire.Transform{Type: wire.TransformEncr, ID: uint16(c.cipher), KeyLength: c.bits})
		}
	}
	if len(ts) > 0 && !combined {
		for _, i := range o.integrities {
			ts = append(ts, wire.Transform{Type: wire.TransformInteg, ID: uint16(i)})
		}
	}
	return ts
}

// kinds makes a proposal of each kind of cipher that the offer has: with is what the proposal has beside them.
func (o offer) kinds(protocol wire.Protocol, spi []byte, with []wire.Transform) *wire.SA {
	sa := &wire.SA{}
	for _, combined := range []bool{true, false} {
		if ts := o.protection(protocol, combined); len(ts) > 0 {
			sa.Proposals = append(sa.Proposals, wire.Proposal{
				Number: uint8(len(sa.Proposals) + 1), Protocol: protocol, SPI: spi, Transforms: append(ts, with...),
			})
		}
	}
	return sa
}

// ikeProposal is what we ask for in IKE_SA_INIT, the given group first if there is one.
func (o offer) ikeProposal(group uint16) *wire.SA {
	ts := make([]wire.Transform, 0, len(prfs)+len(o.groups)+1)
	for _, p := range prfs {
		ts = append(ts, wire.Transform{Type: wire.TransformPRF, ID: p.id})
	}
	return o.kinds(wire.ProtocolIKE, nil, o.appendGroups(ts, group))
}

// appendGroups appends the offer's key exchange methods, the given one first if there is one.
func (o offer) appendGroups(ts []wire.Transform, first uint16) []wire.Transform {
	if first != groupNone {
		ts = append(ts, wire.Transform{Type: wire.TransformKE, ID: first})
	}
	for _, g := range o.groups {
		if g != first {
			ts = append(ts, wire.Transform{Type: wire.TransformKE, ID: g})
		}
	}
	return ts
}

// hybridProposal is ikeProposal with one more, first or last, that has ML-KEM beside the group (RFC 9370, 2.2.1), with the better
// ciphers alone. Who does not know it passes it over.
func (o offer) hybridProposal(group uint16, first bool) *wire.SA {
	sa := o.ikeProposal(group)
	hybrid, at := sa.Proposals[0], len(sa.Proposals)
	hybrid.Transforms = append(slices.Clone(hybrid.Transforms), wire.Transform{Type: wire.TransformAddKE, ID: kemMLKEM768})
	if first {
		at = 0
	}
	sa.Proposals = slices.Insert(sa.Proposals, at, hybrid)
	for i := range sa.Proposals {
		sa.Proposals[i].Number = uint8(i + 1)
	}
	return sa
}

// initProposal is what we ask for in IKE_SA_INIT. With After the hybrid comes last: a peer that wants it at once takes it all the same.
func (e *Endpoint) initProposal(group uint16) *wire.SA {
	if !e.mixes() {
		return e.offer.ikeProposal(group)
	}
	return e.offer.hybridProposal(group, e.cfg.PostQuantum == Before)
}

// additional is what we think of an additional key exchange in a proposal.
type additional uint8

const (
	declined  additional = iota
	ifNeedBe             // chosen where no proposal without it will do
	preferred            // chosen where it can be
)

// wantsHybrid is what a responder thinks of it in IKE_SA_INIT. An initiator that has it after others wants to be up before, and sees
// to it then.
func (e *Endpoint) wantsHybrid(ps []wire.Payload) additional {
	isAdditional := func(t wire.Transform) bool { return t.Type == wire.TransformAddKE }
	switch {
	case !e.hybrid(ps):
		return declined
	case e.cfg.PostQuantum == Before, slices.ContainsFunc(get[*wire.SA](ps).Proposals[0].Transforms, isAdditional):
		return preferred
	}
	return ifNeedBe
}

// espProposal is what we ask for as a Child SA: ESN preferred. group is that of the KE payload, groupNone without one.
func (o offer) espProposal(in ipsec.SPI, group uint16) *wire.SA {
	var ts []wire.Transform
	if group != groupNone {
		ts = o.appendGroups(ts, group)
	}
	ts = append(ts, wire.Transform{Type: wire.TransformESN, ID: wire.ESNYes}, wire.Transform{Type: wire.TransformESN, ID: wire.ESNNo})
	return o.kinds(wire.ProtocolESP, espSPI(in), ts)
}

// rekeyProposal is what we ask for at a rekey: the proposals with a key exchange, and again without. So a peer that has no use for our
// KE payload takes one of those, and no round trip is lost.
func (o offer) rekeyProposal(in ipsec.SPI, group uint16) *wire.SA {
	sa := o.espProposal(in, group)
	if group == groupNone {
		return sa
	}
	for _, p := range o.espProposal(in, groupNone).Proposals {
		p.Number = uint8(len(sa.Proposals) + 1)
		sa.Proposals = append(sa.Proposals, p)
	}
	return sa
}

// chosen is what a proposal has for us: of each type the first transform that we know.
type chosen struct {
	cipher, cbc cipherSuite // a combined-mode cipher, and another; cipher becomes the choice
	integ       ipsec.Integrity
	prf         uint16
	hash        crypto.Hash
	group       uint16
	esn         uint16
	add         uint16
	seen, have  uint16 // bits of the transform types
	noInteg     bool   // INTEG is NONE, among others
	noKE        bool   // the key exchange may be left out
	foreign     bool   // there is a transform type that we do not know
}

func bit(t wire.TransformType) uint16 { return 1 << t }

// choose picks from a proposal, in its own order of preference. want is the group of the KE payload, 0 for none: it is preferred
// where the proposal has it, so that no round trip is lost, but MODP to no curve. An additional key exchange is chosen if it
// is the first and hybrid allows it; NONE is always.
func (o offer) choose(p wire.Proposal, want uint16, hybrid bool) chosen {
	var c chosen
	for _, t := range p.Transforms {
		if t.Type == 0 || t.Type > wire.LastTransform {
			c.foreign = true
			continue
		}
		c.seen |= bit(t.Type)
		if t.UnknownAttribute || t.Type != wire.TransformEncr && t.KeyLength != 0 {
			continue // RFC 7296, 3.3.6: "MUST NOT" be chosen
		}
		switch t.Type {
		case wire.TransformEncr:
			c.takeCipher(o.ciphers(p.Protocol), t)
		case wire.TransformPRF:
			c.takePRF(t.ID)
		case wire.TransformInteg:
			c.noInteg = c.noInteg || t.ID == wire.IntegNone
			if i := ipsec.Integrity(t.ID); c.integ == ipsec.NoIntegrity && slices.Contains(o.integrities, i) {
				c.integ = i
			}
		case wire.TransformKE:
			c.noKE = c.noKE || t.ID == groupNone
			if o.has(t.ID) && (c.have&bit(t.Type) == 0 || groupCost(t.ID, want) < groupCost(c.group, want)) {
				c.group = t.ID
				c.have |= bit(t.Type)
			}
		case wire.TransformESN:
			if c.have&bit(t.Type) == 0 && (t.ID == wire.ESNYes || t.ID == wire.ESNNo) {
				c.esn = t.ID
				c.have |= bit(t.Type)
			}
		default: // the additional key exchanges
			if t.ID == groupNone {
				c.have |= bit(t.Type)
			} else if t.Type == wire.TransformAddKE && t.ID == kemMLKEM768 && hybrid {
				c.add = t.ID
				c.have |= bit(t.Type)
			}
		}
	}
	c.combine()
	return c
}

// groupCost orders the groups of one proposal.
func groupCost(g, want uint16) int {
	cost := 0
	if slow(g) {
		cost = 2
	}
	if g != want {
		cost++
	}
	return cost
}

func (c *chosen) takeCipher(ciphers []cipherSuite, t wire.Transform) {
	for _, s := range ciphers {
		if uint16(s.cipher) != t.ID || s.bits != t.KeyLength {
			continue
		}
		to := &c.cipher
		if !s.cipher.Combined() {
			to = &c.cbc
		}
		if to.cipher == 0 {
			*to = s
		}
	}
}

func (c *chosen) takePRF(id uint16) {
	for _, p := range prfs {
		if p.id == id && c.have&bit(wire.TransformPRF) == 0 {
			c.prf, c.hash = p.id, p.hash
			c.have |= bit(wire.TransformPRF)
		}
	}
}

// combine brings cipher and integrity algorithm together. A combined-mode cipher has NONE beside it, or no such transform at all (RFC
// 7296, 3.3.3); any other needs one.
func (c *chosen) combine() {
	const types = 1<<wire.TransformEncr | 1<<wire.TransformInteg
	switch {
	case c.cipher.cipher != 0 && (c.noInteg || c.seen&bit(wire.TransformInteg) == 0):
		c.have |= types
	case c.cbc.cipher != 0 && c.integ != ipsec.NoIntegrity:
		c.cipher, c.cipher.integ = c.cbc, c.integ
		c.have |= types
	}
}

// complete reports whether every type that the proposal holds has a choice, and every needed one is there. "If one of the proposals
// offered is for a Transform Type that is not known, it MUST NOT be selected" (RFC 7296, 3.3.6).
func (c chosen) complete(need ...wire.TransformType) bool {
	for _, t := range need {
		if c.have&bit(t) == 0 {
			return false
		}
	}
	return c.seen&^c.have == 0 && !c.foreign
}

// cost is by how much a proposal is worse than what we would like; of equals the peer's first is taken.
func (c chosen) cost(a additional) int {
	cost := 0
	if (c.add == groupNone) == (a == preferred) {
		cost += 4
	}
	if c.cipher.integ != ipsec.NoIntegrity {
		cost++
	}
	switch {
	case c.group == groupNone: // no forward secrecy
		cost += 3
	case slow(c.group):
		cost += 2
	}
	return cost
}

// chooseIKE picks the best proposal that we can take and answers it. ke is the group of the KE payload. ok is false for
// NO_PROPOSAL_CHOSEN.
func (o offer) chooseIKE(sa *wire.SA, ke uint16, hybrid additional) (s ikeSuite, answer *wire.SA, ok bool) {
	best := -1
	for i, p := range sa.Proposals {
		if p.Protocol != wire.ProtocolIKE || len(p.SPI) != 0 {
			continue
		}
		c := o.choose(p, ke, hybrid != declined)
		if !c.complete(wire.TransformEncr, wire.TransformPRF, wire.TransformKE) || c.seen&bit(wire.TransformESN) != 0 {
			continue
		}
		if cost := c.cost(hybrid); !ok || cost < best {
			s, best, ok = ikeSuite{c.cipher, c.prf, c.hash, c.group, c.add}, cost, true
			ts := append(s.cipher.transforms(), wire.Transform{Type: wire.TransformPRF, ID: s.prfID}, wire.Transform{Type: wire.TransformKE, ID: s.group})
			if s.add != groupNone {
				ts = append(ts, wire.Transform{Type: wire.TransformAddKE, ID: s.add})
			}
			answer = &wire.SA{Proposals: []wire.Proposal{{Number: sa.Proposals[i].Number, Protocol: p.Protocol, Transforms: ts}}}
		}
	}
	return s, answer, ok
}

// chooseESP does the same for a Child SA. Without withKE (IKE_AUTH, which has no KE payload) key exchange transforms are
// passed over (RFC 7296, 1.2). out is the proposal's SPI: that of our outbound SA. The answer carries in, our inbound SPI.
func (o offer) chooseESP(sa *wire.SA, withKE, hybrid bool, ke uint16, in ipsec.SPI) (s espSuite, out ipsec.SPI, answer *wire.SA, ok bool) {
	best := -1
	for _, p := range sa.Proposals {
		spi, valid := parseESPSPI(p.SPI)
		if p.Protocol != wire.ProtocolESP || !valid {
			continue
		}
		c := o.choose(p, ke, hybrid)
		if !withKE || ke == groupNone && c.noKE {
			c.seen &^= bit(wire.TransformKE)
			c.group = groupNone
		}
		if !withKE {
			c.seen &= bit(wire.TransformAddKE) - 1
			c.add = groupNone
		}
		alone := c.add != groupNone && c.group == groupNone // an additional key exchange that is none
		if alone || !c.complete(wire.TransformEncr, wire.TransformESN) || c.seen&bit(wire.TransformPRF) != 0 {
			continue
		}
		if cost := c.cost(preferred); !ok || cost < best {
			s, out, best, ok = espSuite{c.cipher, c.esn == wire.ESNYes, c.group, c.add}, spi, cost, true
			answer = s.proposal(p.Number, in)
		}
	}
	return s, out, answer, ok
}

// proposal is the answer that chooses the suite.
func (s espSuite) proposal(number uint8, in ipsec.SPI) *wire.SA {
	ts := s.cipher.transforms()
	if s.group != groupNone {
		ts = append(ts, wire.Transform{Type: wire.TransformKE, ID: s.group})
	}
	esn := wire.ESNNo
	if s.esn {
		esn = wire.ESNYes
	}
	ts = append(ts, wire.Transform{Type: wire.TransformESN, ID: esn})
	if s.add != groupNone {
		ts = append(ts, wire.Transform{Type: wire.TransformAddKE, ID: s.add})
	}
	return &wire.SA{Proposals: []wire.Proposal{{Number: number, Protocol: wire.ProtocolESP, SPI: espSPI(in), Transforms: ts}}}
}

// acceptIKE reads the responder's choice: one of our proposals, with one transform of each type.
func (o offer) acceptIKE(sa, sent *wire.SA) (ikeSuite, bool) {
	if !answers(sa, sent) {
		return ikeSuite{}, false
	}
	s, _, ok := o.chooseIKE(sa, 0, preferred)
	return s, ok
}

// acceptESP does the same for a Child SA. group is that of our KE payload; the second half of our proposals at a rekey is without.
func (o offer) acceptESP(sa *wire.SA, group uint16) (espSuite, ipsec.SPI, bool) {
	if !answers(sa, o.rekeyProposal(0, group)) {
		return espSuite{}, 0, false
	}
	s, out, _, ok := o.chooseESP(sa, true, false, group, 0)
	return s, out, ok
}

// answers reports whether an SA payload chooses one of the proposals that were sent: its number, and of each type at most one transform,
// all of that proposal. (That no type is missing is for choose to see.)
func answers(got, sent *wire.SA) bool {
	if len(got.Proposals) != 1 {
		return false
	}
	g := got.Proposals[0]
	if g.Number == 0 || int(g.Number) > len(sent.Proposals) {
		return false
	}
	p := sent.Proposals[g.Number-1]
	none := wire.Transform{Type: wire.TransformInteg, ID: wire.IntegNone} // left out or written out, it is the same
	for i, t := range g.Transforms {
		twice := slices.ContainsFunc(g.Transforms[:i], func(u wire.Transform) bool { return u.Type == t.Type })
		if twice || !slices.Contains(p.Transforms, t) && t != none {
			return false
		}
	}
	return g.Protocol == p.Protocol
}

// espSPI is an SPI as proposals carry it.
func espSPI(spi ipsec.SPI) []byte { return binary.BigEndian.AppendUint32(nil, uint32(spi)) }

// parseESPSPI is its inverse. SPIs up to 255 are reserved (RFC 4303, 2.1).
func parseESPSPI(b []byte) (ipsec.SPI, bool) {
	if len(b) != 4 {
		return 0, false
	}
	spi := ipsec.SPI(binary.BigEndian.Uint32(b))
	return spi, spi > 255
}
