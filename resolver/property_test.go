package resolver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// I6: an answer differs from the upstream's by capped TTLs and by what is left out; AD is ours. And no address that the Watcher
// withholds is ever in an answer.
func TestAnswersAreSubsets(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 2000 {
		z, typ := newZone(), []uint16{1, 28, dns.TypeHTTPS, 16, dns.TypeMX}[rnd.IntN(5)]
		a := randomAnswer(rnd, typ)
		z.m[question{a.Name, typ}] = func(context.Context) (dnssec.Answer, error) { return a, nil }
		if rnd.IntN(2) == 0 {
			for _, n := range []string{"x.example.", "y.example.", "z.example."} {
				z.add(n, dns.TypeIPSECKEY, dnssec.Status(rnd.IntN(5)), n+" 60 IN "+key)
			}
		}
		verdict := Verdict{TTL: time.Duration(rnd.IntN(3)) * 10 * time.Second}
		var mu sync.Mutex // groups are judged side by side
		judged := map[string]bool{}
		w := &watcher{watch: func(_ context.Context, f Found) (v Verdict) {
			mu.Lock()
			defer mu.Unlock()
			v = verdict
			for _, x := range f.Addrs {
				if (x.As16()[15]+byte(i))%3 == 0 {
					v.Withhold = append(v.Withhold, Withheld{Addr: x, EDE: 18, Why: "test"})
				} else {
					judged[x.String()] = true
				}
			}
			return v
		}}
		s := testServer(t, z, w)
		f := flags{do: rnd.IntN(3) == 0, cd: rnd.IntN(3) == 0, ad: rnd.IntN(2) == 0, edns: true}
		r := ask(t, s, newQuery(a.Name, typ, f))
		what := fmt.Sprintf("case %d %+v %v\n%v\nanswer %v", i, f, a.Status, a.Msg, r)
		checkSubset(t, what, a.Msg.Answer, r.Answer)
		checkSubset(t, what, a.Msg.Ns, r.Ns)
		if r.AuthenticatedData && (a.Status != dnssec.Secure || !f.ad && !f.do || slices.ContainsFunc(edeList(r), func(c uint16) bool { return c == 18 })) {
			t.Fatalf("AD is set: %s", what)
		}
		for _, rr := range r.Answer {
			as, _ := addresses(rr)
			for _, x := range as {
				if !judged[x.String()] {
					t.Fatalf("%v was not judged: %s", x, what)
				}
				if verdict.TTL > 0 && seconds(rr.Header().Ttl) > verdict.TTL {
					t.Fatalf("TTL over the Watcher's %v: %s", verdict.TTL, what)
				}
			}
		}
		if a.Status < dnssec.Insecure && !f.cd && r.Rcode != dns.RcodeServerFailure {
			t.Fatalf("unproven data: %s", what)
		}
		s.Close()
	}
}

func checkSubset(t *testing.T, what string, have, got []dns.RR) {
	t.Helper()
	for _, rr := range got {
		if !slices.ContainsFunc(have, func(h dns.RR) bool { return dns.IsDuplicate(h, rr) && rr.Header().Ttl <= h.Header().Ttl }) {
			t.Fatalf("%v was added or changed: %s", rr, what)
		}
	}
}

func edeList(r *dns.Msg) (cs []uint16) {
	for _, o := range r.IsEdns0().Option {
		cs = append(cs, o.(*dns.EDNS0_EDE).InfoCode)
	}
	return cs
}

// randomAnswer is an answer for x.example. with or without an alias, with things in it that nobody asked for.
func randomAnswer(rnd *rand.Rand, typ uint16) dnssec.Answer {
	owner, texts := "x.example.", []string{}
	if rnd.IntN(3) == 0 {
		owner = "y.example."
		texts = append(texts, "x.example. 100 IN CNAME y.example.", "x.example. 100 IN RRSIG CNAME 15 2 60 20300101000000 20200101000000 1 example. AAAA")
	}
	for range rnd.IntN(4) {
		ttl, n := rnd.IntN(100), rnd.IntN(250)+1
		texts = append(texts, map[uint16]string{
			1:                fmt.Sprintf("%s %d IN A 192.0.2.%d", owner, ttl, n),
			28:               fmt.Sprintf("%s %d IN AAAA 2001:db8::%x", owner, ttl, n),
			16:               fmt.Sprintf("%s %d IN TXT \"%d\"", owner, ttl, n),
			dns.TypeNSEC:     fmt.Sprintf("%s %d IN NSEC z%d.example. A RRSIG", owner, ttl, n),
			dns.TypeIPSECKEY: fmt.Sprintf("%s %d IN IPSECKEY %d 0 4 . Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=", owner, ttl, n),
			dns.TypeMX:       fmt.Sprintf("%s %d IN MX %d z.example.", owner, ttl, n),
			dns.TypeHTTPS:    fmt.Sprintf("%s %d IN HTTPS %d %s ipv4hint=192.0.2.%d,192.0.2.%d", owner, ttl, n, []string{".", "z.example."}[n%2], n, n/2),
		}[typ])
	}
	texts = append(texts, fmt.Sprintf("%s 60 IN RRSIG %s 15 2 60 20300101000000 20200101000000 1 example. AAAA", owner, dns.TypeToString[typ]))
	a := answer("x.example.", typ, dnssec.Status(rnd.IntN(4)+1), texts...)
	if rnd.IntN(2) == 0 {
		a.Until = time.Now().Add(time.Duration(rnd.IntN(100)) * time.Second)
	}
	if a.Denied {
		a.Msg.Ns = records("example. 60 IN SOA ns.example. root.example. 1 1 1 1 30")
	}
	a.Msg.Answer = append(a.Msg.Answer, records("other.example. 60 IN A 192.0.2.3")...)
	a.Msg.Ns = append(a.Msg.Ns, records("example. 60 IN NS ns.example.")...)
	a.Msg.Extra = records("ns.example. 60 IN A 192.0.2.3")
	return a
}

// FuzzServe gives arbitrary packets to the server: it does not panic, and what it answers is a response to that packet.
func FuzzServe(f *testing.F) {
	for _, q := range []*dns.Msg{
		newQuery("bob.example.", 1, flags{do: true}), newQuery("big.example.", dns.TypeANY, flags{cd: true}), newQuery(".", 2, flags{}),
		newQuery("bob.example.", dns.TypeHTTPS, flags{edns: true}), newQuery("bob.example.", dns.TypeAXFR, flags{}),
	} {
		b, err := q.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	z := newZone()
	z.add("bob.example.", 1, dnssec.Secure, a1, a2)
	z.add("bob.example.", dns.TypeHTTPS, dnssec.Secure, "bob.example. 300 IN HTTPS 1 . ipv4hint=192.0.2.1")
	z.add("bob.example.", dns.TypeIPSECKEY, dnssec.Secure, "bob.example. 300 IN "+key)
	s := testServer(f, z, &watcher{lame: []string{"192.0.2.1"}})
	f.Fuzz(func(t *testing.T, b []byte) {
		out := s.serve(b, origin{})
		if out == nil {
			return
		}
		r := new(dns.Msg)
		if err := r.Unpack(out); err != nil || !r.Response || out[0] != b[0] || out[1] != b[1] {
			t.Errorf("%x is answered by %x: %v", b, out, err)
		}
		for _, rr := range r.Answer {
			if a, ok := rr.(*dns.A); ok && a.A.String() == "192.0.2.1" {
				t.Errorf("%x: a withheld address left", b)
			}
		}
		if n := s.Stats().Panics; n != 0 {
			t.Fatalf("%d panics", n)
		}
	})
}
