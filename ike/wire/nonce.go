package wire

import (
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// Nonce is the Nonce payload (RFC 7296, 3.9): 16 to 256 octets.
type Nonce struct{ Data []byte }

// PayloadType is PayloadNonce.
func (*Nonce) PayloadType() PayloadType { return PayloadNonce }

func (p *Nonce) marshal(b *cryptobyte.Builder) {
	if err := nonceLen(len(p.Data)); err != nil {
		b.SetError(fmt.Errorf("wire: nonce: %w", err))
		return
	}
	b.AddBytes(p.Data)
}

func nonceLen(n int) error {
	if n < MinNonce || n > MaxNonce {
		return fmt.Errorf("%d octets, want %d to %d", n, MinNonce, MaxNonce)
	}
	return nil
}

func parseNonce(r *reader) *Nonce {
	at := r.offset()
	p := &Nonce{Data: r.rest()}
	if err := nonceLen(len(p.Data)); err != nil {
		r.failAt(at, "nonce", err)
	}
	return p
}
