package esp

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"

	"tacit/ipsec"
)

// Lengths of the combined-mode ciphers, in octets (RFC 4106, 3 to 8; RFC 7634, 2).
const (
	combinedIV    = 8
	combinedICV   = 16
	combinedAlign = 4
	saltLen       = 4
	nonceLen      = saltLen + combinedIV
	aadMax        = 12 // SPI and a 64 bit sequence number
)

// combined is a cipher that protects integrity too. It has no state: several goroutines may use it at once.
type combined struct {
	aead cipher.AEAD
	salt [saltLen]byte
	esn  bool
}

func newCombined(sa ipsec.SA) (transform, error) {
	c := &combined{salt: [saltLen]byte(sa.Salt), esn: sa.ESN}
	var err error
	if sa.Cipher == ipsec.ChaCha20Poly1305 {
		c.aead, err = chacha20poly1305.New(sa.Key)
	} else {
		var block cipher.Block
		if block, err = aes.NewCipher(sa.Key); err == nil {
			c.aead, err = cipher.NewGCM(block)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("esp: %w", err)
	}
	return c, nil
}

// seal uses the sequence number as the IV: it must never repeat under one key (RFC 4106, 3.1; RFC 7634, 2), and need be nothing else.
func (c *combined) seal(packet []byte, seq uint64, scratch []byte) {
	binary.BigEndian.PutUint64(packet[spiSeqLen:], seq)
	nonce, aad := c.inputs(packet, seq, scratch)
	text := packet[spiSeqLen+combinedIV : len(packet)-combinedICV]
	c.aead.Seal(text[:0], nonce, text, aad)
}

func (c *combined) open(dst, packet []byte, seq uint64, scratch []byte) ([]byte, error) {
	nonce, aad := c.inputs(packet, seq, scratch)
	sealed := packet[spiSeqLen+combinedIV:]
	if dst == nil {
		dst = sealed[:0]
	}
	dst, err := c.aead.Open(dst, nonce, sealed, aad)
	if err != nil {
		return nil, ErrAuth
	}
	return dst, nil
}

// inputs writes nonce and associated data to the scratch space: on the stack they would escape through the interface.
func (c *combined) inputs(packet []byte, seq uint64, scratch []byte) (nonce, aad []byte) {
	nonce = append(append(scratch[:0], c.salt[:]...), packet[spiSeqLen:spiSeqLen+combinedIV]...)
	return nonce, putAAD(scratch[nonceLen:], packet, seq, c.esn)
}

// putAAD writes the associated data: the SPI and the sequence number, which with ESN is all 64 bits of it, though only the
// lower 32 travel (RFC 4106, 5; RFC 7634, 2.1). b has 12 octets.
func putAAD(b, packet []byte, seq uint64, esn bool) []byte {
	copy(b, packet[:spiSeqLen])
	if esn {
		binary.BigEndian.PutUint64(b[4:], seq)
		return b[:aadMax]
	}
	return b[:spiSeqLen]
}
