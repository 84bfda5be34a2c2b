package dnssec

import (
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestRootAnchors(t *testing.T) {
	_, a := RootAnchors().closest("www.example.org.")
	if a == nil || len(a.ds) != 2 || a.ds[0].KeyTag != 20326 || a.ds[1].KeyTag != 38696 {
		t.Fatalf("got %+v", a)
	}
	for _, ds := range a.ds {
		if ds.Algorithm != dns.RSASHA256 || ds.DigestType != dns.SHA256 || len(ds.Digest) != 64 {
			t.Errorf("got %v", ds)
		}
	}
	// The key of 2017 as the root publishes it: its digest is the anchor's.
	key := rr(". IN DNSKEY 257 3 8 AwEAAaz/tAm8yTn4Mfeh5eyI96WSVexTBAvkMgJzkKTOiW1vkIbzxeF3+/4RgWOq7HrxRixHlFlExOLAJr5emLvN7SWXgnLh4+B5xQlNVz8Og8kv" +
		"ArMtNROxVQuCaSnIDdD5LKyWbRd2n9WGe2R8PzgCmr3EgVLrjyBxWezF0jLHwVN8efS3rCj/EWgvIWgb9tarpVUDK/b58Da+sqqls3eNbuv7pr+eoZG+SrDK6nWeL3c6H5Apxz7LjVc1uTId" +
		"sIXxuOLYA4/ilBmSVIzuDWfdRUfhHdY6+cn8HFRm+2hM8AnXGXws9555KrUB5qihylGa8subX2Nn6UwNR1AkUTV74bU=").(*dns.DNSKEY)
	if !rollChecker(testNow).vouched(newZoneKey(key), a.ds) {
		t.Errorf("key %d is not vouched for", key.KeyTag())
	}
}

func TestParseAnchors(t *testing.T) {
	const key = "l02Woi0iS8Aa25FQkUd9RMzZHJpBoRQwAQEX1SxZJA4="
	tests := []struct{ name, text, zones, err string }{
		{"DS", "test. IN DS 1 15 2 " + strings.Repeat("ab", 32), "test.", ""},
		{"DNSKEY over lines", "; made by hand\n\nTest. 3600 IN DNSKEY ( 257 3 15\n\t" + key + " ) ; end\n", "test.", ""},
		{"two zones, one without its dot", "test. IN DS 1 15 2 " + strings.Repeat("ab", 32) + "\n. IN DNSKEY 257 3 15 " + key + "\nexample IN DNSKEY 256 3 15 " + key, ". example. test.", ""},
		{"nothing", "", "", "f:1: no DS or DNSKEY"},
		{"comments only", "; one\n; two\n", "", "f:1: no DS or DNSKEY"},
		{"another type", "\ntest. IN A 192.0.2.1\n", "", "f:2: A is no trust anchor"},
		{"a directive", "$INCLUDE /etc/passwd\n", "", "f:1: $INCLUDE: a directive"},
		{"no owner", "test. IN DNSKEY 257 3 15 " + key + "\n  IN DNSKEY 257 3 15 " + key, "", "f:2: a record without its owner"},
		{"class CH", "test. CH DNSKEY 257 3 15 " + key, "", "f:1: class CH"},
		{"revoked", "test. IN DNSKEY 385 3 15 " + key, "", "of test. is revoked"},
		{"no zone key", "test. IN DNSKEY 1 3 15 " + key, "", "is no zone key"},
		{"protocol 4", "test. IN DNSKEY 257 4 15 " + key, "", "is no zone key"},
		{"an open parenthesis", "test. IN DNSKEY ( 257 3 15 " + key, "", "f:1: unbalanced"},
		{"a closing parenthesis", "\ntest. IN DNSKEY 257 3 15 " + key + " )", "", "f:2: unbalanced"},
		{"garbage", "test. IN DS 1 15 2 xyz\n", "", "f:1: "},
		{"a digest of the wrong length", "test. IN DS 1 15 2 abcd\n", "", "f:1: a digest of 2 octets"},
		{"no key", "test. IN DNSKEY 257 3 15\n", "", "f:1: no key"},
		{"a record without end", "test. IN DNSKEY (" + strings.Repeat("\n", 20000), "", "unbalanced"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, err := ParseAnchors([]byte(tt.text), "f")
			switch {
			case tt.err == "" && (err != nil || strings.Join(a.Zones(), " ") != tt.zones):
				t.Errorf("got %v, %v, want %s", a, err, tt.zones)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("got %v, want %q", err, tt.err)
			}
		})
	}
}

// The order of RFC 4034, 6.1, with its example.
func TestCanonicalOrder(t *testing.T) {
	want := []string{"example.", "a.example.", "yljkjljk.a.example.", "Z.a.example.", "zABC.a.EXAMPLE.", "z.example.", "\\001.z.example.", "*.z.example.", "\\200.z.example."}
	for i := range want {
		name, err := canonical(want[i])
		if err != nil {
			t.Fatal(err)
		}
		want[i] = name
	}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, compare)
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestCanonical(t *testing.T) {
	for _, tt := range []struct{ in, want string }{{"", "."}, {".", "."}, {"A.Example", "a.example."}, {`\065.b.`, "a.b."}, {`a\.b.c`, `a\.b.c.`}, {`\255.x.`, `\255.x.`}} {
		if got, err := canonical(tt.in); err != nil || got != tt.want {
			t.Errorf("%q: got %q, %v, want %q", tt.in, got, err, tt.want)
		}
	}
	if parent("a\\.b.c.") != "c." || parent("c.") != "." || parent(".") != "." || ancestor("a.b.c.", 1) != "c." || common("x.a.c.", "y.a.c.") != "a.c." || common("a.", "b.") != "." {
		t.Error("relations of names")
	}
	if got := above("a.b.c.", "c."); !slices.Equal(got, []string{"b.c.", "a.b.c."}) {
		t.Errorf("got %v", got)
	}
	if within("www.notexample.", "example.") || !within("www.example.", "example.") || below("example.", "example.") {
		t.Error("within")
	}
}
