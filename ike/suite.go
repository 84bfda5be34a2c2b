package ike

import (
	"crypto"
	_ "crypto/sha256" // registers the hashes of the PRFs
	_ "crypto/sha512"
	"encoding/binary"
	"fmt"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// The algorithms of RFC 8247 that we speak, by their IANA numbers, best first: one short list, no options.

// cipherSuite is an encryption transform with its key length in bits (0: the transform has but one).
type cipherSuite struct {
	cipher ipsec.Cipher
	bits   uint16
}

// ciphers serve IKE and ESP alike.
var ciphers = []cipherSuite{
	{ipsec.AESGCM16, 128},
	{ipsec.AESGCM16, 256},
	{ipsec.ChaCha20Poly1305, 0},
}

// saltLen octets of the key material begin every nonce (RFC 4106, 8.1; RFC 5282, 4; RFC 7634, 2).
const saltLen = 4

// keyLen is the length of the cipher's key in octets.
func (c cipherSuite) keyLen() int {
	if c.bits == 0 {
		return 32
	}
	return int(c.bits) / 8
}

// keyMaterial is the length of key and salt.
func (c cipherSuite) keyMaterial() int { return c.keyLen() + saltLen }

func (c cipherSuite) String() string {
	if c.bits == 0 {
		return c.cipher.String()
	}
	return fmt.Sprintf("%v-%d", c.cipher, c.bits)
}

// prfs are the pseudorandom functions by transform id (RFC 4868).
var prfs = []struct {
	id   uint16
	hash crypto.Hash
}{{wire.PRFHMACSHA2256, crypto.SHA256}, {wire.PRFHMACSHA2384, crypto.SHA384}, {wire.PRFHMACSHA2512, crypto.SHA512}}

// The key exchange methods (RFC 8031, RFC 5903).
const (
	groupNone   = wire.GroupNone
	groupP256   = wire.GroupP256
	groupX25519 = wire.GroupCurve25519
)

var groups = []uint16{groupX25519, groupP256}

func groupName(g uint16) string {
	switch g {
	case groupX25519:
		return "x25519"
	case groupP256:
		return "p256"
	}
	return fmt.Sprintf("group-%d", g)
}

// ikeSuite is what an IKE SA has agreed upon.
type ikeSuite struct {
	cipher cipherSuite
	prfID  uint16
	prf    crypto.Hash
	group  uint16
}

func (s ikeSuite) String() string {
	return fmt.Sprintf("%v prf-sha%d %s", s.cipher, s.prf.Size()*8, groupName(s.group))
}

// espSuite is what a Child SA has agreed upon. group is groupNone without a key exchange of its own.
type espSuite struct {
	cipher cipherSuite
	esn    bool
	group  uint16
}

// sa is one direction of the Child SA; key is its half of KEYMAT.
func (s espSuite) sa(spi ipsec.SPI, key ipsec.Secret) ipsec.SA {
	n := s.cipher.keyLen()
	return ipsec.SA{SPI: spi, Cipher: s.cipher.cipher, Key: key[:n:n], Salt: key[n:], ESN: s.esn}
}

// offer is the set of algorithms that an Endpoint proposes and accepts.
type offer struct {
	ciphers []cipherSuite
	groups  []uint16
}

var defaultOffer = offer{ciphers, groups}

// cipherTransforms lists the offer's ciphers as transforms.
func (o offer) cipherTransforms() []wire.Transform {
	var ts []wire.Transform
	for _, c := range o.ciphers {
		ts = append(ts, wire.Transform{Type: wire.TransformEncr, ID: uint16(c.cipher), KeyLength: c.bits})
	}
	return ts
}

// groupTransforms lists the offer's key exchange methods, the given one first.
func (o offer) groupTransforms(first uint16) []wire.Transform {
	ts := []wire.Transform{{Type: wire.TransformKE, ID: first}}
	for _, g := range o.groups {
		if g != first {
			ts = append(ts, wire.Transform{Type: wire.TransformKE, ID: g})
		}
	}
	return ts
}

// ikeProposal is the one proposal of our IKE_SA_INIT request.
func (o offer) ikeProposal(group uint16) *wire.SA {
	ts := o.cipherTransforms()
	for _, p := range prfs {
		ts = append(ts, wire.Transform{Type: wire.TransformPRF, ID: p.id})
	}
	ts = append(ts, o.groupTransforms(group)...)
	return &wire.SA{Proposals: []wire.Proposal{{Number: 1, Protocol: wire.ProtocolIKE, Transforms: ts}}}
}

// espProposal is a proposal of a Child SA that we ask for: ESN preferred. group is that of the KE payload, groupNone without one.
func (o offer) espProposal(in ipsec.SPI, group uint16) *wire.SA {
	ts := o.cipherTransforms()
	if group != groupNone {
		ts = append(ts, o.groupTransforms(group)...)
	}
	ts = append(ts, wire.Transform{Type: wire.TransformESN, ID: wire.ESNYes}, wire.Transform{Type: wire.TransformESN, ID: wire.ESNNo})
	return &wire.SA{Proposals: []wire.Proposal{{Number: 1, Protocol: wire.ProtocolESP, SPI: espSPI(in), Transforms: ts}}}
}

// chosen holds at most one transform of each type: the first of the proposal that we have.
type chosen struct {
	cipher cipherSuite
	prf    uint16
	hash   crypto.Hash
	group  uint16
	esn    uint16
	have   map[wire.TransformType]bool
	seen   map[wire.TransformType]bool
}

// choose picks from a proposal, in its own order of preference. want is a group to prefer where the proposal has it (that
// of the KE payload), 0 for none.
func (o offer) choose(p wire.Proposal, want uint16) chosen {
	c := chosen{have: map[wire.TransformType]bool{}, seen: map[wire.TransformType]bool{}}
	for _, t := range p.Transforms {
		c.seen[t.Type] = true
		if t.UnknownAttribute || c.have[t.Type] && !(t.Type == wire.TransformKE && t.ID == want) {
			continue
		}
		if o.take(&c, t) {
			c.have[t.Type] = true
		}
	}
	return c
}

// take notes the transform if we have the algorithm.
func (o offer) take(c *chosen, t wire.Transform) bool {
	if t.Type != wire.TransformEncr && t.KeyLength != 0 {
		return false
	}
	switch t.Type {
	case wire.TransformEncr:
		for _, s := range o.ciphers {
			if uint16(s.cipher) == t.ID && s.bits == t.KeyLength {
				c.cipher = s
				return true
			}
		}
	case wire.TransformPRF:
		for _, p := range prfs {
			if p.id == t.ID {
				c.prf, c.hash = p.id, p.hash
				return true
			}
		}
	case wire.TransformKE:
		for _, g := range o.groups {
			if g == t.ID {
				c.group = g
				return true
			}
		}
	case wire.TransformInteg:
		return t.ID == wire.IntegNone // NONE beside a combined-mode cipher (RFC 7296, 3.3)
	case wire.TransformESN:
		c.esn = t.ID
		return t.ID == wire.ESNYes || t.ID == wire.ESNNo
	}
	return false
}

// complete reports whether every type that the proposal holds has a choice, and every needed one is there.
func (c chosen) complete(need ...wire.TransformType) bool {
	for t := range c.seen {
		if !c.have[t] {
			return false
		}
	}
	for _, t := range need {
		if !c.have[t] {
			return false
		}
	}
	return true
}

// chooseIKE picks the first proposal that we can take and answers it. ok is false for NO_PROPOSAL_CHOSEN.
func (o offer) chooseIKE(sa *wire.SA, ke uint16) (s ikeSuite, answer *wire.SA, ok bool) {
	for _, p := range sa.Proposals {
		if p.Protocol != wire.ProtocolIKE || len(p.SPI) != 0 {
			continue
		}
		c := o.choose(p, ke)
		if !c.complete(wire.TransformEncr, wire.TransformPRF, wire.TransformKE) || c.seen[wire.TransformESN] {
			continue
		}
		s = ikeSuite{c.cipher, c.prf, c.hash, c.group}
		ts := []wire.Transform{
			{Type: wire.TransformEncr, ID: uint16(s.cipher.cipher), KeyLength: s.cipher.bits},
			{Type: wire.TransformPRF, ID: s.prfID},
			{Type: wire.TransformKE, ID: s.group},
		}
		return s, &wire.SA{Proposals: []wire.Proposal{{Number: p.Number, Protocol: p.Protocol, Transforms: ts}}}, true
	}
	return ikeSuite{}, nil, false
}

// chooseESP does the same for a Child SA. Without withKE (IKE_AUTH, which has no KE payload) key exchange transforms are
// passed over (RFC 7296, 1.2). out is the proposal's SPI: that of our outbound SA. The answer carries in, our inbound SPI.
func (o offer) chooseESP(sa *wire.SA, withKE bool, ke uint16, in ipsec.SPI) (s espSuite, out ipsec.SPI, answer *wire.SA, ok bool) {
	for _, p := range sa.Proposals {
		spi, valid := parseESPSPI(p.SPI)
		if p.Protocol != wire.ProtocolESP || !valid {
			continue
		}
		c := o.choose(p, ke)
		if !withKE || ke == groupNone && allowsNone(p) {
			delete(c.seen, wire.TransformKE)
			c.group = groupNone
		}
		if !c.complete(wire.TransformEncr, wire.TransformESN) || c.seen[wire.TransformPRF] {
			continue
		}
		s = espSuite{c.cipher, c.esn == wire.ESNYes, c.group}
		ts := []wire.Transform{{Type: wire.TransformEncr, ID: uint16(s.cipher.cipher), KeyLength: s.cipher.bits}}
		if s.group != groupNone {
			ts = append(ts, wire.Transform{Type: wire.TransformKE, ID: s.group})
		}
		ts = append(ts, wire.Transform{Type: wire.TransformESN, ID: c.esn})
		return s, spi, &wire.SA{Proposals: []wire.Proposal{{Number: p.Number, Protocol: p.Protocol, SPI: espSPI(in), Transforms: ts}}}, true
	}
	return espSuite{}, 0, nil, false
}

// allowsNone reports whether the proposal lets the key exchange be left out.
func allowsNone(p wire.Proposal) bool {
	for _, t := range p.Transforms {
		if t.Type == wire.TransformKE && t.ID == groupNone {
			return true
		}
	}
	return false
}

// acceptIKE reads the responder's choice: one proposal, one transform of each type, all of them offered.
func (o offer) acceptIKE(sa *wire.SA) (ikeSuite, bool) {
	if len(sa.Proposals) != 1 || !single(sa.Proposals[0]) {
		return ikeSuite{}, false
	}
	s, _, ok := o.chooseIKE(sa, 0)
	return s, ok && sa.Proposals[0].Number == 1
}

// acceptESP does the same for a Child SA. group is that of our KE payload; the second of our
// two proposals at a rekey is without (groupNone).
func (o offer) acceptESP(sa *wire.SA, group uint16) (espSuite, ipsec.SPI, bool) {
	if len(sa.Proposals) != 1 || !single(sa.Proposals[0]) {
		return espSuite{}, 0, false
	}
	s, out, _, ok := o.chooseESP(sa, true, group, 0)
	return s, out, ok && (s.group == group || s.group == groupNone) && sa.Proposals[0].Number-1 < 2
}

// single reports whether no transform type occurs twice.
func single(p wire.Proposal) bool {
	seen := map[wire.TransformType]bool{}
	for _, t := range p.Transforms {
		if seen[t.Type] {
			return false
		}
		seen[t.Type] = true
	}
	return true
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
