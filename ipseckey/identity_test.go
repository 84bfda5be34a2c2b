package ipseckey

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
)

func TestIdentityOfEachKey(t *testing.T) {
	for name, key := range testKeys(t) {
		text, err := MarshalIdentity(key)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		back, err := ParseIdentity(append([]byte("a comment\n"), text...))
		if err != nil || !Equal(back.Public(), key.Public()) {
			t.Errorf("%s: got %v", name, err)
		}
		again, err := MarshalIdentity(back)
		if err != nil || !bytes.Equal(again, text) {
			t.Errorf("%s: written differently the second time (%v)", name, err)
		}
		// Every prefix that lacks part of the last line fails.
		for i := range len(bytes.TrimSpace(text)) {
			if _, err := ParseIdentity(text[:i]); err == nil {
				t.Fatalf("%s: the first %d of %d octets parse", name, i, len(text))
			}
		}
	}
}

func pkcs8(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})
}

func TestParseIdentityRefuses(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good, err := GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	ok := pkcs8(t, good)
	for _, tt := range []struct {
		name string
		text []byte
		want string
	}{
		{"nothing", nil, "no PEM"},
		{"no PEM", []byte("hello"), "no PEM"},
		{"another kind of PEM", []byte(strings.ReplaceAll(string(ok), "PRIVATE", "RSA PRIVATE")), "want \"PRIVATE KEY\""},
		{"two keys", append(append([]byte{}, ok...), ok...), "more than one"},
		{"no PKCS#8", pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: []byte{1, 2, 3}}), "identity: "},
		{"RSA of 1024 bits", pkcs8(t, weak), "1024 bits"},
		{"P-224", pkcs8(t, p224), "P-256 or P-384"},
		{"X25519", pkcs8(t, x), "cannot sign"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := ParseIdentity(tt.text); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
	if _, err := MarshalIdentity(weak); err == nil {
		t.Error("a weak key was written")
	}
}

func TestDeriveSecret(t *testing.T) {
	seen := map[string]string{}
	for _, who := range []string{"alice", "bob"} {
		key, err := GenerateIdentity()
		if err != nil {
			t.Fatal(err)
		}
		for _, purpose := range []string{"one", "two"} {
			first, err := DeriveSecret(key, purpose)
			again, _ := DeriveSecret(key, purpose)
			if err != nil || len(first) != 32 || string(first) != string(again) {
				t.Errorf("%s, %s: got %d octets, %v; the same again: %v", who, purpose, len(first), err, string(first) == string(again))
			}
			if other, taken := seen[string(first)]; taken {
				t.Errorf("%s, %s: the secret of %s", who, purpose, other)
			}
			seen[string(first)] = who + ", " + purpose
		}
	}
}
