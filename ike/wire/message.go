// Package wire is the codec of IKEv2 messages (RFC 7296, section 3): bytes to payloads and back, one payload a file. It
// checks what a message says about itself (lengths, counts, ranges, families); what may occur in which exchange is the
// engine's table. It does no cryptography: an Encrypted payload stays a body until the engine opened it.
package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// What we accept at most. Memory is bounded by these and by the length of the datagram; no length or count of a message
// drives an allocation before the octets it promises were seen.
const (
	HeaderLen     = 28    // of the IKE header
	genericLen    = 4     // of a payload's, proposal's, transform's or traffic selector's own header
	MaxMessage    = 65535 // octets; no UDP datagram is longer
	MaxPayloads   = 64    // of one chain
	MaxProposals  = 64    // of one SA payload
	MaxTransforms = 128   // of one proposal
	MaxSPIs       = 1024  // of one Delete payload
	MinNonce      = 16    // octets (RFC 7296, 3.9)
	MaxNonce      = 256   // octets (RFC 7296, 3.9)
)

// counted reads what proposals, transforms, traffic selectors and payloads have in common: two octets, and a length that
// counts itself and them. The body is a reader of its own. A length below 4 or beyond the end is an error, so that a
// loop over counted things always moves on.
func (r *reader) counted(field string) (first, second uint8, body reader) {
	at := r.offset()
	first, second = r.u8(field), r.u8(field)
	if *r.err == nil && len(r.s) < 2 {
		r.fail(field+" length", errTruncated)
	}
	n := int(r.u16(field))
	if *r.err == nil && n < genericLen {
		r.failAt(at+2, field+" length", fmt.Errorf("%d is below the %d of its own header", n, genericLen))
	}
	return first, second, r.sub(field, n-genericLen)
}

// usualMessage is what the buffer of a message begins with: most need no larger one.
const usualMessage = 512

// addCounted is counted's other direction: it writes the two octets, the length, and what f writes. The length is filled in behind it, so that
// all of a message is written in one buffer.
func addCounted(b *cryptobyte.Builder, first, second uint8, f func(*cryptobyte.Builder)) {
	before, err := b.Bytes()
	if err != nil {
		return
	}
	b.AddUint8(first)
	b.AddUint8(second)
	b.AddUint16(0)
	f(b)
	all, err := b.Bytes()
	if err != nil {
		return
	}
	counted := all[len(before):]
	if len(counted) > 0xffff {
		b.SetError(fmt.Errorf("wire: a body of %d octets does not fit a payload", len(counted)-genericLen))
		return
	}
	binary.BigEndian.PutUint16(counted[2:], uint16(len(counted)))
}

// Header is the IKE header (RFC 7296, 3.1) without its version, which is 2.0, and its length. Flags holds only the three
// bits that are defined: the others are "ignored on receipt".
type Header struct {
	InitiatorSPI, ResponderSPI uint64
	NextPayload                PayloadType
	Exchange                   ExchangeType
	Flags                      Flags
	MessageID                  uint32
}

// Message is an IKE message whose encrypted payload, if there is one, is still closed: it is then the last of Payloads.
// NextPayload is set by Parse and not read by Marshal.
type Message struct {
	Header
	Payloads []Payload
}

// ParseHeader reads the first 28 octets of a message. The version comes first, because the rest is not ours to read in
// another: a VersionError comes with the Header as version 2 has it, so that a higher version can be answered (RFC 7296,
// 2.5). The length field must at least cover the header; that it is the datagram's is for Parse to check.
func ParseHeader(b []byte) (Header, error) {
	h, _, err := parseHeader(b)
	return h, err
}

