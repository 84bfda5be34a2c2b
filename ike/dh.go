package ike

import (
	"bytes"
	"crypto/ecdh"
	"crypto/mlkem"
	"errors"
	"fmt"
	"io"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// The key exchange methods by their IANA numbers (RFC 8031, RFC 5903, RFC 3526).
const (
	groupNone     = wire.GroupNone
	groupX25519   = wire.GroupCurve25519
	groupP256     = wire.GroupP256
	groupP384     = wire.GroupP384
	groupP521     = wire.GroupP521
	groupMODP2048 = wire.GroupMODP2048
	groupMODP3072 = wire.GroupMODP3072
	groupMODP4096 = wire.GroupMODP4096
	kemMLKEM768   = wire.KEMLKEM768
)

// method is how a key exchange is computed: on a curve, modulo a prime, or by a key encapsulation.
type method struct {
	name  string
	curve ecdh.Curve
	size  int // curve: octets of a private key
	modp  *modp
}

var methods = map[uint16]method{
	groupX25519:   {name: "x25519", curve: ecdh.X25519(), size: 32},
	groupP256:     {name: "p256", curve: ecdh.P256(), size: 32},
	groupP384:     {name: "p384", curve: ecdh.P384(), size: 48},
	groupP521:     {name: "p521", curve: ecdh.P521(), size: 66},
	groupMODP2048: {name: "modp2048", modp: modp2048},
	groupMODP3072: {name: "modp3072", modp: modp3072},
	groupMODP4096: {name: "modp4096", modp: modp4096},
	kemMLKEM768:   {name: "mlkem768"},
}

// groups are the methods that we speak, best first.
var groups = []uint16{groupX25519, groupP256, groupP384, groupP521, groupMODP3072, groupMODP4096, groupMODP2048}

func groupName(g uint16) string {
	if m, ok := methods[g]; ok {
		return m.name
	}
	return fmt.Sprintf("group-%d", g)
}

// slow reports whether the arithmetic of a group is a worker's: MODP takes milliseconds.
func slow(group uint16) bool { return methods[group].modp != nil }

// share is our half of a key exchange.
type share struct {
	group uint16
	key   *ecdh.PrivateKey // curves
	x     ipsec.Secret     // MODP: the exponent
	kem   *mlkem.DecapsulationKey768
	pub   []byte // the public value, once it was computed
}

// newShare draws a private key. The group must be one of ours.
func newShare(rand io.Reader, group uint16) (share, error) {
	m := methods[group]
	if m.modp != nil {
		x := make([]byte, m.modp.exponent)
		_, err := io.ReadFull(rand, x)
		return share{group: group, x: x}, err
	}
	if group == kemMLKEM768 {
		seed := make([]byte, mlkem.SeedSize)
		if _, err := io.ReadFull(rand, seed); err != nil {
			return share{}, fmt.Errorf("random numbers: %w", err)
		}
		key, err := mlkem.NewDecapsulationKey768(seed)
		return share{group: group, kem: key}, err
	}
	b := make([]byte, m.size)
	for range 64 { // scalars out of range are refused: one in 2^32 for P-256
		if _, err := io.ReadFull(rand, b); err != nil {
			return share{}, fmt.Errorf("random numbers: %w", err)
		}
		if group == groupP521 {
			b[0] &= 1 // of 528 bits the curve has 521
		}
		if key, err := m.curve.NewPrivateKey(b); err == nil {
			return share{group: group, key: key}, nil
		}
	}
	return share{}, fmt.Errorf("no %s key in 64 draws", groupName(group))
}

// prime reports whether it is one of the curves modulo a prime, whose points are x | y in a KE payload, without the leading octet of
// their usual form (RFC 5903, 7).
func prime(group uint16) bool {
	return group == groupP256 || group == groupP384 || group == groupP521
}

// public is the data of our KE payload.
func (s share) public() []byte {
	if s.pub != nil {
		return s.pub
	}
	if m := methods[s.group].modp; m != nil {
		return m.public(s.x)
	}
	if s.kem != nil {
		return s.kem.EncapsulationKey().Bytes()
	}
	b := s.key.PublicKey().Bytes()
	if prime(s.group) {
		return b[1:]
	}
	return b
}

var errOwnShare = errors.New("our own public value")

// secret is g^ir: of the curves modulo a prime the x coordinate (RFC 5903, 7). It refuses a point that is not on its curve, for X25519
// a result of zero (RFC 8031, 5: "MUST be checked"), and a number that generates nothing (RFC 6989, 2.1).
func (s share) secret(peer []byte) ([]byte, error) {
	if bytes.Equal(peer, s.public()) {
		return nil, errOwnShare
	}
	m := methods[s.group]
	if m.modp != nil {
		return m.modp.secret(s.x, peer)
	}
	if s.kem != nil {
		return s.kem.Decapsulate(peer)
	}
	if prime(s.group) {
		peer = append([]byte{4}, peer...)
	}
	pub, err := m.curve.NewPublicKey(peer)
	if err != nil {
		return nil, err
	}
	return s.key.ECDH(pub)
}

// encapsulate is the responder's half of ML-KEM: what it sends, and the secret. It refuses what is no encapsulation key (FIPS 203, 7.2).
func encapsulate(peer []byte) (public, secret []byte, err error) {
	key, err := mlkem.NewEncapsulationKey768(peer)
	if err != nil {
		return nil, nil, err
	}
	secret, public = key.Encapsulate()
	return public, secret, nil
}
