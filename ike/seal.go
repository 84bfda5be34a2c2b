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

// The shape of the Encrypted payload with our ciphers (RFC 5282, 3).
const (
	ivLen  = 8
	icvLen = 16
)

var errSealed = errors.New("the encrypted payload does not open")

// sealer encrypts or decrypts one direction of an IKE SA. The nonce is the salt and the 8 octets of IV, which count up: each
// direction has a key of its own, so no nonce occurs twice.
type sealer struct {
	aead  cipher.AEAD
	salt  [saltLen]byte
	count uint64
}

// newSealer splits SK_e into key and salt.
func newSealer(c cipherSuite, ske ipsec.Secret) (*sealer, error) {
	key := ske[:c.keyLen()]
	s := &sealer{}
	copy(s.salt[:], ske[c.keyLen():])
	var err error
	if c.cipher == ipsec.ChaCha20Poly1305 {
		s.aead, err = chacha20poly1305.New(key)
		return s, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	s.aead, err = cipher.NewGCM(block)
	return s, err
}

func (s *sealer) nonce(iv []byte) []byte {
	return append(append(make([]byte, 0, saltLen+ivLen), s.salt[:]...), iv...)
}

// seal builds the message of header h around the payloads, encrypted.
func (s *sealer) seal(h wire.Header, ps []wire.Payload) ([]byte, error) {
	first, plain, err := wire.MarshalPayloads(ps)
	if err != nil {
		return nil, err
	}
	return s.enclose(h, plain, func(body []byte) wire.Payload { return &wire.Encrypted{First: first, Body: body} })
}

// enclose encrypts plain into the body of the message's only payload, which wrap makes. All before the body is associated data.
func (s *sealer) enclose(h wire.Header, plain []byte, wrap func(body []byte) wire.Payload) ([]byte, error) {
	body := make([]byte, ivLen+len(plain)+1+icvLen) // a pad length of 0: no padding (RFC 5282, 3)
	m := wire.Message{Header: h, Payloads: []wire.Payload{wrap(body)}}
	b, err := m.Marshal()
	if err != nil {
		return nil, err
	}
	s.count++
	at := len(b) - len(body)
	binary.BigEndian.PutUint64(b[at:], s.count)
	in := append(b[at+ivLen:at+ivLen], plain...)
	in = append(in, 0)
	s.aead.Seal(in[:0], s.nonce(b[at:at+ivLen]), in, b[:at])
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
	if len(body) < ivLen+1+icvLen {
		return nil, nil, errSealed
	}
	plain, err := s.aead.Open(nil, s.nonce(body[:ivLen]), body[ivLen:], data[:len(data)-len(body)])
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
