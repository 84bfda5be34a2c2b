package config

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"tacit/ipsec"
	"tacit/policy"
	"tacit/upstream"
)

var update = flag.Bool("update", false, "write the golden files")

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func servers(s ...string) (all []netip.AddrPort) {
	for _, a := range s {
		all = append(all, netip.MustParseAddrPort(a))
	}
	return all
}

const somePin = "pin-sha256=FHkyLhvI0n70E47cJlRTamTrnYVcsYdjUGbr79CfAVI="

func upstreams(s ...string) (all []upstream.Server) {
	for _, text := range s {
		u, err := upstream.ParseServer(text)
		if err != nil {
			panic(err)
		}
		all = append(all, u)
	}
	return all
}

func TestParseFull(t *testing.T) {
	got, err := Parse(mustRead(t, "testdata/full.toml"), "full.toml")
	if err != nil {
		t.Fatal(err)
	}
	first, second := policy.Default(), policy.Default()
	first.Names = []string{"*.example.", ".tree.example.", "host.example.", "*."}
	first.Prefixes = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.1/32"),
		netip.MustParsePrefix("2001:db8::/32")}
	first.Class, first.AcceptAnonymous, first.Line = policy.Clear, false, 29
	first.Packets, first.ClearPorts, first.ProtectDNS = true, []ipsec.Port{{Proto: 6, Number: 22}, {Proto: 17, Number: 123}}, true
	second.Line = 37
	third := policy.Default()
	third.Prefixes, third.Class, third.Anonymous, third.Line = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, policy.Private, true, 39
	want := &Config{
		Name: "alice.example", Identity: "/etc/tacit/key.pem", Identify: "all", Dataplane: "tun", Socket: "/run/t.sock", PostQuantum: "before",
		Linger: 90 * time.Second, IKELifetime: 90 * time.Minute, ChildLifetime: 2 * time.Second, MaxPeers: 4096,
		NATPool:      []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64"), netip.MustParsePrefix("198.51.100.0/25")},
		NATAddresses: []netip.Addr{netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("2001:db8::9")},
		DNS: DNS{
			Listen: servers("127.0.0.1:53", "[::1]:5353"),
			Upstream: upstreams("192.0.2.53", "2001:db8::53", "192.0.2.54:5300", "tls://dns.example:853",
				"tls://192.0.2.55:853#dns.example,"+somePin, "tls://[2001:db8::55]:8853#"+somePin),
			RootHints:        "/etc/tacit/named.root",
			TrustAnchors:     "/etc/tacit/root.key",
			InternalZones:    []string{"corp.example.", "lan."},
			TrustAnchorState: "/var/lib/tacit/root.state",
			NegativeAnchors:  []string{"internal."},
			TimeServers:      []string{"ntp.example.", "time.lan."},
			Hold:             500 * time.Millisecond,
			Manage:           "off",
			OnFailure:        "closed",
		},
		Policy: []policy.Rule{first, second, third, policy.Default()},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
}

func TestNATPool(t *testing.T) {
	for text, want := range map[string]string{
		`[]`: "[]", `["10.1.0.0/16"]`: "[10.1.0.0/16]", `["fd00::/64", "10.1.0.0/30"]`: "[fd00::/64 10.1.0.0/30]",
		`"10.0.0.0/8"`: "", `["10.1.0.1"]`: "", `["10.1.0.1/16"]`: "", `["10.1.0.0/31"]`: "", `["10.1.0.0/16", "10.2.0.0/16"]`: "", `["0.0.0.0/0"]`: "",
		`["127.0.0.0/8"]`: "", `["224.0.0.0/8"]`: "", `["fe80::/64"]`: "", `["::/0"]`: "", `["::ffff:10.0.0.0/104"]`: "", `[5]`: "",
	} {
		c, err := Parse([]byte("nat-pool = "+text+"\n"), "t.toml")
		if want == "" && err == nil || want != "" && (err != nil || fmt.Sprint(c.NATPool) != want) {
			t.Errorf("%s: %+v, %v", text, c, err)
		}
	}
}

func TestNATAddresses(t *testing.T) {
	for text, want := range map[string]string{
		`[]`: "[]", `["192.0.2.9"]`: "[192.0.2.9]", `["2001:db8::9", "10.0.0.1"]`: "[2001:db8::9 10.0.0.1]",
		`"192.0.2.9"`: "", `["192.0.2.0/24"]`: "", `["192.0.2.9", "192.0.2.8"]`: "", `["0.0.0.0"]`: "", `["127.0.0.1"]`: "", `["224.0.0.1"]`: "",
		`["fe80::1%eth0"]`: "", `["2001:db8::1%eth0"]`: "", `["::ffff:192.0.2.9"]`: "", `[5]`: "", `["nat.example"]`: "",
		"[\"192.0.2.9\"]\ndataplane = \"xfrm\"": "", "[\"192.0.2.9\"]\ndataplane = \"auto\"": "[192.0.2.9]",
	} {
		c, err := Parse([]byte("nat-addresses = "+text+"\n"), "t.toml")
		if want == "" && err == nil || want != "" && (err != nil || fmt.Sprint(c.NATAddresses) != want) {
			t.Errorf("%s: %+v, %v", text, c, err)
		}
	}
}

