package ike

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"tacit/ike/wire"
)

// family is a kind of signature.
type family uint8

const (
	famEd25519 family = iota + 1
	famECDSA
	famPKCS1
	famPSS
)

// scheme is a way to sign: of method 14 (RFC 7427), or of methods 9 and 10 (RFC 4754), whose signatures are r | s.
type scheme struct {
	method  uint8
	family  family
	hash    crypto.Hash // 0 for Ed25519
	hashID  uint16      // in SIGNATURE_HASH_ALGORITHMS
	algID   []byte      // AlgorithmIdentifier in DER
	rawSize int         // methods 9 and 10: octets of r and of s
}

// The AlgorithmIdentifiers of RFC 7427, appendix A, and RFC 8420, 3.
var schemes = []scheme{
	{method: wire.AuthDigitalSignature, family: famEd25519, hashID: wire.HashIdentity, algID: []byte{0x30, 5, 6, 3, 0x2b, 0x65, 0x70}},
	{method: wire.AuthDigitalSignature, family: famECDSA, hash: crypto.SHA256, hashID: wire.HashSHA2256, algID: ecdsaID(2)},
	{method: wire.AuthDigitalSignature, family: famECDSA, hash: crypto.SHA384, hashID: wire.HashSHA2384, algID: ecdsaID(3)},
	{method: wire.AuthDigitalSignature, family: famECDSA, hash: crypto.SHA512, hashID: wire.HashSHA2512, algID: ecdsaID(4)},
	{method: wire.AuthDigitalSignature, family: famPSS, hash: crypto.SHA256, hashID: wire.HashSHA2256, algID: pssID(1, 32)},
	{method: wire.AuthDigitalSignature, family: famPSS, hash: crypto.SHA384, hashID: wire.HashSHA2384, algID: pssID(2, 48)},
	{method: wire.AuthDigitalSignature, family: famPSS, hash: crypto.SHA512, hashID: wire.HashSHA2512, algID: pssID(3, 64)},
	{method: wire.AuthDigitalSignature, family: famPKCS1, hash: crypto.SHA256, hashID: wire.HashSHA2256, algID: pkcs1ID(11)},
	{method: wire.AuthDigitalSignature, family: famPKCS1, hash: crypto.SHA384, hashID: wire.HashSHA2384, algID: pkcs1ID(12)},
	{method: wire.AuthDigitalSignature, family: famPKCS1, hash: crypto.SHA512, hashID: wire.HashSHA2512, algID: pkcs1ID(13)},
	{method: wire.AuthECDSA256, family: famECDSA, hash: crypto.SHA256, rawSize: 32},
	{method: wire.AuthECDSA384, family: famECDSA, hash: crypto.SHA384, rawSize: 48},
}

// ecdsaID is ecdsa-with-SHA256, 384, 512 (last arc 2, 3, 4): no parameters.
func ecdsaID(last byte) []byte {
	return []byte{0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, last}
}

// pkcs1ID is sha256WithRSAEncryption and its kin (last arc 11, 12, 13): parameters NULL.
func pkcs1ID(last byte) []byte {
	return []byte{0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, last, 5, 0}
}

// shaID is the AlgorithmIdentifier of SHA-256, 384, 512 (last arc 1, 2, 3), parameters NULL or absent (RFC 4055, 2.1).
func shaID(last byte, null bool) []byte {
	oid := []byte{6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, last}
	if null {
		oid = append(oid, 5, 0)
	}
	return append([]byte{0x30, byte(len(oid))}, oid...)
}

// shaArc is the last arc of the hash's object identifier.
func shaArc(h crypto.Hash) byte { return byte(h.Size()/16 - 1) }

var (
	oidPSS  = []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10}
	oidMGF1 = []byte{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 8}
)

// pssID is id-RSASSA-PSS with one hash for the message and MGF1, and a salt of the hash's length (RFC 7427, A.4).
func pssID(hash, salt byte) []byte {
	var b cryptobyte.Builder
	tag := func(n uint8) asn1.Tag { return asn1.Tag(n).ContextSpecific().Constructed() }
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(oidPSS)
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(tag(0), func(b *cryptobyte.Builder) { b.AddBytes(shaID(hash, true)) })
			b.AddASN1(tag(1), func(b *cryptobyte.Builder) {
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddBytes(oidMGF1)
					b.AddBytes(shaID(hash, true))
				})
			})
			b.AddASN1(tag(2), func(b *cryptobyte.Builder) { b.AddASN1Int64(int64(salt)) })
		})
	})
	return b.BytesOrPanic()
}

