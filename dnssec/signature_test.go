package dnssec

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// The examples of RFC 8080, 6.1 and RFC 6605, 6.
func TestSignatureExamples(t *testing.T) {
	for _, tt := range []struct{ key, sig, data string }{
		{"example.com. 3600 IN DNSKEY 257 3 15 l02Woi0iS8Aa25FQkUd9RMzZHJpBoRQwAQEX1SxZJA4=",
			"example.com. 3600 IN RRSIG MX 15 2 3600 1440021600 1438207200 3613 example.com. oL9krJun7xfBOIWcGHi7mag5/hdZrKWw15jPGrHpjQeRAvTdszaPD+QLs3fx8A4M3e23mRZ9VrbpMngwcrqNAg==",
			"example.com. 3600 IN MX 10 mail.example.com."},
		{"example.net. 3600 IN DNSKEY 257 3 13 GojIhhXUN/u4v54ZQqGSnyhWJwaubCvTmeexv7bR6edbkrSqQpF64cYbcB7wNcP+e+MAnLr+Wi9xMWyQLc8NAA==",
			"www.example.net. 3600 IN RRSIG A 13 3 3600 20100909100439 20100812100439 55648 example.net. qx6wLYqmh+l9oCKTN6qIc+bw6ya+KJ8oMz0YP107epXAyGmt+3SNruPFKG7tZoLBLlUzGGus7ZwmwWep666VCw==",
			"www.example.net. 3600 IN A 192.0.2.1"},
		{"example.net. 3600 IN DNSKEY 257 3 14 xKYaNhWdGOfJ+nPrL8/arkwf2EY3MDJ+SErKivBVSum1w/egsXvSADtNJhyem5RCOpgQ6K8X1DRSEkrbYQ+OB+v8/uX45NBwY8rp65F6Glur8I/mlVNgF6W/qTI37m40",
			"www.example.net. 3600 IN RRSIG A 14 3 3600 20100909102025 20100812102025 10771 example.net. /L5hDKIvGDyI1fcARX3z65qrmPsVz73QD1Mr5CEqOiLP95hxQouuroGCeZOvzFaxsT8Glr74hbavRKayJNuydCuzWTSSPdz7wnqXL5bdcJzusdnI0RSMROxxwGipWcJm",
			"www.example.net. 3600 IN A 192.0.2.1"},
	} {
		key, sig := rr(tt.key).(*dns.DNSKEY), rr(tt.sig).(*dns.RRSIG)
		if err := arithmetic(sig, newZoneKey(key), &rrset{name: rr(tt.data).Header().Name, rrs: []dns.RR{rr(tt.data)}}); err != nil {
			t.Errorf("algorithm %d: %v", key.Algorithm, err)
		}
		raw, err := base64.StdEncoding.DecodeString(sig.Signature)
		if err != nil {
			t.Fatal(err)
		}
		for i := range raw { // no octet may differ, and none may be missing
			bad := slices.Clone(raw)
			bad[i] ^= 1
			for _, b := range [][]byte{bad, raw[:i]} {
				sig.Signature = base64.StdEncoding.EncodeToString(b)
				if arithmetic(sig, newZoneKey(key), &rrset{name: rr(tt.data).Header().Name, rrs: []dns.RR{rr(tt.data)}}) == nil {
					t.Fatalf("algorithm %d: a signature with octet %d wrong or missing", key.Algorithm, i)
				}
			}
		}
	}
}

// largeExponent is an RSA key whose exponent is 2^32+1, and a signature by it: crypto/rsa makes and takes none.
func largeExponent(t *testing.T, data []byte) (key, sig []byte) {
	e := big.NewInt(1<<32 + 1)
	for {
		p, err := rand.Prime(rand.Reader, 768)
		if err != nil {
			t.Fatal(err)
		}
		q, err := rand.Prime(rand.Reader, 768)
		if err != nil {
			t.Fatal(err)
		}
		one := big.NewInt(1)
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		d := new(big.Int).ModInverse(e, phi)
		m := new(big.Int).Mul(p, q)
		if d == nil || m.BitLen() != 1536 {
			continue
		}
		h := sha256.Sum256(data)
		em := slices.Concat([]byte{0, 1}, slices.Repeat([]byte{0xff}, 192-3-19-32), []byte{0}, derPrefix[crypto.SHA256], h[:])
		s := new(big.Int).Exp(new(big.Int).SetBytes(em), d, m)
		return slices.Concat([]byte{5}, e.Bytes(), m.Bytes()), s.FillBytes(make([]byte, 192))
	}
}

// holdsRSA checks a signature with a key as it stands on the wire.
func holdsRSA(key, data, sig []byte) error {
	k, err := parseRSA(base64.StdEncoding.EncodeToString(key))
	if err != nil {
		return err
	}
	return k.verify(crypto.SHA256, data, sig)
}

