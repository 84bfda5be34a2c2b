package resolver

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

const (
	a1   = "bob.example. 300 IN A 192.0.2.1"
	a2   = "bob.example. 300 IN A 192.0.2.2"
	aaaa = "bob.example. 300 IN AAAA 2001:db8::1"
)

// The rows of TRUST.md 1, for private-or-clear.
func TestDecisions(t *testing.T) {
	const bob = "bob.example."
	type st = dnssec.Status
	keyed := func(z *zone, s st) { z.add(bob, dns.TypeIPSECKEY, s, "bob.example. 300 IN "+key) }
	dead := func(z *zone) {
		z.m[question{bob, dns.TypeIPSECKEY}] = func(context.Context) (dnssec.Answer, error) { return dnssec.Answer{}, errTest }
	}
	for _, c := range []struct {
		what  string
		zone  func(z *zone)
		lame  []string
		typ   uint16
		flags flags
		want  string
		calls int
	}{
		{"secure, key", func(z *zone) { z.add(bob, 1, dnssec.Secure, a1); keyed(z, dnssec.Secure) }, nil, 1, flags{ad: true},
			"NOERROR ad 192.0.2.1", 1},
		{"no AD unasked", func(z *zone) { z.add(bob, 1, dnssec.Secure, a1); keyed(z, dnssec.Secure) }, nil, 1, flags{},
			"NOERROR 192.0.2.1", 1},
		{"secure denial of a key", func(z *zone) { z.add(bob, 1, dnssec.Secure, a1) }, nil, 1, flags{do: true},
			"NOERROR ad 192.0.2.1", 1},
		{"key bogus", func(z *zone) { z.add(bob, 1, dnssec.Secure, a1); keyed(z, dnssec.Bogus) }, nil, 1, flags{edns: true},
			"SERVFAIL ede=DNSSEC Indeterminate", 1},
		{"key lookup fails", func(z *zone) { z.add(bob, 1, dnssec.Secure, a1); dead(z) }, nil, 1, flags{edns: true},
			"SERVFAIL ede=DNSSEC Indeterminate", 1},
		{"key fails, CD", func(z *zone) { z.add(bob, 1, dnssec.Secure, a1); dead(z) }, nil, 1, flags{cd: true}, "SERVFAIL", 1},
		{"insecure address, any key", func(z *zone) { z.add(bob, 1, dnssec.Insecure, a1); dead(z) }, nil, 1, flags{ad: true},
			"NOERROR 192.0.2.1", 1},
		{"bogus address", func(z *zone) { z.add(bob, 1, dnssec.Bogus, a1); keyed(z, dnssec.Secure) }, nil, 1, flags{do: true},
			"SERVFAIL ede=DNSSEC Bogus", 0},
		{"bogus address, CD, key", func(z *zone) { z.add(bob, 1, dnssec.Bogus, a1); keyed(z, dnssec.Secure) }, nil, 1, flags{cd: true},
			"SERVFAIL", 0},
		{"bogus address, CD, proven no key", func(z *zone) { z.add(bob, 1, dnssec.Bogus, a1) }, nil, 1, flags{cd: true, ad: true},
			"NOERROR 192.0.2.1", 1},
		{"bogus text", func(z *zone) { z.add(bob, 16, dnssec.Bogus, `bob.example. 1 IN TXT "x"`) }, nil, 16, flags{edns: true},
			"SERVFAIL ede=DNSSEC Bogus", 0},
		{"bogus text, CD", func(z *zone) { z.add(bob, 16, dnssec.Bogus, `bob.example. 1 IN TXT "x"`) }, nil, 16, flags{cd: true, do: true},
			`NOERROR "x"`, 0},
		{"one of two withheld", func(z *zone) { z.add(bob, 1, dnssec.Secure, a1, a2); keyed(z, dnssec.Secure) },
			[]string{"192.0.2.1"}, 1, flags{ad: true, edns: true}, "NOERROR 192.0.2.2 ede=Prohibited", 1},
		{"one of two withheld, DO", func(z *zone) { z.add(bob, 1, dnssec.Secure, a1, a2); keyed(z, dnssec.Secure) },
			[]string{"192.0.2.1"}, 1, flags{do: true}, "SERVFAIL ede=Prohibited", 1},
		{"none left in either family", func(z *zone) {
			z.add(bob, 1, dnssec.Secure, a1)
			z.add(bob, 28, dnssec.Secure, aaaa)
			keyed(z, dnssec.Secure)
		},
			[]string{"192.0.2.1", "2001:db8::1"}, 1, flags{edns: true}, "SERVFAIL ede=Prohibited", 2},
		{"the other family has some", func(z *zone) {
			z.add(bob, 1, dnssec.Secure, a1)
			z.add(bob, 28, dnssec.Secure, aaaa)
			keyed(z, dnssec.Secure)
		},
			[]string{"192.0.2.1"}, 1, flags{edns: true}, "NOERROR ede=Prohibited", 2},
		{"the other family has some, DO", func(z *zone) {
			z.add(bob, 1, dnssec.Secure, a1)
			z.add(bob, 28, dnssec.Secure, aaaa)
			keyed(z, dnssec.Secure)
		},
			[]string{"192.0.2.1"}, 1, flags{do: true}, "SERVFAIL ede=Prohibited", 1},
		{"IPv4 in AAAA", func(z *zone) {
			z.add(bob, 28, dnssec.Secure, "bob.example. 300 IN AAAA ::ffff:192.0.2.1")
			keyed(z, dnssec.Secure)
		},
			[]string{"192.0.2.1"}, 28, flags{edns: true}, "SERVFAIL ede=Prohibited", 1},
		{"no such name", func(z *zone) {}, nil, 1, flags{ad: true}, "NOERROR ad", 0},
		{"address unknown", func(z *zone) {
			z.m[question{bob, 1}] = func(context.Context) (dnssec.Answer, error) { return dnssec.Answer{}, errTest }
		}, nil, 1, flags{edns: true}, "SERVFAIL ede=Network Error", 0},
		{"lookup panics", func(z *zone) {
			z.m[question{bob, 1}] = func(context.Context) (dnssec.Answer, error) { panic("test") }
		}, nil, 1, flags{edns: true}, "SERVFAIL ede=Other", 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			z, w := newZone(), &watcher{lame: c.lame}
			c.zone(z)
			s := testServer(t, z, w)
			if got := outcomeOf(ask(t, s, newQuery(bob, c.typ, c.flags))); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if got := w.calls(); got != c.calls {
				t.Errorf("watcher called %d times, want %d", got, c.calls)
			}
		})
	}
}

