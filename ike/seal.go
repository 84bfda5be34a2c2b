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
	ivLen       = 8
	icvLen      = 16
	sealedStart = wire.HeaderLen + 4 // where its body begins when it is the only payload; all before is associated data
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
	plain = append(plain, 0) // pad length: no padding (RFC 5282, 3)
	body := make([]byte, ivLen+len(plain)+icvLen)
	m := wire.Message{Header: h, Payloads: []wire.Payload{&wire.Encrypted{First: first, Body: body}}}
	b, err := m.Marshal()
	if err != nil {
		return nil, err
	}
	s.count++
	iv := b[sealedStart : sealedStart+ivLen]
	binary.BigEndian.PutUint64(iv, s.count)
	s.aead.Seal(b[sealedStart+ivLen:sealedStart+ivLen], s.nonce(iv), plain, b[:sealedStart])
	return b, nil
}

// open decrypts a message whose only payload is an Encrypted one. errSealed says that it was not of the peer; any other error
// that it was, and is malformed inside.
func (s *sealer) open(data []byte) ([]wire.Payload, error) {
	m, err := wire.Parse(data)
	if err != nil || len(m.Payloads) != 1 {
		return nil, errSealed
	}
	enc, ok := m.Payloads[0].(*wire.Encrypted)
	if !ok || len(enc.Body) < ivLen+1+icvLen {
		return nil, errSealed
	}
	plain, err := s.aead.Open(nil, s.nonce(enc.Body[:ivLen]), enc.Body[ivLen:], data[:sealedStart])
	if err != nil {
		return nil, errSealed
	}
	pad := int(plain[len(plain)-1])
	if pad >= len(plain) {
		return nil, &wire.SyntaxError{Payload: wire.PayloadSK, Field: "pad length", Err: errors.New("longer than the payload")}
	}
	return wire.ParsePayloads(enc.First, plain[:len(plain)-1-pad])
}