func parseHeader(b []byte) (h Header, length uint32, err error) {
	var version, flags, next, exchange uint8
	r := newReader(b)
	h.InitiatorSPI, h.ResponderSPI = r.u64("initiator SPI"), r.u64("responder SPI")
	next, version = r.u8("next payload"), r.u8("version")
	if *r.err == nil && version>>4 != 2 {
		h = Header{}
		if len(b) >= HeaderLen {
			h = versionHeader(b)
		}
		return h, 0, &VersionError{Major: version >> 4, Minor: version & 15}
	}
	exchange, flags = r.u8("exchange type"), r.u8("flags")
	h.MessageID = r.u32("message id")
	length = r.u32("length")
	h.NextPayload, h.Exchange, h.Flags = PayloadType(next), ExchangeType(exchange), Flags(flags)&definedFlags
	if *r.err == nil && h.InitiatorSPI == 0 {
		r.failAt(0, "initiator SPI", errZero) // RFC 7296, 3.1: "This value MUST NOT be zero."
	}
	if *r.err == nil && length < HeaderLen {
		r.failAt(24, "length", fmt.Errorf("%d is below the %d of the header", length, HeaderLen))
	}
	if *r.err != nil {
		return Header{}, 0, *r.err
	}
	return h, length, nil
}

// versionHeader reads the header of a message of another version as if it were ours; b is long enough.
func versionHeader(b []byte) Header {
	return Header{
		InitiatorSPI: binary.BigEndian.Uint64(b),
		ResponderSPI: binary.BigEndian.Uint64(b[8:]),
		NextPayload:  PayloadType(b[16]),
		Exchange:     ExchangeType(b[18]),
		Flags:        Flags(b[19]) & definedFlags,
		MessageID:    binary.BigEndian.Uint32(b[20:]),
	}
}

// Parse reads a whole datagram (without the non-ESP marker). The Message has a copy of b and the caller may use b again.
// Errors are *SyntaxError, *VersionError and *CriticalError; each says what it would be answered with.
func Parse(b []byte) (*Message, error) {
	h, length, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	if len(b) > MaxMessage {
		return nil, &SyntaxError{Offset: 0, Field: "message", Err: fmt.Errorf("%d octets are more than %d", len(b), MaxMessage)}
	}
	if uint64(length) != uint64(len(b)) {
		return nil, &SyntaxError{Offset: 24, Field: "length", Err: fmt.Errorf("%d, but the datagram has %d", length, len(b))}
	}
	r := newReader(bytes.Clone(b))
	r.skip("header", HeaderLen)
	ps := r.chain(h.NextPayload, true)
	if *r.err != nil {
		return nil, *r.err
	}
	return &Message{Header: h, Payloads: ps}, nil
}

// Marshal writes the message. One that is encrypted, and has nothing else, is made by [Closed.Frame].
func (m *Message) Marshal() ([]byte, error) {
	if m.InitiatorSPI == 0 {
		return nil, fmt.Errorf("wire: initiator SPI: %w", errZero)
	}
	first := PayloadNone
	if len(m.Payloads) > 0 {
		first = m.Payloads[0].PayloadType()
	}
	b := cryptobyte.NewBuilder(make([]byte, HeaderLen, usualMessage))
	addChain(b, m.Payloads, true)
	data, err := b.Bytes()
	if err != nil {
		return nil, err
	}
	if len(data) > MaxMessage {
		return nil, fmt.Errorf("wire: a message of %d octets does not fit a datagram", len(data))
	}
	h := m.Header
	h.NextPayload = first
	h.put(data)
	return data, nil
}

// put writes the header of the message that b is, with b's length.
func (h Header) put(b []byte) {
	binary.BigEndian.PutUint64(b, h.InitiatorSPI)
	binary.BigEndian.PutUint64(b[8:], h.ResponderSPI)
	b[16], b[17], b[18], b[19] = uint8(h.NextPayload), 0x20, uint8(h.Exchange), uint8(h.Flags&definedFlags) // version 2.0
	binary.BigEndian.PutUint32(b[20:], h.MessageID)
	binary.BigEndian.PutUint32(b[24:], uint32(len(b)))
}
