package config

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

const onePin, otherPin = "SHA256:lHydhf7R7pjU5RwJzsWw35iC4jPAZ50TDlPDNxh6KO8", "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

func TestPeers(t *testing.T) {
	c, err := Parse([]byte(`[[peer]]
name = "VPN.example.com"
start = "now"
[[peer]]
name = "db.example.com."
address = "192.0.2.7"
pin = ["`+onePin+`", "`+otherPin+`"]
`), "f")
	want := []Peer{{Name: "vpn.example.com.", Start: "now", Line: 1},
		{Name: "db.example.com.", Address: netip.MustParseAddr("192.0.2.7"), Start: "on-demand", Pin: []string{onePin, otherPin}, Line: 4}}
	if err != nil || !reflect.DeepEqual(c.Peer, want) {
		t.Fatalf("got %+v, %v", c, err)
	}
	rules := c.Table()
	pins := func(asked, owner, addr string) []string {
		keys, pinned := rules.Pins(asked, owner, netip.MustParseAddr(addr))
		if pinned != (keys != nil) {
			t.Errorf("%s: %v, pinned %v", asked, keys, pinned)
		}
		return keys
	}
	if !rules.Endpoint("vpn.example.com") || rules.Endpoint("other.example.com") || len(pins("alias.", "db.example.com.", "192.0.2.8")) != 2 ||
		pins("vpn.example.com", "x.", "192.0.2.8") != nil || len(pins("vpn.example.com", "x.", "192.0.2.7")) != 2 {
		t.Error("the table does not know them")
	}
}

func TestBadPeers(t *testing.T) {
	for text, want := range map[string]string{
		"[[peer]]\nstart = \"now\"":    "f:1:3: peer.name: missing",
		"[peer]\nname = \"a.example\"": "f:1:2: peer: want [[peer]]",
		"peer = 1":                     "f:1:1: peer: want [[peer]]",
		"[[peer]]\nname = \"a\"":       "f:2:8: peer.name: \"a\" is not fully qualified",
		"[[peer]]\nname = \"a.b\"\n[[peer]]\nname = \"A.b.\"":                      "f:4:8: peer.name: \"A.b.\": another [[peer]] has this name",
		"[[peer]]\nname = \"a.b\"\naddress = \"192.0.2.1\"":                        "f:1:3: peer.address: nobody's word",
		"[[peer]]\nname = \"a.b\"\naddress = \"127.0.0.1\"":                        "f:3:11: peer.address: \"127.0.0.1\": want the address of one other host",
		"[[peer]]\nname = \"a.b\"\naddress = \"here\"":                             "f:3:11: peer.address: \"here\" is no address",
		"[[peer]]\nname = \"a.b\"\nstart = \"later\"":                              "f:3:9: peer.start: want now or on-demand",
		"[[peer]]\nname = \"a.b\"\npin = [\"MD5:x\"]":                              "f:3:8: peer.pin: \"MD5:x\" is no fingerprint",
		"[[peer]]\nname = \"a.b\"\npin = [\"SHA256:AAAA\"]":                        "f:3:8: peer.pin: \"SHA256:AAAA\" is no fingerprint",
		"[[peer]]\nname = \"a.b\"\npin = [\"" + onePin + "\", \"" + onePin + "\"]": "given twice",
		"[[peer]]\nname = \"a.b\"\npins = []":                                      "f:3:1: peer.pins: unknown key; did you mean peer.pin?",
	} {
		if _, err := Parse([]byte(text+"\n"), "f"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}