// The keys of RSA that are refused, and the exponents that crypto/rsa does not know.
func TestRSAKeys(t *testing.T) {
	data := []byte("data")
	key, sig := largeExponent(t, data)
	if err := holdsRSA(key, data, sig); err != nil {
		t.Errorf("exponent 2^32+1: %v", err)
	}
	for i := range sig {
		bad := slices.Clone(sig)
		bad[i] ^= 1
		if holdsRSA(key, data, bad) == nil || holdsRSA(key, data, sig[:i]) == nil {
			t.Fatalf("a signature with octet %d wrong or missing", i)
		}
	}
	long := slices.Concat([]byte{0, 0, 5}, key[1:])
	if err := holdsRSA(long, data, sig); err != nil {
		t.Errorf("the length of the exponent in two octets: %v", err)
	}
	for name, k := range map[string][]byte{
		"nothing": nil, "no exponent": {0, 0, 0, 1, 1}, "no modulus": key[:6], "a zero before the exponent": slices.Concat([]byte{6, 0}, key[1:]),
		"a zero before the modulus": slices.Concat(key[:6], []byte{0}, key[6:]), "an exponent of 9 octets": slices.Concat([]byte{9}, slices.Repeat([]byte{1}, 9), key[6:]),
		"4104 bits":       slices.Concat(key[:6], slices.Repeat([]byte{0x81}, 513)),
		"an even modulus": slices.Concat(key[:len(key)-1], []byte{2}), "an even exponent": slices.Concat([]byte{1, 2}, key[6:]), "exponent 1": slices.Concat([]byte{1, 1}, key[6:]),
	} {
		if holdsRSA(k, data, sig) == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// What the library underneath does otherwise than a validator must (each was seen): a name for each trap.
func TestLibraryTraps(t *testing.T) {
	z := newZone(t, "test.", nsec, dns.ED25519, "")
	root := newZone(t, ".", nsec, dns.ED25519, "")
	known := func(z *testZone) *zone {
		return &zone{name: z.name, verdict: verdict{status: Secure, until: testNow.Add(time.Hour)}, keys: []zoneKey{newZoneKey(z.key)}}
	}
	sign := func(z *testZone, lines ...string) *rrset {
		set := &rrset{name: rr(lines[0]).Header().Name, rrtype: rr(lines[0]).Header().Rrtype}
		for _, line := range lines {
			set.rrs = append(set.rrs, rr(line))
		}
		set.sigs = []*dns.RRSIG{z.sign(set.rrs)}
		return set
	}
	c := rollChecker(testNow)
	for _, tt := range []struct {
		name string
		set  func() (*rrset, *zone)
		want Status
	}{
		{"good", func() (*rrset, *zone) { return sign(z, "a.test. 60 IN A 192.0.2.1"), known(z) }, Secure},
		{"the signer is a suffix of letters only", func() (*rrset, *zone) {
			return sign(z, "www.nottest. 60 IN A 192.0.2.1"), known(z)
		}, Bogus},
		{"time is ignored", func() (*rrset, *zone) {
			old := *z
			old.from, old.to = testNow.Add(-2*time.Hour), testNow.Add(-time.Hour)
			return sign(&old, "a.test. 60 IN A 192.0.2.1"), known(z)
		}, Bogus},
		{"labels are ignored", func() (*rrset, *zone) {
			s := sign(z, "a.test. 60 IN A 192.0.2.1")
			s.sigs[0].Labels = 3
			return s, known(z)
		}, Bogus},
		{"the owner's spelling", func() (*rrset, *zone) {
			s := sign(z, "a.test. 60 IN A 192.0.2.1", "a.test. 60 IN A 192.0.2.2")
			s.rrs[1].Header().Name = "A.tEST."
			return s, known(z)
		}, Secure},
		{"a name in the RDATA, spelled otherwise", func() (*rrset, *zone) {
			s := sign(z, "a.test. 60 IN MX 10 mail.test.")
			s.rrs[0].(*dns.MX).Mx = "MAIL.test."
			return s, known(z)
		}, Secure},
		{"the next name of NSEC keeps its spelling (RFC 6840, 5.1)", func() (*rrset, *zone) {
			s := sign(z, "a.test. 60 IN NSEC b.test. A")
			s.rrs[0].(*dns.NSEC).NextDomain = "B.test."
			return s, known(z)
		}, Bogus},
		{"a record twice (RFC 2181, 5)", func() (*rrset, *zone) {
			s := sign(z, "a.test. 60 IN A 192.0.2.1", "a.test. 60 IN A 192.0.2.2")
			s.rrs = append(s.rrs, s.rrs[0])
			return s, known(z)
		}, Secure},
		{"a wildcard of the root", func() (*rrset, *zone) {
			s := sign(root, "a. 60 IN A 192.0.2.1")
			sig := s.sigs[0]
			sig.Labels = 0
			data, err := signedData(sig, s)
			if err != nil || !strings.Contains(string(data), "\x01*\x00\x00\x01\x00\x01") {
				t.Fatalf("signed data %x, %v", data, err)
			}
			made, err := root.priv.Sign(rand.Reader, data, crypto.Hash(0))
			if err != nil {
				t.Fatal(err)
			}
			sig.Signature = base64.StdEncoding.EncodeToString(made)
			return s, known(root)
		}, Secure},
		{"a revoked key signs", func() (*rrset, *zone) {
			r := revokedKey(z)
			set := &rrset{name: "test.", rrtype: dns.TypeDNSKEY, rrs: []dns.RR{r.key}}
			k := known(z)
			k.keys = usableKeys(set)
			return sign(r, "a.test. 60 IN A 192.0.2.1"), k
		}, Bogus},
	} {
		set, by := tt.set()
		if got := c.verify(set, by); got.status != tt.want {
			t.Errorf("%s: got %v (%s), want %v", tt.name, got.status, got.why, tt.want)
		}
	}
	n := rr("0p9mhaveqvm6t7vbl5lop2u3t2rp3tom.test. 60 IN NSEC3 1 0 0 - 2t7b4g4vsa5smi47k61mv5bv1a22bojr A").(*dns.NSEC3)
	h, ok := newHashed(n, "test.")
	if !ok {
		t.Fatal("no NSEC3")
	}
	d := &denials{zone: "test.", nsec3s: []*hashed{h}}
	h.owner = dns.HashName("a.test.", dns.SHA1, 0, "")
	if _, covered := c.cover("a.test.", d); covered {
		t.Error("a NSEC3 covers the name that it matches")
	}
	if _, matched := c.match("a.test.", d); !matched {
		t.Error("a NSEC3 does not match its name")
	}
}
