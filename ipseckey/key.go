package ipseckey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
)

// The floor and the ceiling of RSA keys. Above 8192 bits one verification costs milliseconds; an exponent of 3 has been forged against often enough.
const (
	minRSABits  = 2048
	maxRSABits  = 8192
	minExponent = 65537
	precedence  = 10 // of the records that we make
)

// parseKey reads RawKey as Algorithm says. What is malformed is an error, what is well-formed but not good enough is Unusable.
func (r *Record) parseKey() error {
	switch r.Algorithm {
	case AlgNone:
		// RFC 4025, 2.4: "A value of 0 indicates that no key is present."
		if len(r.RawKey) > 0 {
			return fmt.Errorf("%d octets with algorithm 0", len(r.RawKey))
		}
		r.Unusable = "no key"
		return nil
	case AlgRSA:
		return r.parseRSA(r.RawKey)
	case AlgECDSA:
		return r.parseECDSA(r.RawKey)
	case AlgEdDSA:
		return r.parseEdDSA(r.RawKey)
	}
	if len(r.RawKey) == 0 {
		return fmt.Errorf("empty with algorithm %d", r.Algorithm)
	}
	r.Unusable = fmt.Sprintf("algorithm %d", r.Algorithm)
	if r.Algorithm == AlgDSA {
		r.Unusable = "DSA"
	}
	return nil
}

// parseRSA reads a key in the form of RFC 3110, 2: the length of the exponent in one octet, or in three of which the first is zero; exponent; modulus.
//
// "Leading zero octets are prohibited in the exponent and modulus."
func (r *Record) parseRSA(b []byte) error {
	if len(b) == 0 {
		return errors.New("empty")
	}
	n := int(b[0])
	b = b[1:]
	if n == 0 {
		if len(b) < 2 {
			return errors.New("the length of the exponent is cut off")
		}
		n = int(binary.BigEndian.Uint16(b))
		b = b[2:]
		if n < 256 {
			return fmt.Errorf("the long form for an exponent of %d octets", n)
		}
	}
	if len(b) <= n {
		return fmt.Errorf("%d octets for an exponent of %d and a modulus", len(b), n)
	}
	if b[0] == 0 || b[n] == 0 {
		return errors.New("leading zeroes in exponent or modulus")
	}
	e, m := b[:n], new(big.Int).SetBytes(b[n:])
	r.Unusable = weakRSA(e, m)
	if r.Unusable == "" {
		r.Key = &rsa.PublicKey{N: m, E: int(new(big.Int).SetBytes(e).Int64())}
	}
	return nil
}

// weakRSA says why an RSA key is not good enough, or nothing.
func weakRSA(e []byte, m *big.Int) string {
	exp := new(big.Int).SetBytes(e)
	switch bits := m.BitLen(); {
	case bits < minRSABits, bits > maxRSABits:
		return fmt.Sprintf("RSA modulus of %d bits, want %d to %d", bits, minRSABits, maxRSABits)
	case m.Bit(0) == 0:
		return "RSA modulus is even"
	case exp.Bit(0) == 0:
		return "RSA exponent is even"
	case exp.BitLen() > 31:
		return fmt.Sprintf("RSA exponent of %d bits", exp.BitLen())
	case exp.Int64() < minExponent:
		return fmt.Sprintf("RSA exponent %d, want %d at least", exp.Int64(), minExponent)
	}
	return ""
}

// parseECDSA reads a key in the form of RFC 6605, 4: the two coordinates, of 32 octets each on P-256 and 48 on P-384.
func (r *Record) parseECDSA(b []byte) error {
	curve := elliptic.P256()
	switch len(b) {
	case 64:
	case 96:
		curve = elliptic.P384()
	default:
		return fmt.Errorf("ECDSA key of %d octets, want 64 or 96", len(b))
	}
	key, err := ecdsa.ParseUncompressedPublicKey(curve, append([]byte{4}, b...))
	if err != nil {
		return fmt.Errorf("the point is not on %s", curve.Params().Name)
	}
	r.Key = key
	return nil
}

// parseEdDSA reads a key in the form of RFC 8080, 3: 32 octets for Ed25519, 57 for Ed448, which we do not verify.
func (r *Record) parseEdDSA(b []byte) error {
	switch len(b) {
	case ed25519.PublicKeySize:
		small, err := checkEd25519(b)
		if err != nil {
			return err
		}
		if small {
			r.Unusable = "Ed25519 point of small order"
			return nil
		}
		r.Key = ed25519.PublicKey(append([]byte{}, b...))
	case 57:
		r.Unusable = "Ed448"
	default:
		return fmt.Errorf("EdDSA key of %d octets, want 32", len(b))
	}
	return nil
}

// NewRecord makes a record of a public key with precedence 10 and no gateway. The key must be one that Parse would take.
func NewRecord(pub crypto.PublicKey) (Record, error) {
	alg, raw, err := encode(nil, pub)
	if err != nil {
		return Record{}, err
	}
	r := Record{Precedence: precedence, Algorithm: alg, RawKey: raw}
	if err := r.parseKey(); err != nil {
		return Record{}, fmt.Errorf("ipseckey: key: %w", err)
	}
	if r.Unusable != "" {
		return Record{}, fmt.Errorf("ipseckey: %s", r.Unusable)
	}
	return r, nil
}

// encode appends the key field for a public key to b.
func encode(b []byte, pub crypto.PublicKey) (Algorithm, []byte, error) {
	switch k := pub.(type) {
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return 0, nil, fmt.Errorf("ipseckey: Ed25519 key of %d octets", len(k))
		}
		return AlgEdDSA, append(b, k...), nil
	case *ecdsa.PublicKey:
		if k == nil || k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return 0, nil, errors.New("ipseckey: ECDSA key that is not on P-256 or P-384")
		}
		point, err := k.Bytes()
		if err != nil {
			return 0, nil, fmt.Errorf("ipseckey: %w", err)
		}
		return AlgECDSA, append(b, point[1:]...), nil
	case *rsa.PublicKey:
		if k == nil || k.N == nil || k.N.Sign() <= 0 || k.E <= 0 {
			return 0, nil, errors.New("ipseckey: RSA key without modulus or exponent")
		}
		e := big.NewInt(int64(k.E)).Bytes()
		return AlgRSA, append(append(append(b, byte(len(e))), e...), k.N.Bytes()...), nil
	}
	return 0, nil, fmt.Errorf("ipseckey: no record holds a %T", pub)
}

// Fingerprint is "SHA256:" and the base64 of the SHA-256 of the algorithm octet and the key field of the record that NewRecord makes of pub;
// empty for a kind of key that no record holds.
func Fingerprint(pub crypto.PublicKey) string {
	var field [1 + 64]byte // no allocation for an elliptic curve's key
	alg, b, err := encode(field[:1], pub)
	if err != nil {
		return ""
	}
	b[0] = byte(alg)
	sum := sha256.Sum256(b)
	var text [64]byte
	return string(base64.RawStdEncoding.AppendEncode(append(text[:0], "SHA256:"...), sum[:]))
}

// Equal says whether a and b are the same public key. Keys of unknown kinds, and nil, equal nothing.
func Equal(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	if _, _, err := encode(nil, a); err != nil || !ok {
		return false
	}
	if _, _, err := encode(nil, b); err != nil {
		return false
	}
	return k.Equal(b)
}
