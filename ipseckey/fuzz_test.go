package ipseckey

import (
	"bytes"
	"testing"
)

func FuzzParse(f *testing.F) {
	for _, s := range []string{"10 0 4 . 3WTXgUvpn1RlCXnm80gGY2LZ/ErUUEZtZ33IDi8yfhM=", "10 1 2 192.0.2.38 AQNRU3mG7TVTO2BkR47usntb102uFJtugbo6BSGvgqt4AQ==",
		"1 3 0 a.example.", "1 2 0 2001:db8::1"} {
		f.Add(rdataOf(f, s))
	}
	f.Add(append([]byte{10, 0, 2}, rsaKey([]byte{1, 0, 1}, modulus(2048, 1))...))
	f.Add(append([]byte{10, 0, 3}, bytes.Repeat([]byte{7}, 96)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Parse(b)
		if err != nil {
			return
		}
		if (r.Key == nil) == (r.Unusable == "") {
			t.Errorf("key %v and unusable %q", r.Key, r.Unusable)
		}
		out, err := r.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		// The case of a gateway name is not kept, all else is.
		if len(out) != len(b) || r.GatewayType != GatewayName && !bytes.Equal(out, b) {
			t.Errorf("%x marshalled to %x", b, out)
		}
		if again, err := Parse(out); err != nil || again.String() != r.String() {
			t.Errorf("%v came back as %v, %v", r, again, err)
		}
		if r.Key != nil && Fingerprint(r.Key) == "" {
			t.Error("a key without a fingerprint")
		}
	})
}

func FuzzParseIdentity(f *testing.F) {
	for _, key := range testKeys(f) {
		text, err := MarshalIdentity(key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := ParseIdentity(text)
		if err != nil {
			return
		}
		if _, err := MarshalIdentity(key); err != nil {
			t.Error(err)
		}
	})
}
