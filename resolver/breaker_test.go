package resolver

import (
	"fmt"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// after three queries that waited in vain for keys of a zone, the next are withheld after a moment, until the zone answers.
// Its names that do answer are not affected.
//
//tacit:attack A-32 after three in vain a zone's names wait a moment only, until it answers
func TestBreakerOfAZone(t *testing.T) {
	z := newZone()
	const sig = " 60 IN RRSIG A 15 2 60 20300101000000 20200101000000 1 example. AAAA"
	for _, n := range []string{"a.example.", "b.example.", "c.example.", "d.example.", "e.example.", "f.example."} {
		z.add(n, 1, dnssec.Secure, n+" 60 IN A 192.0.2.1", n+sig)
		switch n {
		case "e.example.":
		case "f.example.":
			z.slow(n, dns.TypeIPSECKEY, 20*time.Millisecond)
		default:
			z.slow(n, dns.TypeIPSECKEY, time.Hour)
		}
	}
	bubble(t, z, &watcher{}, func(t *testing.T, s *Server) {
		took := func(n string) (time.Duration, string) {
			start := time.Now()
			r := ask(t, s, newQuery(n, 1, flags{}))
			return time.Since(start), outcomeOf(r)
		}
		for i, c := range []struct {
			name string
			took time.Duration
			want string
		}{
			{"a.example.", 2 * time.Second, "SERVFAIL"},
			{"b.example.", 2 * time.Second, "SERVFAIL"},
			{"c.example.", 2 * time.Second, "SERVFAIL"},
			{"d.example.", 200 * time.Millisecond, "SERVFAIL"},
			{"d.example.", 200 * time.Millisecond, "SERVFAIL"},
			{"f.example.", 20 * time.Millisecond, "NOERROR 192.0.2.1"},
		} {
			if d, got := took(c.name); d != c.took || got != c.want {
				t.Errorf("%d: %s took %v: %s, want %v: %s", i, c.name, d, got, c.took, c.want)
			}
		}
		if n := s.Stats().Tripped; n != 2 {
			t.Errorf("%d not waited for, want 2", n)
		}
		time.Sleep(5 * time.Second)
		if d, got := took("e.example."); d != 0 || got != "NOERROR 192.0.2.1" {
			t.Errorf("after the rest: took %v: %s", d, got)
		}
	})
}

// I3, A-32: names of somebody else's, which lead to a host and whose own keys never come, do not use up the patience for the keys of
// the host's zone.
func TestBreakerBlamesTheZoneThatStalls(t *testing.T) {
	z := newZone()
	const sig = "RRSIG A 15 2 300 20300101000000 20200101000000 1 bank.example. AAAA"
	z.add("www.bank.example.", dns.TypeA, dnssec.Secure, "www.bank.example. 300 IN A 192.0.2.1", "www.bank.example. 300 IN "+sig)
	z.add("www.bank.example.", dns.TypeIPSECKEY, dnssec.Secure, "www.bank.example. 300 IN "+key)
	z.slow("www.bank.example.", dns.TypeIPSECKEY, 500*time.Millisecond)
	var evil []string
	for i := range 2 * breakerTrips {
		n := fmt.Sprintf("n%d.evil.example.", i)
		evil = append(evil, n)
		z.add(n, dns.TypeA, dnssec.Secure, n+" 300 IN CNAME www.bank.example.", "www.bank.example. 300 IN A 192.0.2.1", "www.bank.example. 300 IN "+sig)
		z.slow(n, dns.TypeIPSECKEY, time.Hour)
	}
	bubble(t, z, &watcher{}, func(t *testing.T, s *Server) {
		for _, n := range evil {
			ask(t, s, newQuery(n, dns.TypeA, flags{edns: true}))
		}
		s.Flush()
		if got, want := outcomeOf(ask(t, s, newQuery("www.bank.example.", dns.TypeA, flags{edns: true}))), "NOERROR 192.0.2.1"; got != want {
			t.Errorf("got %q, want %q: the evil names have tripped the breaker of bank.example", got, want)
		}
	})
}
