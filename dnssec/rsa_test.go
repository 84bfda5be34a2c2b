package dnssec

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/big"
	"slices"
	"testing"

	"github.com/c2sp/wycheproof"
	"github.com/miekg/dns"
)

// publicRSA is a key as it stands in a DNSKEY.
func publicRSA(e int, m []byte) string {
	exponent := big.NewInt(int64(e)).Bytes()
	return base64.StdEncoding.EncodeToString(slices.Concat([]byte{byte(len(exponent))}, exponent, m))
}

// What crypto/rsa signs verifies, whatever the size and the hash, and nothing else does.
func TestRSAAgainstCryptoRSA(t *testing.T) {
	data := []byte("data")
	for _, bits := range []int{1024, 1280, 2048, 2049, 4096} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		k, err := parseRSA(publicRSA(key.E, key.N.Bytes()))
		if err != nil {
			t.Fatalf("%d bits: %v", bits, err)
		}
		for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA512} {
			sum := h.New()
			sum.Write(data)
			digest := sum.Sum(nil)
			sig, err := rsa.SignPKCS1v15(nil, key, h, digest)
			if err != nil {
				t.Fatal(err)
			}
			other, err := rsa.SignPSS(rand.Reader, key, h, digest, &rsa.PSSOptions{SaltLength: 20})
			if err != nil {
				t.Fatal(err)
			}
			if err := k.verify(h, data, sig); err != nil {
				t.Errorf("%d bits, %v: %v", bits, h, err)
			}
			// The same number modulo m, and one octet longer where it does not fit.
			greater := new(big.Int).Add(new(big.Int).SetBytes(sig), key.N).Bytes()
			for name, bad := range map[string][]byte{"PSS": other, "not reduced": greater, "a zero before it": append([]byte{0}, sig...)} {
				if k.verify(h, data, bad) == nil {
					t.Errorf("%d bits, %v: %s: taken", bits, h, name)
				}
			}
			if k.verify(h, []byte("Data"), sig) == nil {
				t.Errorf("%d bits, %v: other data: taken", bits, h)
			}
		}
	}
}

// A key that has been broken proves nothing, whatever it signs: 512 bits are what a zone may still have (RFC 5702, 2.1).
func TestShortRSA(t *testing.T) {
	v := New(nil, nil)
	for bits, want := range map[int]bool{512: false, 1023: false, 1024: true} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		k := &dns.DNSKEY{Hdr: dns.RR_Header{Name: "test.", Rrtype: dns.TypeDNSKEY, Class: dns.ClassINET}, Flags: 256, Protocol: 3,
			Algorithm: dns.RSASHA256, PublicKey: publicRSA(key.E, key.N.Bytes())}
		z := &testZone{name: "test.", key: k, priv: key, from: testNow, to: testNow}
		set := &rrset{name: "test.", rrtype: dns.TypeA, rrs: []dns.RR{rr("test. 60 IN A 192.0.2.1")}}
		c := checker{now: testNow, rules: &v.rules, work: newBudget()}
		if got := c.check(z.sign(set.rrs), newZoneKey(k), set); got != want {
			t.Errorf("%d bits: taken %v, want %v", bits, got, want)
		}
	}
}

// Wycheproof's signatures: forged paddings, digests and numbers out of range among them.
func TestWycheproofRSA(t *testing.T) {
	for file, h := range map[string]crypto.Hash{
		"rsa_signature_2048_sha256_test.json": crypto.SHA256, "rsa_signature_2048_sha512_test.json": crypto.SHA512,
		"rsa_signature_3072_sha256_test.json": crypto.SHA256, "rsa_signature_4096_sha512_test.json": crypto.SHA512,
	} {
		raw, err := fs.ReadFile(wycheproof.TestVectors, file)
		if err != nil {
			t.Fatal(err)
		}
		var all struct {
			TestGroups []struct {
				PublicKey struct{ Modulus, PublicExponent string }
				Tests     []struct {
					TcID                      int
					Comment, Msg, Sig, Result string
				}
			}
		}
		if err := json.Unmarshal(raw, &all); err != nil {
			t.Fatal(err)
		}
		octets := func(s string) []byte {
			b, err := hex.DecodeString(s)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		ran := 0
		for _, g := range all.TestGroups {
			e, m := new(big.Int).SetBytes(octets(g.PublicKey.PublicExponent)), new(big.Int).SetBytes(octets(g.PublicKey.Modulus))
			k, err := parseRSA(publicRSA(int(e.Int64()), m.Bytes()))
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			for _, tt := range g.Tests {
				ran++
				good := k.verify(h, octets(tt.Msg), octets(tt.Sig)) == nil
				if tt.Result == "valid" && !good || tt.Result == "invalid" && good {
					t.Errorf("%s %d (%s): verified %v, want %s", file, tt.TcID, tt.Comment, good, tt.Result)
				}
			}
		}
		if ran < 100 {
			t.Errorf("%s: only %d tests ran", file, ran)
		}
	}
}

// BenchmarkRSA checks one signature by a key that is known, with ours and with crypto/rsa.
func BenchmarkRSA(b *testing.B) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	data, h := []byte("data"), crypto.SHA256.New()
	h.Write(data)
	digest := h.Sum(nil)
	sig, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest)
	if err != nil {
		b.Fatal(err)
	}
	k, err := parseRSA(publicRSA(key.E, key.N.Bytes()))
	if err != nil {
		b.Fatal(err)
	}
	for name, verify := range map[string]func() error{
		"tacit":      func() error { return k.verify(crypto.SHA256, data, sig) },
		"crypto-rsa": func() error { return rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, digest, sig) },
	} {
		b.Run(fmt.Sprint("2048/", name), func(b *testing.B) {
			for b.Loop() {
				if err := verify(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
