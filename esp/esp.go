// Package esp makes and opens ESP packets in user space (RFC 4303): with the combined-mode ciphers AES-GCM with a 16 octet ICV
// (RFC 4106) and ChaCha20-Poly1305 (RFC 7634), and with AES-CBC (RFC 3602) and HMAC-SHA-2 (RFC 4868). It is pure: no sockets,
// no clock, no goroutine. Outer headers, UDP encapsulation and the meaning of the payload are the data plane's.
//
// A packet is SPI (4 octets), sequence number (4), IV (8; AES-CBC: 16), ciphertext of {payload, padding, pad length, next
// header}, ICV (16; HMAC: 16, 24 or 32).
package esp

import (
	"crypto/aes"
	"encoding/binary"
	"errors"
	"fmt"

	"tacit/ipsec"
)

// Lengths in octets.
const (
	Scratch    = nonceLen + aadMax // what Seal needs behind the packet in dst's capacity to work without allocation
	spiSeqLen  = 8
	trailerLen = 2                                                    // pad length, next header
	minPacket  = spiSeqLen + combinedIV + combinedAlign + combinedICV // the shortest of any cipher
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

// transform is what a cipher does to a packet that lies there with its SPI and sequence number. seq is the whole number, of
// which the packet has the lower half. scratch are Scratch octets of nobody else's.
type transform interface {
	// seal encrypts the plaintext in its place, and puts the IV before it and the ICV behind it.
	seal(packet []byte, seq uint64, scratch []byte)
	// open checks the ICV and appends the plaintext, trailer included, to dst: in place if that is nil. The packet's length is
	// one that the layout allows.
	open(dst, packet []byte, seq uint64, scratch []byte) ([]byte, error)
}

// layout is how long the parts of an SA's packets are, in octets.
type layout struct {
	iv, icv int
	align   int // of what is encrypted (RFC 4303, 2.4: 4, or the cipher's block)
}

// header is what stands before the ciphertext.
func (l layout) header() int { return spiSeqLen + l.iv }

// padLen is how many octets of padding follow a payload of n octets.
func (l layout) padLen(n int) int { return (l.align - (n+trailerLen)%l.align) % l.align }

// packetLen is the length of the packet for a payload of n octets.
func (l layout) packetLen(n int) int { return l.header() + n + l.padLen(n) + trailerLen + l.icv }

// maxPayload is the longest payload whose packet has at most n octets.
func (l layout) maxPayload(n int) int {
	return max(0, (n-l.header()-l.icv)/l.align*l.align-trailerLen)
}

// fits reports whether a packet of n octets can be of the SA.
func (l layout) fits(n int) bool {
	text := n - l.header() - l.icv
	return text >= l.align && text%l.align == 0
}

// checked says what an SA's packets are like, if there is nothing wrong with it.
func checked(sa ipsec.SA) (layout, error) {
	if err := sa.Check(); err != nil {
		return layout{}, fmt.Errorf("esp: %w", err)
	}
	if sa.Cipher.Combined() {
		return layout{iv: combinedIV, icv: combinedICV, align: combinedAlign}, nil
	}
	return layout{iv: aes.BlockSize, icv: sa.Integrity.ICVLen(), align: aes.BlockSize}, nil
}

// newTransform makes what the algorithms of an SA are. Sealer and Opener do so with the first packet: of thousands of SAs most carry none for a long
// time, and their tables and windows are a kilobyte each.
func newTransform(sa ipsec.SA) (transform, error) {
	if sa.Cipher.Combined() {
		return newCombined(sa)
	}
	return newSeparate(sa)
}
