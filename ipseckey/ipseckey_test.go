package ipseckey

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/hex"
	"math/big"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// rdataOf is what the dns package makes of a presentation form.
func rdataOf(t testing.TB, presentation string) []byte {
	t.Helper()
	rr, err := dns.NewRR(". 0 IN IPSECKEY " + presentation)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, dns.Len(rr)+1)
	n, err := dns.PackRR(rr, buf, 0, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	return buf[11:n]
}

// The examples of RFC 4025, 3.2. Their RSA key has 256 bits and an exponent of 3.
func TestExamplesOfRFC4025(t *testing.T) {
	const key = "AQNRU3mG7TVTO2BkR47usntb102uFJtugbo6BSGvgqt4AQ=="
	for _, s := range []string{
		"10 1 2 192.0.2.38 " + key,
		"10 0 2 . " + key,
		"10 1 2 192.0.2.3 " + key,
		"10 3 2 mygateway.example.com. " + key,
		"10 2 2 2001:db8:0:8002::2000:1 " + key,
	} {
		rdata := rdataOf(t, s)
		r, err := Parse(rdata)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		if got := r.String(); got != s {
			t.Errorf("got %q, want %q", got, s)
		}
		if b, err := r.Marshal(); err != nil || !bytes.Equal(b, rdata) {
			t.Errorf("%s: marshalled to %x (%v), want %x", s, b, err, rdata)
		}
		if r.Key != nil || r.Unusable != "RSA modulus of 255 bits, want 2048 to 8192" {
			t.Errorf("%s: unusable %q", s, r.Unusable)
		}
	}
}

// A record of the kind that RFC 9373 adds.
func TestEdDSARecord(t *testing.T) {
	const s = "10 0 4 . 3WTXgUvpn1RlCXnm80gGY2LZ/ErUUEZtZ33IDi8yfhM="
	r, err := Parse(rdataOf(t, s))
	if err != nil {
		t.Fatal(err)
	}
	if r.String() != s || r.Unusable != "" {
		t.Errorf("got %q, unusable %q", r.String(), r.Unusable)
	}
	if k, ok := r.Key.(ed25519.PublicKey); !ok || base64.StdEncoding.EncodeToString(k) != strings.Fields(s)[4] {
		t.Errorf("key %T", r.Key)
	}
	if got := r.Generic(); !strings.HasPrefix(got, `\# 35 0a0004dd64d7`) {
		t.Errorf("generic %q", got)
	}
}

// rsaKey is an RSA key field: exponent and modulus as they are.
func rsaKey(e, m []byte) []byte { return append(append([]byte{byte(len(e))}, e...), m...) }

func modulus(bits int, odd byte) []byte {
	m := bytes.Repeat([]byte{0xc5}, bits/8)
	m[len(m)-1] = m[len(m)-1]&^1 | odd
	return m
}

func TestParseRefuses(t *testing.T) {
	p256 := elliptic.P256().Params()
	off := append(p256.Gx.FillBytes(make([]byte, 32)), new(big.Int).Add(p256.Gy, big.NewInt(1)).FillBytes(make([]byte, 32))...)
	f4 := []byte{1, 0, 1}
	tests := []struct {
		name  string
		rdata []byte
		want  string
	}{
		{"no octet", nil, "0 octets"},
		{"one octet", []byte{10}, "1 octets"},
		{"two octets", []byte{10, 0}, "2 octets"},
		{"unknown gateway type", []byte{10, 4, 0}, "unknown type 4"},
		{"gateway type 255", []byte{10, 255, 2, 1}, "unknown type 255"},
		{"short IPv4 gateway", []byte{10, 1, 0, 192, 0, 2}, "3 octets, want 4"},
		{"short IPv6 gateway", append([]byte{10, 2, 0}, make([]byte, 15)...), "15 octets, want 16"},
		{"compressed gateway name", append([]byte{10, 3, 4, 0xc0, 12}, make([]byte, 32)...), "compressed"},
		{"label type 0x40", []byte{10, 3, 0, 0x41, 'a', 0}, "label type 0x40"},
		{"gateway name without end", []byte{10, 3, 0, 1, 'a'}, "no end"},
		{"gateway name cut in a label", []byte{10, 3, 0, 5, 'a'}, "no end"},
		{"gateway name of 256 octets", append([]byte{10, 3, 0}, append(bytes.Repeat([]byte{1, 'a'}, 128), 0)...), "longer than 255"},
		{"algorithm 0 with a key", []byte{10, 0, 0, 1}, "with algorithm 0"},
		{"empty RSA key", []byte{10, 0, 2}, "empty"},
		{"empty DSA key", []byte{10, 0, 1}, "empty"},
		{"empty ECDSA key", []byte{10, 0, 3}, "0 octets"},
		{"empty EdDSA key", []byte{10, 0, 4}, "0 octets"},
		{"empty key of an unknown algorithm", []byte{10, 0, 99}, "empty"},
		{"Ed25519 key of 31 octets", append([]byte{10, 0, 4}, make([]byte, 31)...), "31 octets"},
		{"Ed25519 key with an octet after it", append([]byte{10, 0, 4}, make([]byte, 33)...), "33 octets"},
		{"Ed25519 key that is no point", append([]byte{10, 0, 4, 2}, make([]byte, 31)...), "not on Ed25519"},
		{"Ed25519 key not reduced", append([]byte{10, 0, 4, 0xee}, append(bytes.Repeat([]byte{0xff}, 30), 0x7f)...), "not reduced"},
		{"P-256 point not on its curve", append([]byte{10, 0, 3}, off...), "not on P-256"},
		{"P-256 point at zero", append([]byte{10, 0, 3}, make([]byte, 64)...), "not on P-256"},
		{"P-384 point not on its curve", append([]byte{10, 0, 3}, bytes.Repeat([]byte{7}, 96)...), "not on P-384"},
		{"ECDSA key with an octet after it", append([]byte{10, 0, 3}, make([]byte, 65)...), "65 octets"},
		{"RSA exponent length 0 in one octet only", []byte{10, 0, 2, 0}, "cut off"},
		{"RSA exponent length 0 in three octets", append([]byte{10, 0, 2, 0, 0, 0}, modulus(2048, 1)...), "long form"},
		{"RSA exponent of 3 octets in the long form", append([]byte{10, 0, 2, 0, 0, 3, 1, 0, 1}, modulus(2048, 1)...), "long form"},
		{"RSA exponent longer than the rest", []byte{10, 0, 2, 0, 255, 255, 1}, "exponent of 65535"},
		{"RSA key without a modulus", []byte{10, 0, 2, 3, 1, 0, 1}, "and a modulus"},
		{"RSA exponent with a leading zero", append([]byte{10, 0, 2}, rsaKey([]byte{0, 1, 0, 1}, modulus(2048, 1))...), "leading zeroes"},
		{"RSA modulus with a leading zero", append([]byte{10, 0, 2}, rsaKey(f4, append([]byte{0}, modulus(2048, 1)...))...), "leading zeroes"},
		{"more than a record holds", make([]byte, 65536), "65536 octets"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := Parse(tt.rdata)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, %v; want an error with %q", r, err, tt.want)
			}
		})
	}
}

