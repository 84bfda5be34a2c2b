package ike

import (
	"crypto/ecdh"
	"fmt"
	"io"
)

// share is our half of a key exchange.
type share struct {
	group uint16
	key   *ecdh.PrivateKey
}

func curve(group uint16) ecdh.Curve {
	switch group {
	case groupX25519:
		return ecdh.X25519()
	case groupP256:
		return ecdh.P256()
	}
	return nil
}

// newShare draws a private key. The group must be one of ours.
func newShare(rand io.Reader, group uint16) (share, error) {
	b := make([]byte, 32)
	for range 64 { // P-256 refuses scalars out of range: one in 2^32
		if _, err := io.ReadFull(rand, b); err != nil {
			return share{}, fmt.Errorf("random numbers: %w", err)
		}
		if key, err := curve(group).NewPrivateKey(b); err == nil {
			return share{group, key}, nil
		}
	}
	return share{}, fmt.Errorf("no %s key in 64 draws", groupName(group))
}

// public is the data of our KE payload. P-256 is x | y without the leading octet (RFC 5903, 7).
func (s share) public() []byte {
	b := s.key.PublicKey().Bytes()
	if s.group == groupP256 {
		return b[1:]
	}
	return b
}

// secret is g^ir: the x coordinate for P-256 (RFC 5903, 7). It refuses a point that is not on its curve, and for X25519 a result
// of zero (RFC 8031, 5: "MUST be checked").
func (s share) secret(peer []byte) ([]byte, error) {
	if s.group == groupP256 {
		peer = append([]byte{4}, peer...)
	}
	pub, err := curve(s.group).NewPublicKey(peer)
	if err != nil {
		return nil, err
	}
	if pub.Equal(s.key.PublicKey()) {
		return nil, fmt.Errorf("our own public value")
	}
	return s.key.ECDH(pub)
}
