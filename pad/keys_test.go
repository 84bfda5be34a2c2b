package pad

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"net/netip"
	"strings"
	"testing"

	"tacit/ipseckey"
)

// record is an IPSECKEY record with the n-th key.
func record(n, precedence byte) ipseckey.Record {
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = n
	pub := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	return ipseckey.Record{Precedence: precedence, Algorithm: ipseckey.AlgEdDSA, RawKey: pub, Key: pub}
}

func withGateway(r ipseckey.Record, kind ipseckey.GatewayType, addr string) ipseckey.Record {
	r.GatewayType = kind
	if kind == ipseckey.GatewayName {
		r.GatewayName = addr
	} else {
		r.GatewayAddr = netip.MustParseAddr(addr)
	}
	return r
}

// TestUsableKeys is R5 and A-07.
//
//tacit:attack A-07 a record with another's address, or a name, for a gateway is no key
func TestUsableKeys(t *testing.T) {
	weak := ipseckey.Record{Algorithm: ipseckey.AlgRSA, Unusable: "RSA modulus of 1024 bits"}
	six := "2001:db8::1"
	for _, tt := range []struct {
		why     string
		records []ipseckey.Record
		addr    string
		want    []byte // which keys, in order
		reason  string
	}{
		{"no gateway", []ipseckey.Record{record(1, 10)}, "192.0.2.1", []byte{1}, ""},
		{"the address itself", []ipseckey.Record{withGateway(record(1, 10), ipseckey.GatewayIPv4, "192.0.2.1")}, "192.0.2.1", []byte{1}, ""},
		{"the IPv6 address itself", []ipseckey.Record{withGateway(record(1, 10), ipseckey.GatewayIPv6, six)}, six, []byte{1}, ""},
		{"somebody else (A-07)", []ipseckey.Record{withGateway(record(1, 10), ipseckey.GatewayIPv4, "203.0.113.9")}, "192.0.2.1", nil, "203.0.113.9"},
		{"another family", []ipseckey.Record{withGateway(record(1, 10), ipseckey.GatewayIPv4, "192.0.2.1")}, six, nil, "192.0.2.1"},
		{"a name", []ipseckey.Record{withGateway(record(1, 10), ipseckey.GatewayName, "gw.example.")}, "192.0.2.1", nil, "name"},
		{"lower precedence first", []ipseckey.Record{record(1, 20), record(2, 10), record(3, 20)}, "192.0.2.1", []byte{2, 1, 3}, ""},
		{"each key once", []ipseckey.Record{record(1, 10), record(1, 20)}, "192.0.2.1", []byte{1}, ""},
		{"a weak one beside a good one", []ipseckey.Record{weak, record(1, 10)}, "192.0.2.1", []byte{1}, ""},
		{"weak ones only (A-26)", []ipseckey.Record{weak, weak}, "192.0.2.1", nil, "1024 bits"},
		{"nothing", nil, "192.0.2.1", nil, "no record"},
		{"a record without a key", []ipseckey.Record{{}}, "192.0.2.1", nil, "no key"},
	} {
		keys, why := UsableKeys(tt.records, netip.MustParseAddr(tt.addr))
		var got []byte
		for _, k := range keys {
			for n := byte(1); n < 9; n++ {
				if k.ID == KeyOf(record(n, 0).Key).ID {
					got = append(got, n)
				}
			}
		}
		if string(got) != string(tt.want) || (why == "") != (tt.reason == "") || !strings.Contains(why, tt.reason) {
			t.Errorf("%s: %v %q, want %v %q", tt.why, got, why, tt.want, tt.reason)
		}
	}
}

// a thousand records cost eight keys.
//
//tacit:attack A-31 a thousand records cost eight keys
func TestUsableKeysBound(t *testing.T) {
	var records []ipseckey.Record
	for n := range byte(250) {
		records = append(records, record(n, n))
	}
	keys, _ := UsableKeys(records, netip.MustParseAddr("192.0.2.1"))
	if len(keys) != MaxKeys || keys[0].ID != KeyOf(record(0, 0).Key).ID {
		t.Errorf("%d keys, want the first %d", len(keys), MaxKeys)
	}
	c := Claim{Keys: keys}
	if got := c.PublicKeys(); len(got) != MaxKeys {
		t.Errorf("%d public keys", len(got))
	}
}

// A key is compared by what it is, and without a fingerprint where it is in hand: this is asked for every peer every second.
func TestKeyIs(t *testing.T) {
	elliptic1, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	elliptic2, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	long, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	copied := elliptic1.PublicKey
	keys := []crypto.PublicKey{record(1, 0).Key, record(2, 0).Key, &elliptic1.PublicKey, &elliptic2.PublicKey, &long.PublicKey}
	for i, a := range keys {
		k := KeyOf(a)
		for j, b := range keys {
			if k.Is(b) != (i == j) || (Key{ID: k.ID}).Is(b) != (i == j) {
				t.Errorf("key %d is key %d: %v", i, j, k.Is(b))
			}
		}
		if n := testing.AllocsPerRun(10, func() { k.Is(a) }); n > 0 {
			t.Errorf("%T: %v allocations", a, n)
		}
		if k.Is(nil) {
			t.Errorf("%T is none", a)
		}
	}
	if !KeyOf(&elliptic1.PublicKey).Is(&copied) || !KeyOf(keys[0]).Is(record(1, 9).Key) {
		t.Error("a copy is another key")
	}
}
