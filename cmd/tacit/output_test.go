package main

import (
	"net/netip"
	"strings"
	"testing"

	"tacit/control"
	"time"
)

// TestClean is A-53: what came from outside cannot move the cursor, break the line or fill the screen.
//
//tacit:attack A-53 nothing from outside moves the cursor, breaks the line or fills the screen
func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"bob.example":               "bob.example",
		`a "quoted" word`:           `a "quoted" word`,
		"\x1b[2Jbob":                `\x1b[2Jbob`,
		"two\nlines\r":              `two\nlines\r`,
		"b\u00fccher \u202e":        `b\u00fccher \u202e`,
		"\xff\x7f":                  `\xff\x7f`,
		strings.Repeat("a", 1000):   strings.Repeat("a", control.MaxText) + "...",
		strings.Repeat("\x00", 100): strings.Repeat(`\x00`, 75) + "...",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%.20q) is %q, want %q", in, got, want)
		}
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 59500 * time.Millisecond: "59s", 61 * time.Second: "1m1s", 3 * time.Hour: "3h0m", 49 * time.Hour: "2d1h",
	} {
		if got := age(d); got != want {
			t.Errorf("age(%v) is %s, want %s", d, got, want)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0", 999: "999", 1000: "1.0k", 12345: "12k", 999_499: "999k", 999_500: "1.0M", 1 << 63: "9.2E", 18_446_744_073_709_551_615: "18E",
	} {
		if got := size(n); got != want {
			t.Errorf("size(%d) is %s, want %s", n, got, want)
		}
	}
}

func TestWriteStatus(t *testing.T) {
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	s := control.Status{
		Version: "1.2", Since: now.Add(-time.Hour), Name: "alice.example",
		Dataplane: control.Dataplane{Kind: "tun", Why: "auto"},
		DNS: control.DNS{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")},
			Upstream: []string{"192.0.2.53:53"}, Validation: "own", Stub: "FAIL: a second nameserver",
			Ways: []control.Way{{Name: "192.0.2.53:53", Why: "TYPE45 does not pass: NOTIMP"}, {Name: "iteration from the root", OK: true}}},
		Peers: []control.Peer{
			{Address: netip.MustParseAddr("192.0.2.1"), Names: []string{"bob.example", "b", "c", "d"}, State: control.Protected,
				Assurance: control.Authenticated, Suite: "aes-gcm-16", Mode: "transport", Since: now.Add(-time.Minute), BytesIn: 12345, KeyID: "SHA256:AAAA"},
			{Address: netip.MustParseAddr("2001:db8::1"), State: control.Withheld, Assurance: control.NoAssurance, Since: now,
				Why: "no answer\x1b[31m"},
		},
	}
	const want = `  name       alice.example
  version    1.2, up 1h0m
  dataplane  tun: auto
  dns        127.0.0.1:53, upstream 192.0.2.53:53
  dnssec     validation: own
  stub       FAIL: a second nameserver
  dns way    192.0.2.53:53: TYPE45 does not pass: NOTIMP

  ADDRESS      NAMES                       STATE      ASSURANCE      SUITE       MODE       SINCE  IN   OUT  KEY          WHY
  192.0.2.1    bob.example b c and 1 more  protected  authenticated  aes-gcm-16  transport  1m0s   12k  0    SHA256:AAAA
  2001:db8::1  -                           withheld   none           -           -          0s     0    0    -            no answer\x1b[31m
`
	var b strings.Builder
	if err := writeStatus(&b, s, now); err != nil || b.String() != want {
		t.Errorf("%v\ngot\n%s\nwant\n%s", err, &b, want)
	}
	b.Reset()
	if err := writeStatus(&b, control.Status{}, now); err != nil || !strings.Contains(b.String(), "(anonymous)") || !strings.Contains(b.String(), "no peers") {
		t.Errorf("%v\n%s", err, &b)
	}
}
