// Package esp makes and opens ESP packets in user space (RFC 4303) with the combined-mode ciphers AES-GCM with a 16 octet
// ICV (RFC 4106) and ChaCha20-Poly1305 (RFC 7634). It is pure: no sockets, no clock, no goroutine. Outer headers, UDP
// encapsulation and the meaning of the payload are the data plane's.
//
// A packet is SPI (4), sequence number (4), IV (8), ciphertext of {payload, padding, pad length, next header}, ICV (16).
package esp

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"

	"tacit/ipsec"
)

// Lengths in octets.
const (
	HeaderLen  = spiSeqLen + ivLen // before the payload; in a packet opened in place it is the headroom
	Scratch    = nonceLen + aadMax // what Seal needs behind the packet in dst's capacity to work without allocation
	spiSeqLen  = 8
	ivLen      = 8
	saltLen    = 4
	nonceLen   = saltLen + ivLen
	aadMax     = 12 // SPI and a 64 bit sequence number
	icvLen     = 16
	trailerLen = 2 // pad length, next header
	align      = 4 // of the trailer's end (RFC 4303, 2.4; RFC 4106, 3.2; RFC 7634, 2)
	minPacket  = HeaderLen + align + icvLen
)

// NextDummy is the Next Header of a dummy packet, which the receiver discards "without indicating an error" (RFC 4303, 2.6).
// Open reports it.
const NextDummy = 59

// What Seal and Open return. They are returned as they are, so that the packet path allocates nothing for a bad packet.
var (
	ErrExhausted = errors.New("esp: sequence numbers are used up")      // the SA must be replaced (RFC 4303, 3.3.3)
	ErrReplay    = errors.New("esp: packet repeated or too old")        // RFC 4303, 3.4.3
	ErrAuth      = errors.New("esp: integrity check value is wrong")    // RFC 4303, 3.4.4.2
	ErrMalformed = errors.New("esp: not a packet of this SA's ciphers") // too short, misaligned, another SPI, or bad padding
	errLength    = errors.New("esp: payload does not fit an IP packet") // of Seal
	errSPI       = errors.New("esp: SPI is reserved (RFC 4303, 2.1)")   // 0 to 255
	errSalt      = fmt.Errorf("esp: salt must have %d octets", saltLen) // RFC 4106, 8.1; RFC 7634, 2
)

// ParseSPI reads the SPI of a packet: false for what cannot be ESP, among it the non-ESP marker and a NAT keepalive
// (RFC 3948, 2.2 and 2.3), reserved SPIs, and packets too short to hold any payload.
func ParseSPI(packet []byte) (ipsec.SPI, bool) {
	if len(packet) < minPacket {
		return 0, false
	}
	spi := ipsec.SPI(binary.BigEndian.Uint32(packet))
	return spi, spi > 255
}

// Overhead is by how many octets a packet is at most longer than its payload; 0 for a cipher that we do not have.
func Overhead(c ipsec.Cipher) int {
	switch c {
	case ipsec.AESGCM16, ipsec.ChaCha20Poly1305:
		return HeaderLen + align - 1 + trailerLen + icvLen
	}
	return 0
}

// PacketLen is the length of the packet that Seal makes of a payload of n octets.
func PacketLen(n int) int { return HeaderLen + n + padLen(n) + trailerLen + icvLen }

// padLen is how many octets of padding follow a payload of n octets.
func padLen(n int) int { return (align - (n+trailerLen)%align) % align }

// newAEAD checks an SA and makes its cipher.
func newAEAD(sa ipsec.SA) (cipher.AEAD, error) {
	if sa.SPI < 256 {
		return nil, errSPI
	}
	if len(sa.Salt) != saltLen {
		return nil, errSalt
	}
	switch n := len(sa.Key); {
	case sa.Cipher == ipsec.AESGCM16 && (n == 16 || n == 32):
		block, err := aes.NewCipher(sa.Key)
		if err != nil {
			return nil, fmt.Errorf("esp: %w", err)
		}
		return cipher.NewGCM(block)
	case sa.Cipher == ipsec.ChaCha20Poly1305 && n == chacha20poly1305.KeySize:
		return chacha20poly1305.New(sa.Key)
	case sa.Cipher != ipsec.AESGCM16 && sa.Cipher != ipsec.ChaCha20Poly1305:
		return nil, fmt.Errorf("esp: %v is not supported", sa.Cipher)
	default:
		return nil, fmt.Errorf("esp: %v with a key of %d octets", sa.Cipher, n)
	}
}

// putAAD writes the associated data: the SPI and the sequence number, which with ESN is all 64 bits of it, though only the
// lower 32 travel (RFC 4106, 5; RFC 7634, 2.1). b has 12 octets.
func putAAD(b []byte, spi ipsec.SPI, seq uint64, esn bool) []byte {
	binary.BigEndian.PutUint32(b, uint32(spi))
	if esn {
		binary.BigEndian.PutUint64(b[4:], seq)
		return b[:12]
	}
	binary.BigEndian.PutUint32(b[4:], uint32(seq))
	return b[:8]
}
