package esp

import (
	"encoding/binary"

	"tacit/ipsec"
)

// Opener opens the packets of an inbound SA. One goroutine at a time may use it: the data plane serialises per SA.
type Opener struct {
	layout
	sa       ipsec.SA
	*opening // nil until the first packet
}

// opening is what an Opener needs besides its SA.
type opening struct {
	transform
	scratch [Scratch]byte
	window  Window
}

// NewOpener checks the SA and makes its Opener.
func NewOpener(sa ipsec.SA) (*Opener, error) {
	l, err := checked(sa)
	if err != nil {
		return nil, err
	}
	return &Opener{layout: l, sa: sa}, nil
}

// begin makes what the first packet needs.
func (o *Opener) begin() error {
	if o.opening != nil {
		return nil
	}
	t, err := newTransform(o.sa)
	if err == nil {
		o.opening = &opening{transform: t}
	}
	return err
}

// Open checks and decrypts a packet and appends its payload to dst. With dst nil it works in place: the payload is then
// where the ciphertext was, and after an error that may be lost. Any other dst must not overlap the packet. It
// does not allocate when dst is nil or has capacity for len(packet) more.
//
// Errors are ErrMalformed, ErrReplay and ErrAuth; only packets that were valid move the window. A payload of NextDummy is
// returned like any other and must be dropped by the caller. Padding for traffic flow confidentiality (RFC 4303, 2.7)
// stands at the end of the payload, where the inner packet's own length tells it.
func (o *Opener) Open(dst, packet []byte) (payload []byte, nextHeader uint8, err error) {
	// 1. Shape.
	spi, ok := ParseSPI(packet)
	if !ok || spi != o.sa.SPI || !o.fits(len(packet)) {
		return nil, 0, ErrMalformed
	}

	if err := o.begin(); err != nil {
		return nil, 0, err
	}

	// 2. Replay, before anything costs (RFC 4303, 3.4.3).
	low := binary.BigEndian.Uint32(packet[4:])
	seq, ok := uint64(low), true
	if o.sa.ESN {
		seq, ok = o.window.Infer(low)
	}
	if !ok || !o.window.Check(seq) {
		return nil, 0, ErrReplay
	}

	// 3. Integrity, with the upper half of the number that was inferred (RFC 4303, 3.4.4.2).
	base := len(dst)
	if dst, err = o.open(dst, packet, seq, o.scratch[:]); err != nil {
		return nil, 0, err
	}

	// 4. The window moves only now.
	o.window.Add(seq)

	// 5. The trailer. What the padding holds is not looked at: it is authenticated, and so cannot be an attacker's. (RFC 4303, 2.4,
	// has it inspected "in the absence of other integrity measures".)
	text := dst[base:]
	pad := int(text[len(text)-2])
	if pad+trailerLen > len(text) {
		return nil, 0, ErrMalformed
	}
	return dst[:len(dst)-trailerLen-pad], text[len(text)-1], nil
}
