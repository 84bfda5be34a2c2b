package esp

import (
	"crypto/cipher"
	"encoding/binary"
	"math"
	"slices"
	"sync/atomic"

	"tacit/ipsec"
)

// Sealer makes the packets of an outbound SA. Several goroutines may use it at once.
type Sealer struct {
	aead  cipher.AEAD
	spi   ipsec.SPI
	salt  [saltLen]byte
	esn   bool
	limit uint64        // the last sequence number
	seq   atomic.Uint64 // the last one that was taken
}

// lastESN ends an SA with 64 bit numbers in the middle of their range: no number of refused calls can then carry the
// counter around to an IV that was used.
const lastESN = math.MaxInt64

// NewSealer checks the SA's SPI, key and salt. A Sealer is made once for an SA: a second one would repeat its IVs.
func NewSealer(sa ipsec.SA) (*Sealer, error) {
	aead, err := newAEAD(sa)
	if err != nil {
		return nil, err
	}
	s := &Sealer{aead: aead, spi: sa.SPI, esn: sa.ESN, limit: math.MaxUint32}
	if sa.ESN {
		s.limit = lastESN
	}
	copy(s.salt[:], sa.Salt)
	return s, nil
}

// Sent is how many sequence numbers were taken, so that the SA can be replaced in time.
func (s *Sealer) Sent() uint64 { return min(s.seq.Load(), s.limit) }

// Seal appends one ESP packet to dst and returns the longer slice. It does not allocate when dst has capacity for
// PacketLen(len(payload)) + Scratch more; the octets behind the packet are overwritten. The payload may lie anywhere, also
// in dst's capacity; at dst[len(dst)+HeaderLen] it need not be moved. Errors are ErrExhausted, and a payload that no IP
// packet holds.
func (s *Sealer) Seal(dst []byte, nextHeader uint8, payload []byte) ([]byte, error) {
	n := PacketLen(len(payload))
	if n > math.MaxUint16 {
		return dst, errLength
	}
	// RFC 4303, 2.2: "the transmitted sequence number must never be allowed to cycle". It is the IV as well, which must never
	// repeat under one key (RFC 4106, 3.1; RFC 7634, 2): the counter only goes up, and what is refused is not given back.
	seq := s.seq.Add(1)
	if seq > s.limit {
		return dst, ErrExhausted
	}
	at := len(dst)
	dst = slices.Grow(dst, n+Scratch)
	packet, scratch := dst[at:at+n], dst[at+n:at+n+Scratch]

	// 1. The plaintext first, because the payload may lie where the header goes.
	text := packet[HeaderLen : n-icvLen]
	end := copy(text, payload)
	for i := range padLen(len(payload)) {
		text[end] = byte(i + 1) // RFC 4303, 2.4
		end++
	}
	text[end], text[end+1] = byte(padLen(len(payload))), nextHeader

	// 2. Header and IV.
	binary.BigEndian.PutUint32(packet, uint32(s.spi))
	binary.BigEndian.PutUint32(packet[4:], uint32(seq))
	binary.BigEndian.PutUint64(packet[spiSeqLen:], seq)

	// 3. Encrypt in place. Nonce and associated data stand behind the packet: on the stack they would escape through the
	// interface, and in the Sealer two goroutines would meet. The salt does not stay there.
	nonce := append(append(scratch[:0], s.salt[:]...), packet[spiSeqLen:HeaderLen]...)
	aad := putAAD(scratch[nonceLen:], s.spi, seq, s.esn)
	s.aead.Seal(text[:0], nonce, text, aad)
	clear(scratch)
	return dst[:at+n], nil
}