func TestBrokenKeysAreNoDenial(t *testing.T) {
	z, w := newZone(), &watcher{}
	z.add("bob.example.", 1, dnssec.Secure, a1)
	z.add("bob.example.", dns.TypeIPSECKEY, dnssec.Secure, "bob.example. 20 IN TYPE45 \\# 3 0a0004", "bob.example. 20 IN TYPE45 \\# 1 ff")
	s := testServer(t, z, w)
	ask(t, s, newQuery("bob.example.", 1, flags{}))
	f := w.last(t)
	if len(f.Keys) == 0 || f.Denied {
		t.Fatalf("got %+v, want unusable keys", f)
	}
	for _, k := range f.Keys {
		if k.Unusable == "" {
			t.Errorf("key %+v counts as usable", k)
		}
	}
}

func TestKeysAreBoundedAndInOrder(t *testing.T) {
	var texts []string
	for i := range 40 {
		texts = append(texts, fmt.Sprintf("x.example. 1 IN IPSECKEY %d 0 4 . Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=", 200-i))
	}
	texts = append(texts, "x.example. 1 IN IPSECKEY 0 0 4 . AAAA") // first by precedence, but no key
	keys, why := Keys(records(texts...))
	if len(keys) != maxKeys || keys[0].Precedence != 161 || keys[0].Unusable != "" {
		t.Errorf("got %d keys, first %+v; want %d, first of precedence 161", len(keys), keys[0], maxKeys)
	}
	if why == "" {
		t.Error("nothing said about the key of 3 octets")
	}
}