// isPSS compares an AlgorithmIdentifier with pssID, letting NULL parameters of the hashes be absent and the trailer field be
// written out.
func isPSS(alg []byte, hash, salt byte) bool {
	in := cryptobyte.String(alg)
	var outer, params, hashAlg, mgf, seq, saltField, trailer cryptobyte.String
	var hasTrailer bool
	var saltLen, trailerField int
	tag := func(n uint8) asn1.Tag { return asn1.Tag(n).ContextSpecific().Constructed() }
	if !in.ReadASN1(&outer, asn1.SEQUENCE) || !in.Empty() || !eat(&outer, oidPSS) ||
		!outer.ReadASN1(&params, asn1.SEQUENCE) || !outer.Empty() ||
		!params.ReadASN1(&hashAlg, tag(0)) || !params.ReadASN1(&mgf, tag(1)) || !params.ReadASN1(&saltField, tag(2)) ||
		!params.ReadOptionalASN1(&trailer, &hasTrailer, tag(3)) || !params.Empty() {
		return false
	}
	if hasTrailer && (!trailer.ReadASN1Integer(&trailerField) || trailerField != 1 || !trailer.Empty()) {
		return false
	}
	isHash := func(b []byte) bool { return bytes.Equal(b, shaID(hash, true)) || bytes.Equal(b, shaID(hash, false)) }
	return isHash(hashAlg) && mgf.ReadASN1(&seq, asn1.SEQUENCE) && mgf.Empty() && eat(&seq, oidMGF1) && isHash(seq) &&
		saltField.ReadASN1Integer(&saltLen) && saltField.Empty() && saltLen == int(salt)
}

func eat(s *cryptobyte.String, want []byte) bool {
	var got []byte
	return s.ReadBytes(&got, len(want)) && bytes.Equal(got, want)
}

// parseAuth splits an AUTH payload into its scheme and the signature.
func parseAuth(a *wire.Auth) (scheme, []byte, error) {
	var alg, sig []byte
	if a.Method == wire.AuthDigitalSignature {
		in := cryptobyte.String(a.Data)
		if !in.ReadUint8LengthPrefixed((*cryptobyte.String)(&alg)) || len(alg) == 0 || in.Empty() {
			return scheme{}, nil, errors.New("AUTH: no AlgorithmIdentifier and signature")
		}
		sig = in
	} else {
		sig = a.Data
	}
	for _, s := range schemes {
		if s.method != a.Method {
			continue
		}
		pss := s.family == famPSS && isPSS(alg, shaArc(s.hash), byte(s.hash.Size()))
		if s.method != wire.AuthDigitalSignature || bytes.Equal(alg, s.algID) || pss {
			return s, sig, nil
		}
	}
	return scheme{}, nil, fmt.Errorf("AUTH: method %d with AlgorithmIdentifier %x is not ours", a.Method, alg)
}

// verify checks a signature over what digest made. The key has passed floor.
func (s scheme) verify(pub crypto.PublicKey, signed, sig []byte) bool {
	switch pub := pub.(type) {
	case ed25519.PublicKey:
		return s.family == famEd25519 && ed25519.Verify(pub, signed, sig)
	case *ecdsa.PublicKey:
		if s.family != famECDSA {
			return false
		}
		if s.rawSize == 0 {
			return ecdsa.VerifyASN1(pub, signed, sig)
		}
		if len(sig) != 2*s.rawSize || (pub.Params().BitSize+7)/8 != s.rawSize {
			return false
		}
		r, t := new(big.Int).SetBytes(sig[:s.rawSize]), new(big.Int).SetBytes(sig[s.rawSize:])
		return ecdsa.Verify(pub, signed, r, t)
	case *rsa.PublicKey:
		switch s.family {
		case famPKCS1:
			return rsa.VerifyPKCS1v15(pub, s.hash, signed, sig) == nil
		case famPSS:
			return rsa.VerifyPSS(pub, s.hash, signed, sig, s.pss()) == nil
		}
	}
	return false
}

func (s scheme) pss() *rsa.PSSOptions {
	return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: s.hash}
}

// digest is what is signed: the message itself with Ed25519 (RFC 8420, 2).
func (s scheme) digest(octets []byte) []byte {
	if s.hash == 0 {
		return octets
	}
	h := s.hash.New()
	h.Write(octets)
	return h.Sum(nil)
}

// opts is what crypto.Signer needs to know.
func (s scheme) opts() crypto.SignerOpts {
	if s.family == famPSS {
		return s.pss()
	}
	return s.hash
}

