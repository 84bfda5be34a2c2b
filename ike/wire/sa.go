package wire

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// SA is the Security Association payload (RFC 7296, 3.3).
type SA struct{ Proposals []Proposal }

// Proposal is one way to build an SA (RFC 7296, 3.3.1). Proposals that are offered are numbered from 1; a chosen one keeps
// its number, so numbers are the engine's to check.
type Proposal struct {
	Number     uint8
	Protocol   Protocol
	SPI        []byte // ESP and AH: 4 octets, never 0 to 255; IKE: none, or 8 at a rekey
	Transforms []Transform
}

// Transform is an algorithm (RFC 7296, 3.3.2).
type Transform struct {
	Type      TransformType
	ID        uint16
	KeyLength uint16 // bits; 0: no such attribute
	// UnknownAttribute: there is an attribute that we do not know, or a Key Length that makes no sense. Such a transform must
	// not be chosen (RFC 7296, 3.3.6). It cannot be written.
	UnknownAttribute bool
}

// What the first octet of a proposal and of a transform says when another follows; 0 says that it is the last.
const (
	moreProposals  = 2
	moreTransforms = 3
)

// leastTransform is the length of a transform without attributes, in octets.
const leastTransform = 8

// attrKeyLength is the Key Length attribute in its short form (RFC 7296, 3.3.5): format bit, type 14.
const attrKeyLength = 0x8000 | 14

// PayloadType is PayloadSA.
func (*SA) PayloadType() PayloadType { return PayloadSA }

func (p *SA) marshal(b *cryptobyte.Builder) {
	if n := len(p.Proposals); n == 0 || n > MaxProposals {
		b.SetError(fmt.Errorf("wire: %d proposals, want 1 to %d", n, MaxProposals))
	}
	for i := range p.Proposals {
		more := uint8(0)
		if i+1 < len(p.Proposals) {
			more = moreProposals
		}
		addCounted(b, more, 0, p.Proposals[i].marshal)
	}
}

func (p *Proposal) marshal(b *cryptobyte.Builder) {
	if err := p.check(); err != nil {
		b.SetError(fmt.Errorf("wire: proposal %d: %w", p.Number, err))
		return
	}
	b.AddUint8(p.Number)
	b.AddUint8(uint8(p.Protocol))
	b.AddUint8(uint8(len(p.SPI)))
	b.AddUint8(uint8(len(p.Transforms)))
	b.AddBytes(p.SPI)
	for i := range p.Transforms {
		more := uint8(0)
		if i+1 < len(p.Transforms) {
			more = moreTransforms
		}
		p.Transforms[i].marshal(b, more)
	}
}

// marshal writes the transform with its header: there are dozens in a message, so that a builder for each would cost more than all
// else.
func (t *Transform) marshal(b *cryptobyte.Builder, more uint8) {
	if t.UnknownAttribute {
		b.SetError(fmt.Errorf("wire: %v transform %d has an unknown attribute", t.Type, t.ID))
		return
	}
	length := uint16(genericLen + 4)
	if t.KeyLength != 0 {
		length += 4
	}
	b.AddUint8(more)
	b.AddUint8(0)
	b.AddUint16(length)
	b.AddUint8(uint8(t.Type))
	b.AddUint8(0)
	b.AddUint16(t.ID)
	if t.KeyLength != 0 {
		b.AddUint16(attrKeyLength)
		b.AddUint16(t.KeyLength)
	}
}

// check is about what the number of transforms and the SPI may be.
func (p *Proposal) check() error {
	if n := len(p.Transforms); n == 0 || n > MaxTransforms {
		return fmt.Errorf("%d transforms, want 1 to %d", n, MaxTransforms)
	}
	return proposalSPI(p.Protocol, p.SPI)
}

// proposalSPI checks the SPI of a proposal. Of a protocol that we do not know it may be anything: the proposal will not be
// chosen.
func proposalSPI(proto Protocol, spi []byte) error {
	switch n := len(spi); {
	case n > 255:
		return fmt.Errorf("SPI of %d octets", n)
	case proto == ProtocolIKE && n != 0 && n != 8, (proto == ProtocolESP || proto == ProtocolAH) && n != 4:
		return fmt.Errorf("SPI of %d octets for %v", n, proto)
	case proto == ProtocolIKE && n == 8 && binary.BigEndian.Uint64(spi) == 0:
		return fmt.Errorf("SPI: %w", errZero)
	case (proto == ProtocolESP || proto == ProtocolAH) && binary.BigEndian.Uint32(spi) < 256:
		return fmt.Errorf("SPI %d is reserved", binary.BigEndian.Uint32(spi)) // RFC 4303, 2.1
	}
	return nil
}

func parseSA(r *reader) *SA {
	p := &SA{}
	for last := false; !last && *r.err == nil; {
		if len(p.Proposals) == MaxProposals {
			r.failf("proposal", "more than %d", MaxProposals)
			break
		}
		at := r.offset()
		more, _, body := r.counted("proposal")
		p.Proposals = append(p.Proposals, parseProposal(&body))
		last = r.last(at, "proposal", more, moreProposals)
	}
	return p
}

// last reports whether the octet that starts a proposal or a transform says that none follows. It must be one of two
// values, and whether there are octets left must agree with it.
func (r *reader) last(at int, field string, octet, more uint8) bool {
	if *r.err == nil && octet != 0 && octet != more {
		r.failAt(at, "last "+field, fmt.Errorf("%d, want 0 or %d", octet, more))
	}
	return octet == 0
}

func parseProposal(r *reader) (p Proposal) {
	p.Number, p.Protocol = r.u8("proposal number"), Protocol(r.u8("protocol"))
	size, count := int(r.u8("SPI size")), int(r.u8("number of transforms"))
	at := r.offset()
	p.SPI = r.bytes("SPI", size)
	if *r.err == nil {
		if err := proposalSPI(p.Protocol, p.SPI); err != nil {
			r.failAt(at, "SPI", err)
		}
	}
	p.Transforms = make([]Transform, 0, min(count, len(r.s)/leastTransform, MaxTransforms))
	for last := false; !last && *r.err == nil; {
		if len(p.Transforms) == MaxTransforms {
			r.failf("transform", "more than %d", MaxTransforms)
			break
		}
		start := r.offset()
		more, _, body := r.counted("transform")
		p.Transforms = append(p.Transforms, parseTransform(&body))
		last = r.last(start, "transform", more, moreTransforms)
	}
	if *r.err == nil && len(p.Transforms) != count {
		r.failAt(at-1, "number of transforms", fmt.Errorf("%d, but there are %d", count, len(p.Transforms)))
	}
	r.done("proposal")
	return p
}

func parseTransform(r *reader) (t Transform) {
	t.Type = TransformType(r.u8("transform type"))
	r.skip("reserved", 1)
	t.ID = r.u16("transform id")
	for r.more() {
		kind, value := r.u16("attribute type"), r.u16("attribute value")
		switch {
		case kind == attrKeyLength && value != 0 && t.KeyLength == 0:
			t.KeyLength = value
		case kind&0x8000 != 0:
			t.UnknownAttribute = true
		default: // the long form: value is the length of what follows
			t.UnknownAttribute = true
			r.skip("attribute", int(value))
		}
	}
	return t
}
