package wire

import (
	"encoding/binary"
	"fmt"
)

// Closed is what stands unencrypted in the only payload of an encrypted message: an SK payload (RFC 7296, 3.14), or an SKF one (RFC 7383, 2.5). It is
// [Encrypted] and [EncryptedFragment] for those who read and write a message for each packet: nothing is allocated but the message.
type Closed struct {
	First         PayloadType // the first payload inside, in all fragments but the first 0
	Number, Total uint16      // of a fragment; 0, 0: it is none
}

// Room is how many octets stand before the body.
func (c Closed) Room() int {
	if c.Total != 0 {
		return HeaderLen + genericLen + 4
	}
	return HeaderLen + genericLen
}

// ParseClosed reads a message that has one payload, and that one encrypted. The body (IV, ciphertext, ICV) is the tail of b, and not empty. What Parse
// refuses it does, too.
func ParseClosed(b []byte) (c Closed, body []byte, ok bool) {
	h, length, err := parseHeader(b)
	if err != nil || len(b) > MaxMessage || uint64(length) != uint64(len(b)) || len(b) < HeaderLen+genericLen {
		return c, nil, false
	}
	p := b[HeaderLen:]
	if int(binary.BigEndian.Uint16(p[2:])) != len(p) {
		return c, nil, false
	}
	c.First = PayloadType(p[0])
	switch p = p[genericLen:]; {
	case h.NextPayload == PayloadSK && len(p) > 0:
		return c, p, true
	case h.NextPayload == PayloadSKF && len(p) > 4:
		c.Number, c.Total = binary.BigEndian.Uint16(p), binary.BigEndian.Uint16(p[2:])
		if c.Number > 0 && c.Number <= c.Total && (c.Number == 1 || c.First == PayloadNone) {
			return c, p[4:], true
		}
	}
	return Closed{}, nil, false
}

// Frame is the message around a body of n octets, which is its tail, and zero.
func (c Closed) Frame(h Header, n int) ([]byte, error) {
	size := c.Room() + n
	switch {
	case h.InitiatorSPI == 0:
		return nil, fmt.Errorf("wire: initiator SPI: %w", errZero)
	case c.Number > c.Total || c.Total != 0 && c.Number == 0:
		return nil, fmt.Errorf("wire: fragment %d of %d", c.Number, c.Total)
	case size > MaxMessage:
		return nil, fmt.Errorf("wire: a message of %d octets does not fit a datagram", size)
	}
	b := make([]byte, size)
	h.NextPayload = PayloadSK
	p := b[HeaderLen:]
	p[0] = uint8(c.First)
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	if c.Total != 0 {
		h.NextPayload = PayloadSKF
		binary.BigEndian.PutUint16(p[genericLen:], c.Number)
		binary.BigEndian.PutUint16(p[genericLen+2:], c.Total)
	}
	h.put(b)
	return b, nil
}
