package esp

import (
	"crypto/cipher"
	"encoding/binary"

	"tacit/ipsec"
)

// Opener opens the packets of an inbound SA. One goroutine at a time may use it: the data plane serialises per SA.
type Opener struct {
	aead   cipher.AEAD
	spi    ipsec.SPI
	esn    bool
	nonce  [nonceLen]byte // the salt, then the IV of the packet at hand
	aad    [aadMax]byte
	window Window
}

// NewOpener checks the SA's SPI, key and salt.
func NewOpener(sa ipsec.SA) (*Opener, error) {
	aead, err := newAEAD(sa)
	if err != nil {
		return nil, err
	}
	o := &Opener{aead: aead, spi: sa.SPI, esn: sa.ESN}
	copy(o.nonce[:], sa.Salt)
	return o, nil
}

// Open checks and decrypts a packet and appends its payload to dst. With dst nil it works in place: the payload is then
// packet[HeaderLen:...], and after an error the packet's ciphertext is lost. Any other dst must not overlap the packet. It
// does not allocate when dst is nil or has capacity for len(packet) more.
//
// Errors are ErrMalformed, ErrReplay and ErrAuth; only packets that were valid move the window. A payload of NextDummy is
// returned like any other and must be dropped by the caller. Padding for traffic flow confidentiality (RFC 4303, 2.7)
// stands at the end of the payload, where the inner packet's own length tells it.
func (o *Opener) Open(dst, packet []byte) (payload []byte, nextHeader uint8, err error) {
	// 1. Shape.
	spi, ok := ParseSPI(packet)
	if !ok || spi != o.spi || (len(packet)-HeaderLen-icvLen)%align != 0 {
		return nil, 0, ErrMalformed
	}

	// 2. Replay, before anything costs (RFC 4303, 3.4.3).
	low := binary.BigEndian.Uint32(packet[4:])
	seq, ok := uint64(low), true
	if o.esn {
		seq, ok = o.window.Infer(low)
	}
	if !ok || !o.window.Check(seq) {
		return nil, 0, ErrReplay
	}

	// 3. Integrity, with the upper half of the number that was inferred (RFC 4303, 3.4.4.2).
	copy(o.nonce[saltLen:], packet[spiSeqLen:HeaderLen])
	sealed, base := packet[HeaderLen:], len(dst)
	if dst == nil {
		dst = sealed[:0]
	}
	dst, err = o.aead.Open(dst, o.nonce[:], sealed, putAAD(o.aad[:], o.spi, seq, o.esn))
	if err != nil {
		return nil, 0, ErrAuth
	}

	// 4. The window moves only now.
	o.window.Add(seq)

	// 5. The trailer. What the padding holds is not looked at: it is authenticated, and no cipher of ours leaks through it.
	text := dst[base:]
	pad := int(text[len(text)-2])
	if pad+trailerLen > len(text) {
		return nil, 0, ErrMalformed
	}
	return dst[:len(dst)-trailerLen-pad], text[len(text)-1], nil
}