// payload is the AUTH payload around a signature as crypto.Signer makes it.
func (s scheme) payload(sig []byte) (*wire.Auth, error) {
	if s.method == wire.AuthDigitalSignature {
		return &wire.Auth{Method: s.method, Data: concat([]byte{byte(len(s.algID))}, s.algID, sig)}, nil
	}
	in := cryptobyte.String(sig)
	var seq cryptobyte.String
	r, t := new(big.Int), new(big.Int)
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !seq.ReadASN1Integer(r) || !seq.ReadASN1Integer(t) ||
		max(r.BitLen(), t.BitLen()) > 8*s.rawSize {
		return nil, errors.New("not an ECDSA signature")
	}
	raw := make([]byte, 2*s.rawSize)
	r.FillBytes(raw[:s.rawSize])
	t.FillBytes(raw[s.rawSize:])
	return &wire.Auth{Method: s.method, Data: raw}, nil
}

// chooseScheme picks how our key signs: with a hash that the peer said it knows (RFC 7427, 4), RSA in the peer's kind if that
// has signed already, else PSS.
func chooseScheme(pub crypto.PublicKey, hashes []uint16, peer family) (scheme, error) {
	want := famPSS
	best := crypto.SHA256
	switch pub := pub.(type) {
	case ed25519.PublicKey:
		want = famEd25519
	case *ecdsa.PublicKey:
		want = famECDSA
		if pub.Curve == elliptic.P384() {
			best = crypto.SHA384
		}
	case *rsa.PublicKey:
		if peer == famPKCS1 {
			want = famPKCS1
		}
	default:
		return scheme{}, fmt.Errorf("no signature with a key of type %T", pub)
	}
	var found *scheme
	for i := range schemes {
		s := &schemes[i]
		usable := s.rawSize == 0 && slices.Contains(hashes, s.hashID) || s.rawSize != 0 && len(hashes) == 0 && s.hash == best
		if s.family == want && usable && (found == nil || s.hash == best && found.hash != best) {
			found = s
		}
	}
	if found == nil {
		return scheme{}, errors.New("the peer knows no hash that our key can sign with")
	}
	return *found, nil
}

// floor is the least that a key must be (TRUST.md A-26).
func floor(pub crypto.PublicKey) error {
	switch pub := pub.(type) {
	case ed25519.PublicKey:
		if len(pub) != ed25519.PublicKeySize {
			return fmt.Errorf("Ed25519 key of %d octets", len(pub))
		}
	case *ecdsa.PublicKey:
		if pub == nil || pub.Curve != elliptic.P256() && pub.Curve != elliptic.P384() {
			return errors.New("ECDSA key on an unknown curve")
		}
		if _, err := pub.ECDH(); err != nil {
			return errors.New("ECDSA key that is not on its curve")
		}
	case *rsa.PublicKey:
		if pub == nil || pub.N == nil || pub.N.BitLen() < 2048 || pub.N.BitLen() > 8192 || pub.N.Bit(0) == 0 {
			return errors.New("RSA modulus out of bounds")
		}
		if pub.E < 65537 || pub.E&1 == 0 {
			return errors.New("RSA exponent out of bounds")
		}
	default:
		return fmt.Errorf("key of type %T", pub)
	}
	return nil
}

// maxKeys bounds how many of Authorization.Keys are tried (TRUST.md A-31).
const maxKeys = 8

// prove finds the key that made the signature over one of what digest made.
func (s scheme) prove(keys []crypto.PublicKey, signed [][]byte, sig []byte) (crypto.PublicKey, bool) {
	for _, k := range keys[:min(len(keys), maxKeys)] {
		if floor(k) == nil && slices.ContainsFunc(signed, func(what []byte) bool { return s.verify(k, what, sig) }) {
			return k, true
		}
	}
	return nil, false
}

// ourHashes is the data of our SIGNATURE_HASH_ALGORITHMS.
func ourHashes() []byte {
	var b []byte
	for _, h := range []uint16{wire.HashSHA2256, wire.HashSHA2384, wire.HashSHA2512, wire.HashIdentity} {
		b = binary.BigEndian.AppendUint16(b, h)
	}
	return b
}

// parseHashes reads the peer's.
func parseHashes(n *wire.Notify) []uint16 {
	var hs []uint16
	for b := notifyData(n); len(b) >= 2 && len(hs) < 64; b = b[2:] {
		hs = append(hs, binary.BigEndian.Uint16(b))
	}
	return hs
}

func notifyData(n *wire.Notify) []byte {
	if n == nil {
		return nil
	}
	return n.Data
}