//tacit:attack A-26 a key below the floor is read as unusable
func TestParseUnusable(t *testing.T) {
	f4 := []byte{1, 0, 1}
	long := append([]byte{0, 1, 1}, append(bytes.Repeat([]byte{1}, 257), modulus(2048, 1)...)...)
	tests := []struct {
		name string
		alg  Algorithm
		key  []byte
		want string
	}{
		{"no key", AlgNone, nil, "no key"},
		{"DSA", AlgDSA, []byte{1, 2, 3}, "DSA"},
		{"algorithm 99", 99, []byte{1}, "algorithm 99"},
		{"RSA of 1024 bits", AlgRSA, rsaKey(f4, modulus(1024, 1)), "modulus of 1024"},
		{"RSA of 2040 bits", AlgRSA, rsaKey(f4, modulus(2040, 1)), "modulus of 2040"},
		{"RSA of 16384 bits", AlgRSA, rsaKey(f4, modulus(16384, 1)), "modulus of 16384"},
		{"RSA, even modulus", AlgRSA, rsaKey(f4, modulus(2048, 0)), "modulus is even"},
		{"RSA, exponent 1", AlgRSA, rsaKey([]byte{1}, modulus(2048, 1)), "exponent 1,"},
		{"RSA, exponent 2", AlgRSA, rsaKey([]byte{2}, modulus(2048, 1)), "exponent is even"},
		{"RSA, exponent 3", AlgRSA, rsaKey([]byte{3}, modulus(2048, 1)), "exponent 3,"},
		{"RSA, exponent 65535", AlgRSA, rsaKey([]byte{255, 255}, modulus(2048, 1)), "exponent 65535,"},
		{"RSA, exponent of 33 bits", AlgRSA, rsaKey([]byte{1, 0, 0, 0, 1}, modulus(2048, 1)), "exponent of 33 bits"},
		{"RSA, exponent of 257 octets in the long form", AlgRSA, long, "exponent of 2049 bits"},
		{"Ed448", AlgEdDSA, make([]byte, 57), "Ed448"},
		{"Ed25519, identity", AlgEdDSA, unhex(t, "01"+strings.Repeat("00", 31)), "small order"},
		{"Ed25519, order 2", AlgEdDSA, unhex(t, "ec"+strings.Repeat("ff", 30)+"7f"), "small order"},
		{"Ed25519, order 4", AlgEdDSA, make([]byte, 32), "small order"},
		{"Ed25519, order 8", AlgEdDSA, unhex(t, "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "small order"},
		{"Ed25519, order 8, other", AlgEdDSA, unhex(t, "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa"), "small order"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rdata := append([]byte{10, 0, byte(tt.alg)}, tt.key...)
			r, err := Parse(rdata)
			if err != nil || r.Key != nil || !strings.Contains(r.Unusable, tt.want) {
				t.Fatalf("got key %v, unusable %q, error %v; want unusable %q", r.Key, r.Unusable, err, tt.want)
			}
			if b, err := r.Marshal(); err != nil || !bytes.Equal(b, rdata) {
				t.Errorf("marshalled to %x (%v)", b, err)
			}
		})
	}
}

// testKeys are one key of each kind that we use.
func testKeys(t testing.TB) map[string]crypto.Signer {
	t.Helper()
	ed, err := GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]crypto.Signer{"Ed25519": ed}
	for name, c := range map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384()} {
		if keys[name], err = ecdsa.GenerateKey(c, rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	if keys["RSA"], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestRecordOfEachKey(t *testing.T) {
	keys := testKeys(t)
	seen := map[string]bool{}
	for name, key := range keys {
		r, err := NewRecord(key.Public())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		b, err := r.Marshal()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		back, err := Parse(b)
		if err != nil || !Equal(back.Key, key.Public()) || back.Unusable != "" || back.Precedence != 10 {
			t.Errorf("%s: got %+v, %v", name, back, err)
		}
		if !bytes.Equal(rdataOf(t, r.String()), b) {
			t.Errorf("%s: the presentation form says otherwise", name)
		}
		f := Fingerprint(key.Public())
		if !strings.HasPrefix(f, "SHA256:") || len(f) != 50 || seen[f] {
			t.Errorf("%s: fingerprint %q", name, f)
		}
		seen[f] = true
		for other, k := range keys {
			if got := Equal(key.Public(), k.Public()); got != (name == other) {
				t.Errorf("%s equals %s: %v", name, other, got)
			}
		}
		// Whatever is cut off must not be a key of the same kind. RSA has no length of its own but the record's.
		for i := range len(b) {
			if r, err := Parse(b[:i]); err == nil && (r.Key != nil || name != "RSA") {
				t.Errorf("%s: the first %d of %d octets parse: %v", name, i, len(b), r)
			}
		}
	}
	if Equal(nil, nil) || Equal("a", "a") || Equal(ed25519.PublicKey(nil), ed25519.PublicKey(nil)) {
		t.Error("what is no key equals another")
	}
	if Fingerprint(nil) != "" || Fingerprint((*rsa.PublicKey)(nil)) != "" || Fingerprint((*ecdsa.PublicKey)(nil)) != "" {
		t.Error("what is no key has a fingerprint")
	}
	if _, err := NewRecord(&rsa.PublicKey{N: new(big.Int).SetBytes(modulus(2048, 1)), E: 3}); err == nil {
		t.Error("a record of an RSA key with exponent 3")
	}
}

// Every prefix of a record with a gateway fails, up to the key.
func TestPrefixesWithGateway(t *testing.T) {
	for _, s := range []string{"1 1 0 192.0.2.1", "1 2 0 2001:db8::1", "1 3 0 a.example."} {
		b := rdataOf(t, s)
		for i := range len(b) {
			if r, err := Parse(b[:i]); err == nil {
				t.Errorf("%s: the first %d octets parse: %v", s, i, r)
			}
		}
	}
}

// A key of small order verifies what nobody signed: the reason why Parse refuses it.
func TestLowOrderForgery(t *testing.T) {
	for _, p := range []string{"01" + strings.Repeat("00", 31), "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a", "ec" + strings.Repeat("ff", 30) + "7f", strings.Repeat("00", 32)} {
		forged := make([]byte, 64)
		forged[0] = 1 // R the identity, S zero
		ok := false
		for i := range 500 {
			ok = ok || ed25519.Verify(unhex(t, p), []byte{byte(i), byte(i >> 8)}, forged)
		}
		if !ok {
			t.Errorf("%s: no forgery, so it has no small order", p)
		}
	}
}

func TestGatewayNames(t *testing.T) {
	for _, tt := range []struct{ wire, name string }{
		{"00", "."},
		{"07 4578616d706c65 00", "example."},
		{"03 612e62 00", `a\.b.`},
		{"04 20ff5c3b 00", `\032\255\\\;.`},
	} {
		r, err := Parse(append([]byte{1, 3, 0}, unhex(t, tt.wire)...))
		if err != nil || r.GatewayName != tt.name {
			t.Errorf("%s: got %q, %v; want %q", tt.wire, r.GatewayName, err, tt.name)
			continue
		}
		b, err := r.Marshal()
		if want := bytes.Replace(unhex(t, tt.wire), []byte("Example"), []byte("example"), 1); err != nil || !bytes.Equal(b[3:], want) {
			t.Errorf("%s: marshalled to %x (%v), want %x", tt.name, b[3:], err, want)
		}
	}
	for _, name := range []string{"", "a", "a..", "..", `a\`, `a\.`, `\256.`, `\12.`, strings.Repeat("a", 64) + ".", strings.Repeat("a.", 128)} {
		if b, err := (Record{GatewayType: GatewayName, GatewayName: name}).Marshal(); err == nil {
			t.Errorf("gateway %q marshalled to %x", name, b)
		}
	}
	for _, typ := range []GatewayType{GatewayIPv4, GatewayIPv6, 9} {
		if r := (Record{GatewayType: typ}); r.Generic() != "" {
			t.Errorf("gateway type %d without address: %s", typ, r.Generic())
		}
	}
}
