package upstream

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"tacit/lab"
)

const pinText = "pin-sha256=FHkyLhvI0n70E47cJlRTamTrnYVcsYdjUGbr79CfAVI="

func TestParseServer(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.53": "192.0.2.53:53", "192.0.2.53:5300": "192.0.2.53:5300", "2001:db8::53": "[2001:db8::53]:53", "[2001:db8::53]:54": "[2001:db8::53]:54",
		"::ffff:192.0.2.1": "192.0.2.1:53", "fe80::1%eth0": "[fe80::1%eth0]:53",
		"tls://192.0.2.53": "tls://192.0.2.53:853", "tls://[2001:db8::53]:8853": "tls://[2001:db8::53]:8853", "tls://2001:db8::53#a.b": "tls://[2001:db8::53]:853#a.b",
		"tls://DNS.Example.": "tls://dns.example:853", "tls://dns.example:8853": "tls://dns.example:8853",
		"tls://192.0.2.53#dns.example": "tls://192.0.2.53:853#dns.example", "tls://192.0.2.53:1#" + pinText: "tls://192.0.2.53:1#" + pinText,
		"tls://192.0.2.53#" + pinText + ",dns.example": "tls://192.0.2.53:853#dns.example," + pinText, "tls://dns.example#" + pinText: "tls://dns.example:853#" + pinText,
		"tls://dns.example#dns.example": "tls://dns.example:853",
		// What is none.
		"": "", "dns.example": "", "192.0.2.53:0": "", "192.0.2.53:": "", "0.0.0.0": "", "ff02::1": "", "192.0.2.53#dns.example": "", "192.0.2": "",
		"tls://": "", "tls://#a.b": "", "tls://192.0.2.53#": "", "tls://192.0.2.53#a.b,": "", "tls://192.0.2.53#a_b": "", "tls://192.0.2.53#192.0.2.53": "",
		"tls://dns.example:0": "", "tls://dns.example:": "", "tls://a.example#b.example": "", "tls://192.0.2.53#a.b,c.d": "", "tls://1.2": "", "tls://a..b": "", "tls://A..": "",
		"tls://192.0.2.53#pin-sha256=": "", "tls://192.0.2.53#pin-sha256=AAAA": "", "tls://192.0.2.53#" + pinText + "," + pinText: "",
		"tls://192.0.2.53#" + strings.Replace(pinText, "VI=", "VJ=", 1): "", "https://192.0.2.53": "", "tls://0.0.0.0": "", "fe80::1%]:x": "",
	} {
		s, err := ParseServer(in)
		if (err == nil) != (want != "") || err == nil && s.String() != want {
			t.Errorf("ParseServer(%q) is %v, %v, want %q", in, s, err, want)
		}
	}
}

func FuzzParseServer(f *testing.F) {
	for _, s := range []string{"192.0.2.53:5300", "tls://dns.example:853#" + pinText, "tls://[2001:db8::53]:8853#a.b", "fe80::1%eth0", "tls://192.0.2.1#"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseServer(text)
		if err != nil {
			return
		}
		again, err := ParseServer(s.String())
		if err != nil || again.String() != s.String() || !slices.Equal(again.Pins, s.Pins) || again.Port == 0 {
			t.Errorf("%q is %v, and that is %v, %v", text, s, again, err)
		}
	})
}

const someHints = `; root hints
.                        3600000      NS    A.ROOT-SERVERS.TEST.
A.ROOT-SERVERS.TEST.     3600000      A     192.0.2.1
A.ROOT-SERVERS.TEST.     3600000      AAAA  2001:db8::1
.                        3600000      NS    b.root-servers.test.
b.root-servers.test.     3600000      A     192.0.2.2
.                        3600000      NS    nowhere.test.
other.test.              3600000      A     192.0.2.3
`

func TestParseHints(t *testing.T) {
	hints, err := ParseHints([]byte(someHints), "named.root")
	if err != nil || len(hints) != 2 || hints[0].Name != "a.root-servers.test." || len(hints[0].Addrs) != 2 || hints[1].Addrs[0].String() != "192.0.2.2" {
		t.Errorf("%+v, %v", hints, err)
	}
	for _, bad := range []string{"", ". NS a.test.\n", "a.test. A 192.0.2.1\n", "test. NS a.test.\na.test. A 192.0.2.1\n", ". NS a.test.\na.test. A 224.0.0.1\n", "nonsense\n",
		strings.Repeat("a.test. A 192.0.2.1\n", 1000) + ". NS a.test.\n"} {
		if hints, err := ParseHints([]byte(bad), "f"); err == nil {
			t.Errorf("%.40q: %+v", bad, hints)
		}
	}
}

// The servers that are built in are those of the file that Debian keeps.
func TestRootServers(t *testing.T) {
	text, err := os.ReadFile("/usr/share/dns/root.hints")
	if err != nil { // BIND needs the package, and scripts/test installs BIND
		lab.Missing(t, "no package dns-root-data:", err)
	}
	hints, err := ParseHints(text, "root.hints")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hints {
		if !slices.ContainsFunc(rootServers, func(r Hint) bool {
			return r.Name == h.Name && slices.Equal(slices.SortedFunc(slices.Values(r.Addrs), netip.Addr.Compare), slices.SortedFunc(slices.Values(h.Addrs), netip.Addr.Compare))
		}) {
			t.Errorf("%+v is not built in", h)
		}
	}
	if len(hints) != len(rootServers) {
		t.Errorf("%d servers, built in %d", len(hints), len(rootServers))
	}
}

func FuzzParseHints(f *testing.F) {
	f.Add([]byte(someHints))
	f.Add([]byte("$ORIGIN x.\n@ NS a\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		hints, err := ParseHints(data, "f")
		if (err == nil) != (len(hints) > 0) || len(hints) > maxHints {
			t.Errorf("%d servers, %v", len(hints), err)
		}
		for _, h := range hints {
			if len(h.Addrs) == 0 || h.Name == "" {
				t.Errorf("%+v", h)
			}
		}
	})
}