// An address of a NAT before us is no client's, whichever of the two lists comes first, and also where the pool is the built-in one.
func TestNATAddressInPool(t *testing.T) {
	for text, want := range map[string]string{
		"nat-pool = ['192.0.2.0/24']\nnat-addresses = ['2001:db8::9', '192.0.2.9']": "t.toml:2:33: nat-addresses: 192.0.2.9 is in 192.0.2.0/24 of nat-pool: a client behind a NAT would be assigned it",
		"nat-addresses = [\n'2001:db8::9']\nnat-pool = ['2001:db8::/64']":           "t.toml:2:1: nat-addresses: 2001:db8::9 is in 2001:db8::/64 of nat-pool: a client behind a NAT would be assigned it",
		"nat-addresses = ['198.19.0.1']":                                            "t.toml:1:18: nat-addresses: 198.19.0.1 is in 198.19.0.0/16 of nat-pool: a client behind a NAT would be assigned it",
		"nat-addresses = ['198.19.0.1']\nnat-pool = []":                             "",
		"nat-addresses = ['192.0.3.0']\nnat-pool = ['192.0.2.0/24']":                "",
	} {
		_, err := Parse([]byte(text), "t.toml")
		if want == "" && err != nil || want != "" && (err == nil || err.Error() != want) {
			t.Errorf("%s:\n%v, want\n%s", text, err, want)
		}
	}
}

func TestMaxPeers(t *testing.T) {
	for text, want := range map[string]int{"16": 16, "200_000": 200_000, "15": 0, "200001": 0, "0x7fffffffffff": 0, "-20": 0, "20.0": 0, "'20'": 0} {
		c, err := Parse([]byte("max-peers = "+text+"\n"), "t.toml")
		if want == 0 && err == nil || want > 0 && (err != nil || c.MaxPeers != want) {
			t.Errorf("%s: %+v, %v", text, c, err)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "t.toml:1:13: max-peers: want ") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// trust-ad is for a resolver on this host, and for nobody else.
func TestTrustAD(t *testing.T) {
	for _, tt := range []struct{ dns, want string }{
		{"upstream = ['127.0.0.1:5335', '[::1]:5335']", ""},
		{"", "t.toml:3:1: dns.trust-ad: want dns.upstream"},
		{"upstream = ['192.0.2.53']", "t.toml:3:1: dns.trust-ad: upstream 192.0.2.53:53 is not on this host's loopback"},
		{"upstream = ['127.0.0.1:5335', '192.0.2.53']", "t.toml:3:1: dns.trust-ad: upstream 192.0.2.53:53 is not"},
		{"upstream = ['tls://127.0.0.1#localhost']", "t.toml:3:1: dns.trust-ad: upstream tls://127.0.0.1:853#localhost is not"},
		{"upstream = ['127.0.0.1:5335']\ntrust-anchor-state = '/x'", "t.toml:3:1: dns.trust-ad: the resolver that is trusted follows its own anchors"},
	} {
		c, err := Parse([]byte("[dns]\nlisten = ['127.0.0.1:53']\ntrust-ad = true\n"+tt.dns+"\n"), "t.toml")
		if tt.want == "" && (err != nil || !c.DNS.TrustAD) || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)) {
			t.Errorf("%q: %v, want %q", tt.dns, err, tt.want)
		}
	}
	if _, err := Parse([]byte("dns.trust-ad = 'yes'\n"), "t.toml"); err == nil || !strings.Contains(err.Error(), "want true or false") {
		t.Errorf("a string: %v", err)
	}
}

func TestParseEmpty(t *testing.T) {
	got, err := Parse(nil, "empty.toml")
	if err != nil || !reflect.DeepEqual(got, Default()) {
		t.Errorf("got %+v, %v, want the defaults", got, err)
	}
}

// Tables may be written inline: TOML says that it means the same.
func TestParseInline(t *testing.T) {
	got, err := Parse([]byte("dns = { hold = '1s' }\npolicy = [ { match = ['a.example'], class = 'clear' }, {} ]\n"), "inline.toml")
	if err != nil {
		t.Fatal(err)
	}
	if got.DNS.Hold != time.Second || len(got.Policy) != 3 || got.Policy[0].Names[0] != "a.example." || got.Policy[0].Class != policy.Clear {
		t.Errorf("got %+v", got)
	}
	if _, err = Parse([]byte("dns.hold = '3s'\n"), "dotted.toml"); err != nil {
		t.Error(err)
	}
}

