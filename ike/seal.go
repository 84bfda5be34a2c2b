package ike

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"

	"golang.org/x/crypto/chacha20poly1305"

	"tacit/ike/wire"
	"tacit/ipsec"
)

var errSealed = errors.New("the encrypted payload does not open")

// sealer encrypts or decrypts one direction of an IKE SA. With a combined-mode cipher the nonce is the salt and the 8 octets of
// IV, which count up: each direction has a key of its own, so no nonce occurs twice. The IV of AES-CBC, which must be unpredictable, is
// the encrypted count (NIST SP 800-38A, appendix C).
type sealer struct {
	aead  cipher.AEAD
	salt  []byte
	block cipher.Block // AES-CBC
	ivLen int
	align int // octets of which the plain text with its padding is a multiple
	count uint64
}

// newSealer makes a sealer of its part of the key schedule: the cipher's key with a salt or the key of the integrity algorithm.
func newSealer(c cipherSuite, material ipsec.Secret) (*sealer, error) {
	key, rest := material[:c.keyLen()], material[c.keyLen():]
	s := &sealer{salt: rest, ivLen: 8, align: 1}
	var err error
	if c.cipher == ipsec.ChaCha20Poly1305 {
		s.aead, err = chacha20poly1305.New(key)
		return s, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	if c.cipher.Combined() {
		s.aead, err = cipher.NewGCM(block)
		return s, err
	}
	return &sealer{aead: newCBC(block, c.integ, rest), block: block, ivLen: aes.BlockSize, align: aes.BlockSize}, nil
}

// fillIV writes the next IV.
func (s *sealer) fillIV(iv []byte) {
	s.count++
	clear(iv)
	binary.BigEndian.PutUint64(iv[len(iv)-8:], s.count)
	if s.block != nil {
		s.block.Encrypt(iv, iv)
	}
}

// nonce is the IV, with the salt before it.
func (s *sealer) nonce(iv []byte) []byte {
	if len(s.salt) == 0 {
		return iv
	}
	return append(append(make([]byte, 0, saltLen+8), s.salt...), iv...)
}

// padding is how many octets stand between n octets of plain text and the pad length (RFC 7296, 3.14): none with a combined-mode
// cipher (RFC 5282, 3).
func (s *sealer) padding(n int) int { return (s.align - (n+1)%s.align) % s.align }

// size is the length of the body around n octets of plain text.
func (s *sealer) size(n int) int { return s.ivLen + n + s.padding(n) + 1 + s.aead.Overhead() }

// seal builds the message of header h around the payloads, encrypted.
func (s *sealer) seal(h wire.Header, ps []wire.Payload) ([]byte, error) {
	first, plain, err := wire.MarshalPayloads(ps)
	if err != nil {
		return nil, err
	}
	return s.enclose(h, plain, func(body []byte) wire.Payload { return &wire.Encrypted{First: first, Body: body} })
}

// enclose encrypts plain into the body of the message's only payload, which wrap makes. All before the body is associated data
// (RFC 5282, 5.1).
func (s *sealer) enclose(h wire.Header, plain []byte, wrap func(body []byte) wire.Payload) ([]byte, error) {
	body := make([]byte, s.size(len(plain)))
	m := wire.Message{Header: h, Payloads: []wire.Payload{wrap(body)}}
	b, err := m.Marshal()
	if err != nil {
		return nil, err
	}
	at := len(b) - len(body)
	text := at + s.ivLen
	s.fillIV(b[at:text])
	n := copy(b[text:], plain)
	in := b[text : text+n+s.padding(n)+1]
	in[len(in)-1] = byte(len(in) - n - 1)
	s.aead.Seal(in[:0], s.nonce(b[at:text:text]), in, b[:at])
	return b, nil
}

// open decrypts a message whose only payload is an Encrypted one. errSealed says that it was not of the peer; any other error
// that it was, and is malformed inside.
func (s *sealer) open(data []byte) ([]wire.Payload, error) {
	p, plain, err := s.disclose(data)
	if err != nil {
		return nil, err
	}
	enc, ok := p.(*wire.Encrypted)
	if !ok {
		return nil, errSealed
	}
	return wire.ParsePayloads(enc.First, plain)
}

// disclose decrypts a message whose only payload is an Encrypted one or a fragment of one. Its errors are open's.
func (s *sealer) disclose(data []byte) (wire.Payload, []byte, error) {
	m, err := wire.Parse(data)
	if err != nil || len(m.Payloads) != 1 {
		return nil, nil, errSealed
	}
	var body []byte
	switch p := m.Payloads[0].(type) {
	case *wire.Encrypted:
		body = p.Body
	case *wire.EncryptedFragment:
		body = p.Body
	}
	if len(body) < s.size(0) {
		return nil, nil, errSealed
	}
	plain, err := s.aead.Open(nil, s.nonce(body[:s.ivLen:s.ivLen]), body[s.ivLen:], data[:len(data)-len(body)])
	if err != nil {
		return nil, nil, errSealed
	}
	pad := int(plain[len(plain)-1])
	if pad >= len(plain) {
		t := m.Payloads[0].PayloadType()
		return nil, nil, &wire.SyntaxError{Payload: t, Field: "pad length", Err: errors.New("longer than the payload")}
	}
	return m.Payloads[0], plain[:len(plain)-1-pad], nil
}
