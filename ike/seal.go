package ike

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"

	"tacit/ike/wire"
	"tacit/ipsec"
)

var errSealed = errors.New("the encrypted payload does not open")

// sealer encrypts or decrypts one direction of an IKE SA. With a combined-mode cipher the nonce is the salt and the 8 octets of
// IV, which count up: each direction has a key of its own, so no nonce occurs twice. The IV of AES-CBC, which must be unpredictable, is
// the encrypted count (NIST SP 800-38A, appendix C).
type sealer struct {
	suite cipherSuite
	nonce [saltLen + 8]byte // of a combined-mode cipher: the salt, which is secret, and the last IV
	key   ipsec.Secret      // the cipher's, with the key of the integrity algorithm behind it
	count uint64
}

// newSealer makes a sealer of its part of the key schedule.
func newSealer(c cipherSuite, material ipsec.Secret) (s sealer, err error) {
	if len(material) != c.keyMaterial() {
		return s, fmt.Errorf("%v with %d octets of keys", c, len(material))
	}
	s = sealer{suite: c, key: material}
	if c.cipher.Combined() {
		s.key = material[:c.keyLen()]
		copy(s.nonce[:], material[c.keyLen():])
	}
	return s, nil
}

// algorithms are made for a message and forgotten: that takes half a microsecond, and an SA that says something once a minute would keep a
// kilobyte of tables for each of its keys. block is nil with a combined-mode cipher.
func (s *sealer) algorithms() (aead cipher.AEAD, block cipher.Block, err error) {
	key, rest := s.key[:s.suite.keyLen()], s.key[s.suite.keyLen():]
	if s.suite.cipher == ipsec.ChaCha20Poly1305 {
		aead, err = chacha20poly1305.New(key)
		return aead, nil, err
	}
	if block, err = aes.NewCipher(key); err != nil {
		return nil, nil, err
	}
	if s.suite.cipher.Combined() {
		aead, err = cipher.NewGCM(block)
		return aead, nil, err
	}
	return newCBC(block, s.suite.integ, rest), block, nil
}

// fillIV writes the next IV.
func (s *sealer) fillIV(iv []byte, block cipher.Block) {
	s.count++
	clear(iv)
	binary.BigEndian.PutUint64(iv[len(iv)-8:], s.count)
	if block != nil {
		block.Encrypt(iv, iv)
	}
}

// nonceOf is the IV, with the salt of a combined-mode cipher before it.
func (s *sealer) nonceOf(iv []byte) []byte {
	if !s.suite.cipher.Combined() {
		return iv
	}
	copy(s.nonce[saltLen:], iv)
	return s.nonce[:]
}

// padding is how many octets stand between n octets of plain text and the pad length (RFC 7296, 3.14): none with a combined-mode
// cipher (RFC 5282, 3).
func (s *sealer) padding(n int) int {
	align := s.suite.align()
	return (align - (n+1)%align) % align
}

// size is the length of the body around n octets of plain text.
func (s *sealer) size(n int) int { return s.suite.ivLen() + n + s.padding(n) + 1 + s.suite.icvLen() }

// seal builds the message of header h around the payloads, encrypted.
func (s *sealer) seal(h wire.Header, ps []wire.Payload) ([]byte, error) {
	first, plain, err := wire.MarshalPayloads(ps)
	if err != nil {
		return nil, err
	}
	return s.enclose(h, wire.Closed{First: first}, plain)
}

// enclose encrypts plain into the body of the message's only payload. All before the body is associated data (RFC 5282, 5.1).
func (s *sealer) enclose(h wire.Header, c wire.Closed, plain []byte) ([]byte, error) {
	aead, block, err := s.algorithms()
	if err != nil {
		return nil, err
	}
	b, err := c.Frame(h, s.size(len(plain)))
	if err != nil {
		return nil, err
	}
	at := c.Room()
	text := at + s.suite.ivLen()
	s.fillIV(b[at:text], block)
	n := copy(b[text:], plain)
	in := b[text : text+n+s.padding(n)+1]
	in[len(in)-1] = byte(len(in) - n - 1)
	aead.Seal(in[:0], s.nonceOf(b[at:text]), in, b[:at])
	return b, nil
}

// open decrypts a message whose only payload is an Encrypted one. errSealed says that it was not of the peer; any other error
// that it was, and is malformed inside.
func (s *sealer) open(data []byte) ([]wire.Payload, error) {
	c, plain, err := s.disclose(data)
	if err != nil {
		return nil, err
	}
	if c.Total != 0 {
		return nil, errSealed
	}
	return wire.ParsePayloads(c.First, plain)
}

// disclose decrypts a message whose only payload is an Encrypted one or a fragment of one. Its errors are open's.
func (s *sealer) disclose(data []byte) (c wire.Closed, plain []byte, err error) {
	c, body, ok := wire.ParseClosed(data)
	if !ok || len(body) < s.size(0) {
		return c, nil, errSealed
	}
	aead, _, err := s.algorithms()
	if err != nil {
		return c, nil, err
	}
	iv := s.suite.ivLen()
	plain, err = aead.Open(nil, s.nonceOf(body[:iv]), body[iv:], data[:len(data)-len(body)])
	if err != nil {
		return c, nil, errSealed
	}
	pad := int(plain[len(plain)-1])
	if pad >= len(plain) {
		t := wire.PayloadSK
		if c.Total != 0 {
			t = wire.PayloadSKF
		}
		return c, nil, &wire.SyntaxError{Payload: t, Field: "pad length", Err: errors.New("longer than the payload")}
	}
	return c, plain[:len(plain)-1-pad], nil
}
