package ike

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"math/big"
	"testing"

	"tacit/ike/wire"
)

var allHashes = []uint16{wire.HashSHA2256, wire.HashSHA2384, wire.HashSHA2512, wire.HashIdentity}

func sign(t testing.TB, key crypto.Signer, s scheme, octets []byte) *wire.Auth {
	t.Helper()
	sig, err := key.Sign(crand.Reader, s.digest(octets), s.opts())
	if err != nil {
		t.Fatal(err)
	}
	a, err := s.payload(sig)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Every scheme signs and verifies; a changed bit anywhere, another key or other octets do not.
func TestSignatures(t *testing.T) {
	octets := []byte("signed octets")
	tried := 0
	for name, key := range testKeys() {
		for _, s := range schemes {
			fits := map[string]bool{
				"ed25519": s.family == famEd25519, "other": s.family == famEd25519, "rsa": s.family == famPKCS1 || s.family == famPSS,
				"p256": s.family == famECDSA && s.rawSize != 48, "p384": s.family == famECDSA && s.rawSize != 32,
			}
			if !fits[name] {
				continue
			}
			tried++
			a := sign(t, key, s, octets)
			verify := func(a *wire.Auth, keys ...crypto.PublicKey) bool {
				got, sig, err := parseAuth(a)
				if err != nil {
					return false
				}
				_, ok := got.prove(keys, [][]byte{got.digest(octets)}, sig)
				return ok
			}
			if !verify(a, testKeys()["p256"].Public(), key.Public()) {
				t.Errorf("%s %x does not verify", name, s.algID)
			}
			for other, k := range testKeys() {
				if other != name && verify(a, k.Public()) {
					t.Errorf("a signature of %s verifies with %s", name, other)
				}
			}
			for i := range a.Data {
				bad := &wire.Auth{Method: a.Method, Data: bytes.Clone(a.Data)}
				bad.Data[i] ^= 1
				if verify(bad, key.Public()) {
					t.Errorf("%s: octet %d changed, and it verifies", name, i)
				}
				if verify(&wire.Auth{Method: a.Method, Data: a.Data[:i]}, key.Public()) {
					t.Errorf("%s: cut at %d, and it verifies", name, i)
				}
			}
		}
	}
	if tried != 16 {
		t.Errorf("%d schemes tried, want 16", tried)
	}
}

// The AlgorithmIdentifiers of RFC 7427, appendix A, octet by octet.
func TestAlgorithmIdentifiers(t *testing.T) {
	for want, got := range map[string][]byte{
		"300506032b6570":                 schemes[0].algID,
		"300a06082a8648ce3d040302":       schemes[1].algID,
		"300a06082a8648ce3d040303":       schemes[2].algID,
		"300a06082a8648ce3d040304":       schemes[3].algID,
		"300d06092a864886f70d01010b0500": schemes[7].algID,
		"300d06092a864886f70d01010c0500": schemes[8].algID,
		"300d06092a864886f70d01010d0500": schemes[9].algID,
		"304106092a864886f70d01010a3034a00f300d06096086480165030402010500a11c301a06092a864886f70d010108300d06096086480165030402010500a203020120": schemes[4].algID,
	} {
		if hex.EncodeToString(got) != want {
			t.Errorf("got %x, want %s", got, want)
		}
	}
	for name, alg := range map[string]string{
		"absent parameters": "303d06092a864886f70d01010a3030a00d300b0609608648016503040201a11a301806092a864886f70d010108300b0609608648016503040201a203020120",
		"trailer":           "304606092a864886f70d01010a3039a00f300d06096086480165030402010500a11c301a06092a864886f70d010108300d06096086480165030402010500a203020120a303020101",
	} {
		b, _ := hex.DecodeString(alg)
		if !isPSS(b, 1, 32) {
			t.Errorf("%s: not understood", name)
		}
	}
	for name, alg := range map[string]string{
		"sha-1 defaults": "300d06092a864886f70d01010a3000",
		"salt 20":        "304106092a864886f70d01010a3034a00f300d06096086480165030402010500a11c301a06092a864886f70d010108300d06096086480165030402010500a203020114",
		"other mgf hash": "304106092a864886f70d01010a3034a00f300d06096086480165030402010500a11c301a06092a864886f70d010108300d06096086480165030402020500a203020120",
		"sha1WithRSA":    "300d06092a864886f70d0101050500",
		"no parameters":  "300b06092a864886f70d01010b",
		"truncated":      "300d06092a864886f70d01010b05",
		"empty":          "",
	} {
		b, _ := hex.DecodeString(alg)
		data := append(append([]byte{byte(len(b))}, b...), make([]byte, 256)...)
		if s, _, err := parseAuth(&wire.Auth{Method: wire.AuthDigitalSignature, Data: data}); err == nil {
			t.Errorf("%s is taken for %x", name, s.algID)
		}
	}
}

// TRUST.md A-26: what is too weak is not tried, whatever it signed.
//
//tacit:attack A-26 what is too weak is not tried, whatever it signed
func TestKeyFloor(t *testing.T) {
	good := testKeys()["rsa"].Public().(*rsa.PublicKey)
	p := elliptic.P256().Params()
	even := new(big.Int).Lsh(big.NewInt(1), 2047)
	small, _ := rsa.GenerateKey(crand.Reader, 1024)
	for name, k := range map[string]crypto.PublicKey{
		"nil": nil, "short Ed25519": ed25519.PublicKey(make([]byte, 31)), "empty Ed25519": ed25519.PublicKey(nil),
		"RSA 1024": small.Public(), "RSA e=3": &rsa.PublicKey{N: good.N, E: 3}, "RSA e=0": &rsa.PublicKey{N: good.N},
		"RSA e=1": &rsa.PublicKey{N: good.N, E: 1}, "RSA e=2": &rsa.PublicKey{N: good.N, E: 2}, "RSA e even": &rsa.PublicKey{N: good.N, E: 65538},
		"RSA even": &rsa.PublicKey{N: even, E: 65537}, "RSA 16k": &rsa.PublicKey{N: new(big.Int).Lsh(good.N, 14000), E: 65537},
		"RSA nothing": &rsa.PublicKey{}, "P-224": &ecdsa.PublicKey{Curve: elliptic.P224()},
		//lint:ignore SA1019 the safe constructors refuse it
		"off the curve": &ecdsa.PublicKey{Curve: elliptic.P256(), X: p.Gx, Y: p.Gx},
		"a string":      "key",
	} {
		if floor(k) == nil {
			t.Errorf("%s passes", name)
		}
	}
	for name, k := range testKeys() {
		if err := floor(k.Public()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A good signature by a key that is too weak proves nothing.
func TestWeakKeyProvesNothing(t *testing.T) {
	weak, err := rsa.GenerateKey(crand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	s := schemes[7]
	_, sig, _ := parseAuth(sign(t, weak, s, []byte("x")))
	if !s.verify(weak.Public(), s.digest([]byte("x")), sig) {
		t.Fatal("the test's signature is not good")
	}
	if _, ok := s.prove([]crypto.PublicKey{weak.Public()}, [][]byte{s.digest([]byte("x"))}, sig); ok {
		t.Error("proved")
	}
}

// At most eight keys are tried (TRUST.md A-31).
//
//tacit:attack A-31 at most eight are tried
func TestKeysTried(t *testing.T) {
	key, s := testKeys()["ed25519"], schemes[0]
	_, sig, _ := parseAuth(sign(t, key, s, []byte("x")))
	other := testKeys()["other"].Public()
	keys := []crypto.PublicKey{other, other, other, other, other, other, other, key.Public()}
	if _, ok := s.prove(keys, [][]byte{[]byte("x")}, sig); !ok {
		t.Error("the eighth key is not tried")
	}
	if _, ok := s.prove(append([]crypto.PublicKey{other}, keys...), [][]byte{[]byte("x")}, sig); ok {
		t.Error("the ninth key is tried")
	}
}

// Hostile signature values: n itself, zero, all ones, wrong lengths.
func TestHostileSignatures(t *testing.T) {
	pub := testKeys()["rsa"].Public().(*rsa.PublicKey)
	n := pub.N.Bytes()
	for _, s := range schemes {
		for _, sig := range [][]byte{n, make([]byte, len(n)), bytes.Repeat([]byte{0xff}, len(n)), append([]byte{0}, n...), {}, {1}} {
			for name, key := range testKeys() {
				if s.verify(key.Public(), s.digest([]byte("x")), sig) {
					t.Errorf("%s accepts %x...", name, sig[:min(4, len(sig))])
				}
			}
		}
	}
}

// PSS with another length of salt than the AlgorithmIdentifier says, which is that of the hash, is not verified.
func TestSaltLength(t *testing.T) {
	key, s := testKeys()["rsa"].(*rsa.PrivateKey), schemes[4]
	for salt, want := range map[int]bool{rsa.PSSSaltLengthAuto: false, 20: false, 31: false, 32: true, 33: false, 64: false} {
		sig, err := rsa.SignPSS(crand.Reader, key, s.hash, s.digest([]byte("x")), &rsa.PSSOptions{SaltLength: salt, Hash: s.hash})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.verify(key.Public(), s.digest([]byte("x")), sig); got != want {
			t.Errorf("salt of %d octets: %v, want %v", salt, got, want)
		}
	}
}

func TestChooseScheme(t *testing.T) {
	keys := testKeys()
	for _, c := range []struct {
		key    string
		hashes []uint16
		peer   family
		want   *scheme
	}{
		{"ed25519", allHashes, 0, &schemes[0]},
		{"ed25519", []uint16{wire.HashSHA2256}, 0, nil},
		{"ed25519", nil, 0, nil},
		{"p256", allHashes, 0, &schemes[1]},
		{"p256", []uint16{wire.HashSHA2512}, 0, &schemes[3]},
		{"p256", nil, 0, &schemes[10]},
		{"p384", allHashes, 0, &schemes[2]},
		{"p384", nil, 0, &schemes[11]},
		{"rsa", allHashes, 0, &schemes[4]},
		{"rsa", allHashes, famPKCS1, &schemes[7]},
		{"rsa", []uint16{wire.HashSHA2384}, famPSS, &schemes[5]},
		{"rsa", []uint16{wire.HashSHA1}, famPKCS1, nil},
		{"rsa", nil, 0, nil},
	} {
		got, err := chooseScheme(keys[c.key].Public(), c.hashes, c.peer)
		if (err == nil) != (c.want != nil) || c.want != nil && (!bytes.Equal(got.algID, c.want.algID) || got.method != c.want.method) {
			t.Errorf("%s %v %d: %x %v", c.key, c.hashes, c.peer, got.algID, err)
		}
	}
}