// TestErrors compares with testdata/*.golden; -update writes them.
func TestErrors(t *testing.T) {
	for _, name := range []string{"values", "rules", "keys", "dotted", "shapes", "tables", "twice", "syntax", "loop", "upstream"} {
		_, err := Parse(mustRead(t, filepath.Join("testdata", name+".toml")), name+".toml")
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		got, golden := err.Error()+"\n", filepath.Join("testdata", name+".golden")
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want := string(mustRead(t, golden)); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
		var e Error
		if !errors.As(err, &e) || e.Line == 0 || e.Column == 0 {
			t.Errorf("%s: no place: %#v", name, e)
		}
	}
}

// What this version does not do is refused, never ignored.
func TestLater(t *testing.T) {
	for _, text := range []string{
		"[publish]", "publish.x = 1",
		"[dns]\nmanage = \"auto\"",
	} {
		if _, err := Parse([]byte(text+"\n"), "f"); err == nil || !strings.HasSuffix(err.Error(), ": not in this version") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestTooMuch(t *testing.T) {
	if _, err := Parse([]byte(strings.Repeat("#", maxSize+1)), "f"); err == nil {
		t.Error("an oversize file is accepted")
	}
	_, err := Parse([]byte(strings.Repeat("[[policy]]\nx = 1\n", 1000)), "f")
	var all Errors
	if !errors.As(err, &all) || len(all) != maxErrors {
		t.Errorf("%d errors, want %d", len(all), maxErrors)
	}
	list := "dns.internal-zones = [" + strings.Repeat("'a',", maxList+1) + "]"
	if _, err := Parse([]byte(list), "f"); err == nil {
		t.Error("an endless list is accepted")
	}
}

func TestLoad(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tacit.toml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is named and missing: %v", err)
	}
	write(`name = "alice.example"`)
	if c, err := Load(file); err != nil || c.Name != "alice.example" || len(c.DNS.Upstream) != 0 {
		t.Errorf("%+v, %v", c, err)
	}
	write(strings.Repeat("#", maxSize+1))
	if _, err := Load(file); err == nil {
		t.Error("an oversize file is loaded")
	}
}

// A listener on another port or address is not the server that the host asks.
func TestUseNameservers(t *testing.T) {
	for _, tt := range []struct {
		listen, given, host string
		want                string
	}{
		{"127.0.0.1:53", "", "127.0.0.1", ""},
		{"127.0.0.1:5353", "", "127.0.0.1", "127.0.0.1:53"},
		{"127.0.0.1:53", "", "127.0.0.53", "127.0.0.53:53"},
		{"127.0.0.1:53", "", "0.0.0.0", ""},
		{"0.0.0.0:53", "", "127.0.0.1", ""},
		{"127.0.0.1:53", "", "224.0.0.251", ""},
		{"127.0.0.1:53", "", "127.0.0.1 192.0.2.1 192.0.2.1 fe80::1%lo", "192.0.2.1:53 [fe80::1%lo]:53"},
		{"127.0.0.1:53", "192.0.2.9:53", "192.0.2.1", "192.0.2.9:53"},
	} {
		c := Default()
		c.DNS.Listen, c.DNS.Upstream = servers(tt.listen), upstreams(strings.Fields(tt.given)...)
		var host []netip.Addr
		for _, a := range strings.Fields(tt.host) {
			host = append(host, netip.MustParseAddr(a))
		}
		c.UseNameservers(host)
		if want := upstreams(strings.Fields(tt.want)...); !reflect.DeepEqual(c.DNS.Upstream, want) {
			t.Errorf("listen %s, host %s: %v, want %v", tt.listen, tt.host, c.DNS.Upstream, want)
		}
	}
}

func TestHostName(t *testing.T) {
	for in, want := range map[string]string{
		"Alice.Example": "alice.example", "a.b.": "a.b", "alice": "", "": "", ".": "", "192.0.2.1": "", "a..b": "",
		"xn--bcher-kva.example": "xn--bcher-kva.example", "bücher.example": "", "a b.example": "",
		strings.Repeat("a", 64) + ".example": "", strings.Repeat("a.", 127) + "b": "",
	} {
		if got, err := HostName(in); got != want && err == nil || (err == nil) != (want != "") {
			t.Errorf("HostName(%q) is %q, %v", in, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.toml")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data, "f")
		if (c == nil) == (err == nil) {
			t.Fatalf("%v and %v", c, err)
		}
		if err != nil {
			if all := (Errors)(nil); !errors.As(err, &all) || len(all) == 0 || len(all) > maxErrors || all[0].Line < 1 || all[0].Column < 1 {
				t.Fatalf("no place: %v", err)
			}
			return
		}
		c.Table().ForName("www.example.")
		if c.Linger <= 0 || c.DNS.Hold <= 0 || len(c.DNS.Listen) == 0 || len(c.Policy) == 0 {
			t.Fatalf("accepted: %+v", c)
		}
	})
}
