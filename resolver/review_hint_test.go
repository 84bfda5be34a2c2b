package resolver

import (
	"testing"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// TRUST.md 1: the weakest link of the chain decides. A signed zone whose service record leads into an unsigned one is answered like a
// CNAME that does; for a Watcher the hints are no more than insecure.
func TestHintOfAnInsecureTarget(t *testing.T) {
	z, w := newZone(), &watcher{}
	z.add("bob.example.", dns.TypeHTTPS, dnssec.Secure, "bob.example. 300 IN HTTPS 1 cdn.net. ipv4hint=198.51.100.7")
	z.m[question{"cdn.net.", dns.TypeIPSECKEY}] = nil
	z.add("cdn.net.", dns.TypeIPSECKEY, dnssec.Insecure)
	s := testServer(t, z, w)
	ask(t, s, newQuery("bob.example.", dns.TypeHTTPS, flags{edns: true}))
	if f := w.last(t); f.AddrStatus != dnssec.Insecure {
		t.Errorf("hints of %s are %v with a key answer that is %v: the Watcher's table takes that for stripping", f.Owner, f.AddrStatus, f.KeyStatus)
	}
}
