package resolver

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

func TestFoundIsWhole(t *testing.T) {
	z, w := newZone(), &watcher{}
	z.add("bob.example.", 1, dnssec.Secure, a1, a2)
	z.add("bob.example.", dns.TypeIPSECKEY, dnssec.Secure, "bob.example. 20 IN "+key)
	until := time.Now().Add(20 * time.Second)
	k := answer("bob.example.", dns.TypeIPSECKEY, dnssec.Secure, "bob.example. 20 IN "+key)
	k.Until = until
	z.m[question{"bob.example.", dns.TypeIPSECKEY}] = func(context.Context) (dnssec.Answer, error) { return k, nil }
	s := testServer(t, z, w)
	ask(t, s, newQuery("BOB.example.", 1, flags{}))
	f := w.last(t)
	if f.Asked != "bob.example." || f.Owner != "bob.example." || f.AddrStatus != dnssec.Secure || f.KeyStatus != dnssec.Secure || f.Denied {
		t.Errorf("got %+v", f)
	}
	if want := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}; !slices.Equal(f.Addrs, want) {
		t.Errorf("addresses %v, want %v", f.Addrs, want)
	}
	if len(f.Keys) != 1 || f.Keys[0].Precedence != 10 || len(f.Keys[0].RawKey) == 0 {
		t.Errorf("keys %+v, want the one published", f.Keys)
	}
	if !f.Until.Equal(until) {
		t.Errorf("until %v, want the key's end %v", f.Until, until)
	}
	if f.AskedAt.IsZero() || f.AddrAt.Before(f.AskedAt) || f.KeyAt.Before(f.AddrAt) {
		t.Errorf("times %v %v %v are not in order", f.AskedAt, f.AddrAt, f.KeyAt)
	}
}

//
//
//tacit:attack A-46 hints are judged as addresses of TargetName are
func TestServiceHints(t *testing.T) {
	const (
		own   = "bob.example. 300 IN HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1 ipv6hint=2001:db8::1"
		other = "bob.example. 300 IN HTTPS 2 cdn.example. ipv4hint=198.51.100.7"
		bare  = "bob.example. 300 IN HTTPS 3 plain.example. alpn=h3"
		short = "1 . alpn=\"h2\" ipv4hint=\"192.0.2.1\" ipv6hint=\"2001:db8::1\""
	)
	for _, c := range []struct {
		what  string
		rrs   []string
		lame  []string
		f     flags
		want  string
		calls int
	}{
		{"kept", []string{own}, nil, flags{ad: true}, "NOERROR ad " + short, 1},
		{"one hint withheld, the other family's not", []string{own}, []string{"192.0.2.1"}, flags{edns: true}, "NOERROR ede=Prohibited", 1},
		{"all hints withheld", []string{own}, []string{"192.0.2.1", "2001:db8::1"}, flags{edns: true}, "SERVFAIL ede=Prohibited,Prohibited", 1},
		{"one record left out", []string{own, other}, []string{"198.51.100.7"}, flags{ad: true, edns: true}, "NOERROR " + short + " ede=Prohibited", 2},
		{"one record left out, DO", []string{own, other}, []string{"198.51.100.7"}, flags{do: true}, "SERVFAIL ede=Prohibited", 2},
		{"no hints", []string{bare}, nil, flags{}, "NOERROR 3 plain.example. alpn=\"h3\"", 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			z, w := newZone(), &watcher{lame: c.lame}
			z.add("bob.example.", dns.TypeHTTPS, dnssec.Secure, c.rrs...)
			for _, n := range []string{"bob.example.", "cdn.example."} {
				z.add(n, dns.TypeIPSECKEY, dnssec.Secure, n+" 300 IN "+key)
			}
			s := testServer(t, z, w)
			if got := outcomeOf(ask(t, s, newQuery("bob.example.", dns.TypeHTTPS, c.f))); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if w.calls() != c.calls {
				t.Errorf("watcher called %d times, want %d", w.calls(), c.calls)
			}
			for _, f := range w.found {
				if want := map[string]string{"192.0.2.1": "bob.example.", "198.51.100.7": "cdn.example."}[f.Addrs[0].String()]; f.Owner != want || !f.Hint {
					t.Errorf("found %+v, want owner %s", f, want)
				}
			}
		})
	}
}

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

// What stands at a name whose addresses nobody asks for, also behind an alias (RFC 2317).
func TestFindKey(t *testing.T) {
	const x, alias = "7.2.0.192.in-addr.arpa.", "7.0-63.2.0.192.in-addr.arpa."
	z, w := newZone(), &watcher{}
	z.add(x, dns.TypeIPSECKEY, dnssec.Secure, x+" 20 IN "+key)
	k := answer("8.2.0.192.in-addr.arpa.", dns.TypeIPSECKEY, dnssec.Secure, "8.2.0.192.in-addr.arpa. 60 IN CNAME "+alias, alias+" 60 IN "+key)
	k.Owner = alias
	z.m[question{"8.2.0.192.in-addr.arpa.", dns.TypeIPSECKEY}] = func(context.Context) (dnssec.Answer, error) { return k, nil }
	z.add("9.2.0.192.in-addr.arpa.", dns.TypeIPSECKEY, dnssec.Bogus)
	s := testServer(t, z, w)
	for _, c := range []struct {
		name, owner string
		keys        int
		status      dnssec.Status
	}{
		{"7.2.0.192.IN-ADDR.arpa", x, 1, dnssec.Secure},
		{"8.2.0.192.in-addr.arpa.", alias, 1, dnssec.Secure},
		{"9.2.0.192.in-addr.arpa.", "9.2.0.192.in-addr.arpa.", 0, dnssec.Bogus},
	} {
		f := s.FindKey(t.Context(), c.name)
		if f.Owner != c.owner || len(f.Keys) != c.keys || f.KeyStatus != c.status || f.AskedAt.IsZero() {
			t.Errorf("%s: got %+v", c.name, f)
		}
	}
	if w.calls() != 0 {
		t.Error("a Watcher was asked")
	}
}