func TestAliases(t *testing.T) {
	const www = "www.example. 300 IN CNAME bob.example."
	t.Run("both chains end at the owner", func(t *testing.T) {
		z, w := newZone(), &watcher{}
		z.add("www.example.", 1, dnssec.Secure, www, a1)
		z.add("www.example.", dns.TypeIPSECKEY, dnssec.Secure, www, "bob.example. 300 IN "+key)
		s := testServer(t, z, w)
		if got, want := outcomeOf(ask(t, s, newQuery("www.example.", 1, flags{ad: true}))), "NOERROR ad bob.example. 192.0.2.1"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if f := w.last(t); f.Asked != "www.example." || f.Owner != "bob.example." || len(f.Keys) != 1 {
			t.Errorf("got %+v", f)
		}
		if n := z.count("bob.example.", dns.TypeIPSECKEY); n != 0 {
			t.Errorf("key asked %d times at the owner, want 0", n)
		}
	})
	t.Run("key asked again at the owner of the address", func(t *testing.T) {
		z, w := newZone(), &watcher{}
		z.add("www.example.", 1, dnssec.Secure, www, a1)
		z.add("www.example.", dns.TypeIPSECKEY, dnssec.Secure, "www.example. 300 IN CNAME other.example.", "other.example. 300 IN "+key)
		z.add("bob.example.", dns.TypeIPSECKEY, dnssec.Secure, "bob.example. 300 IN "+key)
		s := testServer(t, z, w)
		ask(t, s, newQuery("www.example.", 1, flags{}))
		if f := w.last(t); len(f.Keys) != 1 || f.KeyStatus != dnssec.Secure || z.count("bob.example.", dns.TypeIPSECKEY) != 1 {
			t.Errorf("got %+v, key asked %d times at the owner", f, z.count("bob.example.", dns.TypeIPSECKEY))
		}
	})
	t.Run("the owner's key is an alias too", func(t *testing.T) {
		z, w := newZone(), &watcher{}
		z.add("www.example.", 1, dnssec.Secure, www, a1)
		z.add("bob.example.", dns.TypeIPSECKEY, dnssec.Secure, "bob.example. 300 IN CNAME evil.example.", "evil.example. 300 IN "+key)
		s := testServer(t, z, w)
		r := ask(t, s, newQuery("www.example.", 1, flags{}))
		if f := w.last(t); f.KeyStatus != dnssec.Indeterminate || r.Rcode != dns.RcodeServerFailure {
			t.Errorf("got %+v and %s, want no proof", f, outcomeOf(r))
		}
	})
	t.Run("target of class block", func(t *testing.T) {
		z := newZone()
		z.add("www.example.", 1, dnssec.Secure, www, a1)
		w := &watcher{interest: func(n string) Interest {
			if n == "bob.example." {
				return Refuse
			}
			return AskKey
		}}
		s := testServer(t, z, w)
		if got, want := outcomeOf(ask(t, s, newQuery("www.example.", 1, flags{edns: true}))), "REFUSED ede=Blocked"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestClasses(t *testing.T) {
	for _, c := range []struct {
		i    Interest
		st   dnssec.Status
		f    flags
		want string
		keys int
	}{
		{Refuse, dnssec.Secure, flags{edns: true}, "REFUSED ede=Blocked", 0},
		{SkipKey, dnssec.Secure, flags{ad: true}, "NOERROR ad 192.0.2.1", 0},
		{SkipKey, dnssec.Insecure, flags{ad: true}, "NOERROR 192.0.2.1", 0},
		{SkipKey, dnssec.Bogus, flags{edns: true}, "SERVFAIL ede=DNSSEC Bogus", 0},
		{SkipKey, dnssec.Bogus, flags{cd: true}, "NOERROR 192.0.2.1", 0},
		{AskKey, dnssec.Secure, flags{}, "NOERROR 192.0.2.1", 1},
	} {
		z := newZone()
		z.add("bob.example.", 1, c.st, a1)
		w := &watcher{interest: func(string) Interest { return c.i }}
		s := testServer(t, z, w)
		if got := outcomeOf(ask(t, s, newQuery("bob.example.", 1, c.f))); got != c.want {
			t.Errorf("interest %d, %v: got %q, want %q", c.i, c.st, got, c.want)
		}
		if n := z.count("bob.example.", dns.TypeIPSECKEY); n != c.keys {
			t.Errorf("interest %d: key asked %d times, want %d", c.i, n, c.keys)
		}
	}
}

//tacit:attack A-46 ANY carries no address past the judgement
func TestAnyCarriesNoAddresses(t *testing.T) {
	z := newZone()
	m := answer("bob.example.", dns.TypeANY, dnssec.Secure)
	m.Denied = false
	m.RRs = records(a1, aaaa, `bob.example. 60 IN TXT "x"`, "bob.example. 60 IN HTTPS 1 . ipv4hint=192.0.2.1")
	m.Msg.Answer = append(m.RRs, records("bob.example. 60 IN RRSIG A 15 2 60 20300101000000 20200101000000 1 example. AAAA")...)
	m.Msg.Extra = records("bob.example. 60 IN A 192.0.2.9")
	z.m[question{"bob.example.", dns.TypeANY}] = func(context.Context) (dnssec.Answer, error) { return m, nil }
	z.add("bogus.example.", dns.TypeANY, dnssec.Bogus)
	s := testServer(t, z, &watcher{})
	if got, want := outcomeOf(ask(t, s, newQuery("bob.example.", dns.TypeANY, flags{do: true}))), `NOERROR "x" ede=Filtered`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := outcomeOf(ask(t, s, newQuery("bogus.example.", dns.TypeANY, flags{do: true}))), "SERVFAIL ede=DNSSEC Bogus"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	skip := testServer(t, z, &watcher{interest: func(string) Interest { return SkipKey }})
	if r := ask(t, skip, newQuery("bob.example.", dns.TypeANY, flags{do: true})); len(r.Answer) != 5 || !r.AuthenticatedData {
		t.Errorf("class clear: got %s", outcomeOf(r))
	}
}

func TestSignaturesArePassedThrough(t *testing.T) {
	up := exchanger(func(_ context.Context, q *dns.Msg) (*dns.Msg, error) {
		m := new(dns.Msg)
		m.SetReply(q)
		m.Answer = records("bob.example. 60 IN RRSIG TXT 15 2 60 20300101000000 20200101000000 1 example. AAAA", a1)
		m.AuthenticatedData = true
		return m, nil
	})
	s := testServer(t, newZone(), &watcher{}, func(c *Config) { c.Upstream = up })
	r := ask(t, s, newQuery("bob.example.", dns.TypeRRSIG, flags{do: true}))
	if len(r.Answer) != 1 || r.Answer[0].Header().Rrtype != dns.TypeRRSIG || r.AuthenticatedData {
		t.Errorf("got %s", outcomeOf(r))
	}
}

// What the upstream adds beside the answer is not released: it was not judged.
func TestOnlyTheAnswerLeaves(t *testing.T) {
	z := newZone()
	a := answer("mx.example.", dns.TypeMX, dnssec.Secure, "mx.example. 60 IN MX 1 bob.example.")
	a.Msg.Answer = append(a.Msg.Answer, records("bob.example. 60 IN A 192.0.2.66")...)
	a.Msg.Ns = records("example. 60 IN NS ns.example.", "example. 60 IN A 192.0.2.66")
	a.Msg.Extra = records(a1)
	z.m[question{"mx.example.", dns.TypeMX}] = func(context.Context) (dnssec.Answer, error) { return a, nil }
	b := answer("bob.example.", 1, dnssec.Secure, a1)
	b.Msg.Answer = append(b.Msg.Answer, records("bob.example. 60 IN A 192.0.2.66")...) // in the message, not in the verified set
	z.m[question{"bob.example.", 1}] = func(context.Context) (dnssec.Answer, error) { return b, nil }
	s := testServer(t, z, &watcher{})
	r := ask(t, s, newQuery("mx.example.", dns.TypeMX, flags{ad: true}))
	if got, want := outcomeOf(r), "NOERROR ad 1 bob.example."; got != want || len(r.Ns)+len(r.Extra) != 0 {
		t.Errorf("got %q, %v, %v; want %q alone", got, r.Ns, r.Extra, want)
	}
	if got, want := outcomeOf(ask(t, s, newQuery("bob.example.", 1, flags{ad: true}))), "NOERROR ad 192.0.2.1"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestObserveTouchesNothing(t *testing.T) {
	z := newZone()
	z.add("bob.example.", 1, dnssec.Secure, a1)
	z.add("bogus.example.", 1, dnssec.Bogus, "bogus.example. 300 IN A 192.0.2.1")
	z.add("bob.example.", dns.TypeIPSECKEY, dnssec.Secure, "bob.example. 300 IN "+key)
	seen := make(chan Found, 9)
	w := &watcher{watch: func(ctx context.Context, f Found) Verdict {
		<-ctx.Done()
		seen <- f
		return withholdAll(f.Addrs, 18, "test")
	}}
	s := testServer(t, z, w, func(c *Config) { c.Observe = true })
	start := time.Now()
	for _, n := range []string{"bob.example.", "bogus.example."} {
		if got, want := outcomeOf(ask(t, s, newQuery(n, 1, flags{edns: true}))), "NOERROR 192.0.2.1"; got != want {
			t.Errorf("%s: got %q, want %q", n, got, want)
		}
	}
	if d := time.Since(start); d > 200*time.Millisecond {
		t.Errorf("held for %v", d)
	}
	select {
	case f := <-seen:
		if f.Asked == "" {
			t.Errorf("observed %+v", f)
		}
	case <-time.After(2 * time.Second):
		t.Error("the watcher was not called")
	}
	w2 := &watcher{interest: func(string) Interest { return Refuse }}
	s2 := testServer(t, z, w2, func(c *Config) { c.Observe = true })
	if got, want := outcomeOf(ask(t, s2, newQuery("bob.example.", 1, flags{}))), "NOERROR 192.0.2.1"; got != want {
		t.Errorf("class block: got %q, want %q", got, want)
	}
}

// while the clock is known to be wrong nothing is given but what the host sets it by: addresses of a time server, without AD and not to be kept.
func TestTimeServers(t *testing.T) {
	z, w := newZone(), &watcher{}
	now := time.Now()
	for _, name := range []string{"time.example.", "bob.example."} {
		for typ, rr := range map[uint16]string{1: " 300 IN A 192.0.2.1", 28: " 300 IN AAAA 2001:db8::1", 16: ` 300 IN TXT "x"`} {
			a := answer(name, typ, dnssec.Indeterminate, name+rr)
			a.Unclocked, a.EDE, a.Why, a.Until = true, dns.ExtendedErrorCodeDNSSECIndeterminate, "the clock", now
			z.m[question{name, typ}] = func(context.Context) (dnssec.Answer, error) { return a, nil }
		}
	}
	z.add("forged.example.", 1, dnssec.Bogus, "forged.example. 300 IN A 192.0.2.1")
	z.add("silent.example.", 1, dnssec.Indeterminate, "silent.example. 300 IN A 192.0.2.1")
	is := func(name string) bool { return name != "bob.example." }
	s := testServer(t, z, w, func(c *Config) { c.TimeServer = is })
	for _, c := range []struct {
		name string
		typ  uint16
		want string
	}{
		{"time.example.", 1, "NOERROR 192.0.2.1"}, {"time.example.", 28, "NOERROR 2001:db8::1"}, {"time.example.", 16, "SERVFAIL ede=DNSSEC Indeterminate"},
		{"bob.example.", 1, "SERVFAIL ede=DNSSEC Indeterminate"}, {"forged.example.", 1, "SERVFAIL ede=DNSSEC Bogus"},
		{"silent.example.", 1, "SERVFAIL"},
	} {
		r := ask(t, s, newQuery(c.name, c.typ, flags{do: true}))
		if got := outcomeOf(r); got != c.want {
			t.Errorf("%s %s: got %q, want %q", c.name, dns.Type(c.typ), got, c.want)
		}
		for _, rr := range r.Answer {
			if rr.Header().Ttl != 0 {
				t.Errorf("%v is to be kept", rr)
			}
		}
	}
	if n := w.calls(); n != 0 {
		t.Errorf("%d claims", n)
	}
	if got := outcomeOf(ask(t, testServer(t, z, w), newQuery("time.example.", 1, flags{edns: true}))); got != "SERVFAIL ede=DNSSEC Indeterminate" {
		t.Errorf("without time servers: %q", got)
	}
}
