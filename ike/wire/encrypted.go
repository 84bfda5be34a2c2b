package wire

import (
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// Encrypted is the SK payload (RFC 7296, 3.14), closed. It is the last of its message, so its Body is the tail of the
// datagram, and the associated data of a combined-mode cipher is all before it (RFC 5282, 5.1).
type Encrypted struct {
	First PayloadType // the first payload inside; 0: none
	Body  []byte      // IV, ciphertext (padding and pad length inside), ICV
}

// EncryptedFragment is the SKF payload (RFC 7383, 2.5), closed. The associated data ends where Body begins.
type EncryptedFragment struct {
	First         PayloadType // of the whole; 0 in all fragments but the first
	Number, Total uint16      // 1 <= Number <= Total
	Body          []byte      // IV, ciphertext, ICV
}

// PayloadType is PayloadSK.
func (*Encrypted) PayloadType() PayloadType { return PayloadSK }

// PayloadType is PayloadSKF.
func (*EncryptedFragment) PayloadType() PayloadType { return PayloadSKF }

func (p *Encrypted) marshal(b *cryptobyte.Builder) { b.AddBytes(p.Body) }

func (p *EncryptedFragment) marshal(b *cryptobyte.Builder) {
	if p.Number == 0 || p.Number > p.Total {
		b.SetError(fmt.Errorf("wire: fragment %d of %d", p.Number, p.Total))
		return
	}
	b.AddUint16(p.Number)
	b.AddUint16(p.Total)
	b.AddBytes(p.Body)
}

// sealed reads the body of an SK or SKF payload.
func (r *reader) sealed(t, first PayloadType) Payload {
	if t == PayloadSK {
		p := &Encrypted{First: first, Body: r.rest()}
		if len(p.Body) == 0 {
			r.fail("body", errEmpty)
		}
		return p
	}
	at := r.offset()
	p := &EncryptedFragment{First: first, Number: r.u16("fragment number"), Total: r.u16("total fragments")}
	if *r.err == nil && (p.Number == 0 || p.Number > p.Total) {
		// RFC 7383, 2.5: the number "MUST be less than or equal to" the total, and neither is zero.
		r.failAt(at, "fragment number", fmt.Errorf("%d of %d", p.Number, p.Total))
	}
	if *r.err == nil && p.Number > 1 && first != PayloadNone {
		r.failAt(at, "next payload", errors.New("set in a fragment that is not the first"))
	}
	if p.Body = r.rest(); *r.err == nil && len(p.Body) == 0 {
		r.fail("body", errEmpty)
	}
	return p
}

// innerFirst is what the Next Payload field of an SK or SKF payload says.
func innerFirst(p Payload) PayloadType {
	switch p := p.(type) {
	case *Encrypted:
		return p.First
	case *EncryptedFragment:
		return p.First
	}
	return PayloadNone
}
