package e2e

import (
	"strings"
	"testing"
)

// TestZonesValidate lets BIND's delv judge what NSD serves and unbound forwards, so that a failure elsewhere is not
// theirs.
func TestZonesValidate(t *testing.T) {
	needE2E(t, "nsd", "unbound", "dnssec-signzone", "ldns-signzone", "delv")
	w := newWorld(t)
	records := func(zone string) []string {
		return []string{
			"bob." + zone + " 60 IN A 192.0.2.2", "bob." + zone + " 60 IN AAAA 2001:db8::2",
			"bob." + zone + ` 60 IN TYPE45 \# 35 0a0004d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a`,
		}
	}
	dir, anchor := signZones(t,
		zoneFile{"example.", bindNSEC, records("example.")}, zoneFile{"three.", bindNSEC3, records("three.")},
		zoneFile{"ldns.", ldnsSigned, records("ldns.")}, zoneFile{"plain.", unsigned, records("plain.")})
	startNSD(t, w.ns, dir)
	startUnbound(t, w.up, w.ns.Addr4().String())
	f := strings.Fields(anchor)
	put(t, w.alice, "/run/delv.keys", `trust-anchors { "." static-key 257 3 `+f[6]+` "`+strings.Join(f[7:], "")+`"; };`)
	for _, tt := range []struct{ name, kind, want string }{
		{"bob.example", "A", "; fully validated"},
		{"bob.example", "IPSECKEY", "; fully validated"},
		{"bob.example", "TXT", "; negative response, fully validated"},
		{"no.three", "A", "; negative response, fully validated"},
		{"bob.three", "IPSECKEY", "; fully validated"},
		{"bob.ldns", "IPSECKEY", "; fully validated"},
		{"bob.ldns", "AAAA", "; fully validated"},
		{"no.ldns", "A", "; negative response, fully validated"},
		{"bob.plain", "A", "; unsigned answer"},
	} {
		for _, server := range []string{w.ns.Addr4().String(), w.up.Addr4().String()} {
			out := output(t, w.alice, "delv", "@"+server, "-a", "/run/delv.keys", "+root=.", tt.name, tt.kind)
			if first, _, _ := strings.Cut(out, "\n"); first != tt.want {
				t.Errorf("%s %s from %s: got %q, want %q", tt.name, tt.kind, server, first, tt.want)
			}
		}
	}
}
