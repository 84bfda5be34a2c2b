package ike

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"io/fs"
	"math/big"
	"testing"

	"github.com/c2sp/wycheproof"

	"tacit/ike/wire"
)

// wycheproofGroup is what we read of a group of the vectors.
type wycheproofGroup struct {
	PublicKey struct{ PK, Uncompressed, Modulus, PublicExponent string }
	Tests     []struct {
		TcID                                               int
		Comment, Public, Private, Shared, Msg, Sig, Result string
	}
}

func wycheproofGroups(t *testing.T, file string) []wycheproofGroup {
	t.Helper()
	data, err := fs.ReadFile(wycheproof.TestVectors, file)
	if err != nil {
		t.Fatal(err)
	}
	var all struct{ TestGroups []wycheproofGroup }
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	return all.TestGroups
}

// The key exchanges, through the encoding of a KE payload.
func TestWycheproofKeyExchange(t *testing.T) {
	for file, group := range map[string]uint16{
		"x25519_test.json": groupX25519, "ecdh_secp256r1_ecpoint_test.json": groupP256,
		"ecdh_secp384r1_ecpoint_test.json": groupP384, "ecdh_secp521r1_ecpoint_test.json": groupP521,
	} {
		ran := 0
		for _, g := range wycheproofGroups(t, file) {
			for _, tt := range g.Tests {
				public, private := unhex(t, tt.Public), unhex(t, tt.Private)
				c, size := methods[group].curve, methods[group].size
				if prime(group) {
					if len(public) != 1+2*size || public[0] != 4 {
						continue // a KE payload holds x | y and no other form (RFC 5903, 7)
					}
					public = public[1:]
					private = new(big.Int).SetBytes(private).FillBytes(make([]byte, size))
				}
				key, err := c.NewPrivateKey(private)
				if err != nil {
					t.Fatalf("%s %d: %v", file, tt.TcID, err)
				}
				ran++
				got, err := share{group: group, key: key}.secret(public)
				switch {
				case err == nil && !bytes.Equal(got, unhex(t, tt.Shared)), tt.Result == "valid" && err != nil, tt.Result == "invalid" && err == nil,
					err == nil && group == groupX25519 && bytes.Equal(got, make([]byte, len(got))): // RFC 8031, 5
					t.Errorf("%s %d (%s): %x, %v, want %s %s", file, tt.TcID, tt.Comment, got, err, tt.Result, tt.Shared)
				}
			}
		}
		if ran < 100 {
			t.Errorf("%s: only %d tests ran", file, ran)
		}
	}
}

// The signatures, through the scheme that an AUTH payload names.
func TestWycheproofSignatures(t *testing.T) {
	ec := func(c elliptic.Curve) func(wycheproofGroup) crypto.PublicKey {
		return func(g wycheproofGroup) crypto.PublicKey {
			key, err := ecdsa.ParseUncompressedPublicKey(c, unhex(t, g.PublicKey.Uncompressed))
			if err != nil {
				t.Fatal(err)
			}
			return key
		}
	}
	rsaKey := func(g wycheproofGroup) crypto.PublicKey {
		return &rsa.PublicKey{N: new(big.Int).SetBytes(unhex(t, g.PublicKey.Modulus)), E: int(new(big.Int).SetBytes(unhex(t, g.PublicKey.PublicExponent)).Int64())}
	}
	for _, c := range []struct {
		file   string
		family family
		hash   crypto.Hash
		key    func(wycheproofGroup) crypto.PublicKey
	}{
		{"ed25519_test.json", famEd25519, 0, func(g wycheproofGroup) crypto.PublicKey { return ed25519.PublicKey(unhex(t, g.PublicKey.PK)) }},
		{"ecdsa_secp256r1_sha256_test.json", famECDSA, crypto.SHA256, ec(elliptic.P256())},
		{"ecdsa_secp384r1_sha384_test.json", famECDSA, crypto.SHA384, ec(elliptic.P384())},
		{"rsa_signature_2048_sha256_test.json", famPKCS1, crypto.SHA256, rsaKey},
		{"rsa_pss_2048_sha256_mgf1_32_test.json", famPSS, crypto.SHA256, rsaKey},
	} {
		var s scheme
		for _, x := range schemes {
			if x.method == wire.AuthDigitalSignature && x.family == c.family && x.hash == c.hash {
				s = x
			}
		}
		ran := 0
		for _, g := range wycheproofGroups(t, c.file) {
			key := c.key(g)
			for _, tt := range g.Tests {
				ran++
				good := s.verify(key, s.digest(unhex(t, tt.Msg)), unhex(t, tt.Sig))
				if tt.Result == "valid" && !good || tt.Result == "invalid" && good {
					t.Errorf("%s %d (%s): verified %v, want %s", c.file, tt.TcID, tt.Comment, good, tt.Result)
				}
			}
		}
		if ran < 80 {
			t.Errorf("%s: only %d tests ran", c.file, ran)
		}
	}
}
