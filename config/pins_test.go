package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestPins(t *testing.T) {
	p := Pins{}
	for _, add := range [][2]string{{"Bob.Example", onePin}, {"bob.example.", otherPin}, {"bob.example", onePin}, {"192.0.2.7", onePin}, {"::ffff:192.0.2.8", onePin},
		{"2001:DB8::7", otherPin}} {
		if err := p.Add(add[0], add[1]); err != nil {
			t.Fatal(err)
		}
	}
	want := Pins{"bob.example.": {onePin, otherPin}, "192.0.2.7": {onePin}, "192.0.2.8": {onePin}, "2001:db8::7": {otherPin}}
	if !reflect.DeepEqual(p, want) {
		t.Fatalf("got %v, want %v", p, want)
	}
	path := filepath.Join(t.TempDir(), "pins")
	if none, err := LoadPins(path); err != nil || len(none) != 0 {
		t.Errorf("without a file: %v, %v", none, err)
	}
	if err := os.WriteFile(path, p.Marshal(), 0o644); err != nil {
		t.Fatal(err)
	}
	if again, err := LoadPins(path); err != nil || !reflect.DeepEqual(again, want) {
		t.Errorf("read again: %v, %v", again, err)
	}
	for _, bad := range [][2]string{{"bob.example", "SHA256:AAAA"}, {"bob", onePin}, {"127.0.0.1", onePin}, {"ff02::1", onePin}, {"fe80::1%eth0", onePin}, {"a b.example", onePin}} {
		if err := p.Add(bad[0], bad[1]); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
	if err := p.Remove("bob.example", onePin); err != nil || !slices.Equal(p["bob.example."], []string{otherPin}) {
		t.Errorf("%v, %v", err, p)
	}
	if err := p.Remove("bob.example", onePin); err == nil {
		t.Error("removed twice")
	}
	if err := p.Remove("192.0.2.7", ""); err != nil || len(p) != 3 {
		t.Errorf("%v, %v", err, p)
	}
}

// A file that cannot be understood is no empty file: its pins are promises.
func TestBadPins(t *testing.T) {
	for text, want := range map[string]string{
		"bob.example\n": "1: want a name or an address, and a fingerprint",
		"# head\n\nbob.example " + onePin + " x\n":     "3: want",
		"bob.example SHA256:AAAA":                      "1: \"SHA256:AAAA\" is no fingerprint",
		"bob " + onePin:                                "1: \"bob\" is not fully qualified",
		strings.Repeat("x", 1<<17):                     "token too long",
		"bob.example " + strings.Repeat("A", 50) + "=": "1: ",
	} {
		if p, err := ParsePins([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: got %v, %v, want %s", text, p, err, want)
		}
	}
}

func FuzzParsePins(f *testing.F) {
	f.Add([]byte("bob.example " + onePin + "\n# x\n2001:db8::1 " + otherPin))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParsePins(text)
		if err != nil {
			return
		}
		if again, err := ParsePins(p.Marshal()); err != nil || !reflect.DeepEqual(again, p) {
			t.Errorf("%v became %v, %v", p, again, err)
		}
	})
}

// R3: the administrator's word about an address comes before a name's, and both must agree where he says both.
func TestPinsOfTheTable(t *testing.T) {
	c := Default()
	c.Peer = []Peer{{Name: "vpn.example.", Address: netip.MustParseAddr("192.0.2.7"), Pin: []string{onePin}}}
	c.Pins = Pins{"192.0.2.7": {otherPin}, "bob.example.": {otherPin}, "192.0.2.9": {onePin}}
	rules := c.Table()
	for _, tt := range []struct {
		asked, owner, addr string
		want               []string
		pinned             bool
	}{
		{"vpn.example.", "vpn.example.", "192.0.2.7", []string{onePin}, true},
		{"vpn.example.", "vpn.example.", "192.0.2.8", []string{onePin}, true},
		{"any.example.", "any.example.", "192.0.2.7", []string{otherPin, onePin}, true},
		{"www.example.", "BOB.example.", "192.0.2.8", []string{otherPin}, true},
		{"bob.example.", "bob.example.", "192.0.2.9", []string{}, true},
		{"any.example.", "any.example.", "192.0.2.1", nil, false},
	} {
		got, pinned := rules.Pins(tt.asked, tt.owner, netip.MustParseAddr(tt.addr))
		if !slices.Equal(got, tt.want) || pinned != tt.pinned {
			t.Errorf("%s at %s: got %v, %v, want %v, %v", tt.asked, tt.addr, got, pinned, tt.want, tt.pinned)
		}
	}
	if !slices.Equal(c.Peer[0].Pin, []string{onePin}) || !rules.Endpoint("bob.example") {
		t.Error("the table has changed what it was made of, or does not know a peer")
	}
}
