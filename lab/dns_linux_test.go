package lab

import (
	"strings"
	"testing"
)

// TestDelvValidates lets BIND's validator judge the zones, in this process and in a process of their own.
func TestDelvValidates(t *testing.T) {
	needLab(t)
	Need(t, "delv") // Debian has it in bind9-dnsutils
	l, _, bob := newLab(t)
	ns, err := l.Host("ns", Prefixes("192.0.2.53/24")...)
	if err != nil {
		t.Fatal(err)
	}
	d := newNames(t)
	stop, err := ns.ServeDNS(d, "192.0.2.53:53")
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if _, err := ns.StartDNS(t.Context(), d, false, "192.0.2.53:5353"); err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(d.TrustAnchor())
	anchor := `trust-anchors { "." static-key 257 3 ` + f[6] + ` "` + f[7] + `"; };`
	if err := bob.SetFile("/etc/hosts", anchor); err != nil { // any file of bob's own will do
		t.Fatal(err)
	}
	tests := []struct{ name, kind, want string }{
		{"bob.example", "A", "; fully validated"},
		{"bob.example", "IPSECKEY", "; fully validated"},
		{"bob.example", "TXT", "; negative response, fully validated"},
		{"no.example", "A", "; negative response, fully validated"},
		{"x.wild.example", "A", "; fully validated"},
		{"x.wild.example", "TXT", "; negative response, fully validated"},
		{"www.example", "AAAA", "; fully validated"},
		{"deep.sub.example", "A", "; fully validated"},
		{"c.example", "A", "; negative response, fully validated"},
		{"host.plain", "A", "; unsigned answer"},
		{"host.plain", "IPSECKEY", "; negative response, unsigned answer"},
	}
	for _, port := range []string{"53", "5353"} {
		for _, tt := range tests {
			out, err := bob.Command(t.Context(), "delv", "@192.0.2.53", "-p", port, "-a", "/etc/hosts", "+root=.", tt.name, tt.kind).Output()
			if first, _, _ := strings.Cut(string(out), "\n"); first != tt.want {
				t.Errorf("%s %s, port %s: got %q (%v), want %q", tt.name, tt.kind, port, first, err, tt.want)
			}
		}
	}
}
