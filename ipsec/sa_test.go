package ipsec

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func gcm() SA {
	return SA{SPI: 256, Cipher: AESGCM16, Key: make([]byte, 16), Salt: make([]byte, 4)}
}

func cbc() SA {
	return SA{SPI: 256, Cipher: AESCBC, Key: make([]byte, 24), Integrity: HMACSHA384, AuthKey: make([]byte, 48)}
}

func TestCheck(t *testing.T) {
	for name, tt := range map[string]struct {
		sa     SA
		change func(*SA)
		ok     bool
	}{
		"AES-GCM-128":           {gcm(), func(*SA) {}, true},
		"AES-GCM-256":           {gcm(), func(sa *SA) { sa.Key = make([]byte, 32) }, true},
		"ChaCha20":              {gcm(), func(sa *SA) { sa.Cipher, sa.Key = ChaCha20Poly1305, make([]byte, 32) }, true},
		"AES-CBC-192":           {cbc(), func(*SA) {}, true},
		"AES-CBC-128":           {cbc(), func(sa *SA) { sa.Key = make([]byte, 16) }, true},
		"AES-CBC-256, SHA-512":  {cbc(), func(sa *SA) { sa.Key, sa.Integrity, sa.AuthKey = make([]byte, 32), HMACSHA512, make([]byte, 64) }, true},
		"AES-CBC, SHA-256":      {cbc(), func(sa *SA) { sa.Integrity, sa.AuthKey = HMACSHA256, make([]byte, 32) }, true},
		"SPI zero":              {gcm(), func(sa *SA) { sa.SPI = 0 }, false},
		"SPI reserved":          {cbc(), func(sa *SA) { sa.SPI = 255 }, false},
		"no salt":               {gcm(), func(sa *SA) { sa.Salt = nil }, false},
		"salt of 5":             {gcm(), func(sa *SA) { sa.Salt = make([]byte, 5) }, false},
		"no key":                {gcm(), func(sa *SA) { sa.Key = nil }, false},
		"AES-GCM-192":           {gcm(), func(sa *SA) { sa.Key = make([]byte, 24) }, false},
		"ChaCha20 with 16":      {gcm(), func(sa *SA) { sa.Cipher = ChaCha20Poly1305 }, false},
		"cipher of the zero":    {gcm(), func(sa *SA) { sa.Cipher = 0 }, false},
		"NULL encryption":       {cbc(), func(sa *SA) { sa.Cipher, sa.Key = 11, nil }, false},
		"integrity twice":       {gcm(), func(sa *SA) { sa.Integrity, sa.AuthKey = HMACSHA256, make([]byte, 32) }, false},
		"key of no integrity":   {gcm(), func(sa *SA) { sa.AuthKey = make([]byte, 32) }, false},
		"AES-CBC alone":         {cbc(), func(sa *SA) { sa.Integrity, sa.AuthKey = NoIntegrity, nil }, false},
		"AES-CBC, SHA-1":        {cbc(), func(sa *SA) { sa.Integrity, sa.AuthKey = 2, make([]byte, 20) }, false},
		"AES-CBC, unknown MAC":  {cbc(), func(sa *SA) { sa.Integrity, sa.AuthKey = 99, nil }, false},
		"AES-CBC with a salt":   {cbc(), func(sa *SA) { sa.Salt = make([]byte, 4) }, false},
		"AES-CBC with 20":       {cbc(), func(sa *SA) { sa.Key = make([]byte, 20) }, false},
		"SHA-384 with 32":       {cbc(), func(sa *SA) { sa.AuthKey = make([]byte, 32) }, false},
		"SHA-384 without a key": {cbc(), func(sa *SA) { sa.AuthKey = nil }, false},
	} {
		tt.change(&tt.sa)
		if err := tt.sa.Check(); (err == nil) != tt.ok {
			t.Errorf("%s: %v, want ok %v", name, err, tt.ok)
		}
	}
}

func TestNames(t *testing.T) {
	for got, want := range map[fmt.Stringer]string{
		AESCBC: "aes-cbc", Cipher(11): "cipher-11", NoIntegrity: "none", Integrity(2): "integrity-2",
		HMACSHA256: "hmac-sha2-256-128", HMACSHA384: "hmac-sha2-384-192", HMACSHA512: "hmac-sha2-512-256",
	} {
		if got.String() != want {
			t.Errorf("got %v, want %s", got, want)
		}
	}
}

// secrets finds every Secret in a value that is not empty.
func secrets(v reflect.Value) (n int) {
	switch {
	case v.Type() == reflect.TypeFor[Secret]():
		return min(v.Len(), 1)
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			n += secrets(v.Field(i))
		}
	}
	return n
}

// Whatever secrets an SA has or will have: they print as ***, and WithoutKeys leaves none.
func TestSecretsStaySecret(t *testing.T) {
	var p Pair
	fill := func(sa *SA) {
		for v, i := reflect.ValueOf(sa).Elem(), 0; i < v.NumField(); i++ {
			if v.Field(i).Type() == reflect.TypeFor[Secret]() {
				v.Field(i).Set(reflect.ValueOf(Secret("\x07\x07\x07")))
			}
		}
	}
	fill(&p.In)
	fill(&p.Out)
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(p), fmt.Sprintf("%+v %#v", p, p), string(text)} {
		if strings.Contains(s, "7 7 7") || strings.Contains(s, "0x7, 0x7") || strings.Contains(s, "BwcH") || strings.Count(s, "***") < 6 {
			t.Errorf("a key shows: %s", s)
		}
	}
	if n := secrets(reflect.ValueOf(p)); n != 6 {
		t.Errorf("%d secrets, want 6", n)
	}
	if n := secrets(reflect.ValueOf(p.WithoutKeys())); n != 0 {
		t.Errorf("%d secrets without keys", n)
	}
	if secrets(reflect.ValueOf(p)) != 6 {
		t.Error("WithoutKeys took the keys of the original")
	}
}
