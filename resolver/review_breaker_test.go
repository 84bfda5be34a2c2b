package resolver

import (
	"fmt"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// I3, A-32: names of somebody else's, which lead to a host and whose own keys never come, do not use up the patience for the keys of
// the host's zone.
func TestBreakerBlamesTheZoneThatStalls(t *testing.T) {
	z, w := newZone(), &watcher{}
	const sig = "RRSIG A 15 2 300 20300101000000 20200101000000 1 bank.example. AAAA"
	z.add("www.bank.example.", dns.TypeA, dnssec.Secure, "www.bank.example. 300 IN A 192.0.2.1", "www.bank.example. 300 IN "+sig)
	z.add("www.bank.example.", dns.TypeIPSECKEY, dnssec.Secure, "www.bank.example. 300 IN "+key)
	z.slow("www.bank.example.", dns.TypeIPSECKEY, 100*time.Millisecond)
	var evil []string
	for i := range 2 * breakerTrips {
		n := fmt.Sprintf("n%d.evil.example.", i)
		evil = append(evil, n)
		z.add(n, dns.TypeA, dnssec.Secure, n+" 300 IN CNAME www.bank.example.", "www.bank.example. 300 IN A 192.0.2.1", "www.bank.example. 300 IN "+sig)
		z.slow(n, dns.TypeIPSECKEY, time.Hour)
	}
	s := testServer(t, z, w)
	for _, n := range evil {
		ask(t, s, newQuery(n, dns.TypeA, flags{edns: true}))
	}
	s.Flush()
	if got, want := outcomeOf(ask(t, s, newQuery("www.bank.example.", dns.TypeA, flags{edns: true}))), "NOERROR 192.0.2.1"; got != want {
		t.Errorf("got %q, want %q: the evil names have tripped the breaker of bank.example", got, want)
	}
}
