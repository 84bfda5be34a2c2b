package esp

import (
	"encoding/binary"
	"math"
	"slices"
	"sync/atomic"

	"tacit/ipsec"
)

// Sealer makes the packets of an outbound SA. Several goroutines may use it at once.
type Sealer struct {
	layout
	sa    ipsec.SA
	limit uint64        // the last sequence number
	seq   atomic.Uint64 // the last one that was taken
	made  atomic.Pointer[transform]
}

// lastESN ends an SA with 64 bit numbers in the middle of their range: no number of refused calls can then carry the
// counter around to an IV that was used.
const lastESN = math.MaxInt64

// NewSealer checks the SA and makes its Sealer, once for an SA: a second one would repeat its numbers, and so its IVs.
func NewSealer(sa ipsec.SA) (*Sealer, error) {
	l, err := checked(sa)
	if err != nil {
		return nil, err
	}
	s := &Sealer{layout: l, sa: sa, limit: math.MaxUint32}
	if sa.ESN {
		s.limit = lastESN
	}
	return s, nil
}

// begin makes what the first packet needs. Of several first ones each makes its own, and all use the same.
func (s *Sealer) begin() (transform, error) {
	if t := s.made.Load(); t != nil {
		return *t, nil
	}
	t, err := newTransform(s.sa)
	if err != nil {
		return nil, err
	}
	s.made.CompareAndSwap(nil, &t)
	return *s.made.Load(), nil
}

// PacketLen is the length of the packet that Seal makes of a payload of n octets.
func (s *Sealer) PacketLen(n int) int { return s.packetLen(n) }

// MaxPayload is the longest payload whose packet has at most n octets.
func (s *Sealer) MaxPayload(n int) int { return s.maxPayload(n) }

// Sent is how many sequence numbers were taken, so that the SA can be replaced in time.
func (s *Sealer) Sent() uint64 { return min(s.seq.Load(), s.limit) }

// Seal appends one ESP packet to dst and returns the longer slice. It does not allocate when dst has capacity for
// PacketLen(len(payload)) + Scratch more, unless another goroutine seals at the moment; the octets behind the packet are
// overwritten. The payload may lie anywhere, also in dst's capacity. Errors are ErrExhausted, and a payload that no IP packet holds.
func (s *Sealer) Seal(dst []byte, nextHeader uint8, payload []byte) ([]byte, error) {
	n := s.packetLen(len(payload))
	if n > math.MaxUint16 {
		return dst, errLength
	}
	t, err := s.begin()
	if err != nil {
		return dst, err
	}
	// RFC 4303, 2.2: "the transmitted sequence number must never be allowed to cycle". It may be the IV as well, which must never
	// repeat under one key: the counter only goes up, and what is refused is not given back.
	seq := s.seq.Add(1)
	if seq > s.limit {
		return dst, ErrExhausted
	}
	at := len(dst)
	dst = slices.Grow(dst, n+Scratch)
	packet, scratch := dst[at:at+n], dst[at+n:at+n+Scratch]

	// 1. The plaintext first, because the payload may lie where the header goes.
	text := packet[s.header() : n-s.icv]
	end := copy(text, payload)
	for i := range s.padLen(len(payload)) {
		text[end] = byte(i + 1) // RFC 4303, 2.4
		end++
	}
	text[end], text[end+1] = byte(s.padLen(len(payload))), nextHeader

	// 2. The header.
	binary.BigEndian.PutUint32(packet, uint32(s.sa.SPI))
	binary.BigEndian.PutUint32(packet[4:], uint32(seq))

	// 3. IV, encryption in place, ICV. What the cipher needs besides stands behind the packet: on the stack it would escape through
	// the interface, and in the Sealer two goroutines would meet. The salt does not stay there.
	t.seal(packet, seq, scratch)
	clear(scratch)
	return dst[:at+n], nil
}
