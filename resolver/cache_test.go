package resolver

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

func TestCacheLifetimes(t *testing.T) {
	soa := "example. 60 IN SOA ns.example. root.example. 1 1 1 1 30"
	for _, c := range []struct {
		what  string
		ans   func() dnssec.Answer
		lives time.Duration
	}{
		{"smallest TTL", func() dnssec.Answer {
			return answer("x.example.", 1, dnssec.Secure, "x.example. 90 IN CNAME y.example.", "y.example. 40 IN A 192.0.2.1")
		}, 40 * time.Second},
		{"Until is earlier", func() dnssec.Answer {
			a := answer("x.example.", 1, dnssec.Secure, "x.example. 90 IN A 192.0.2.1")
			a.Until = time.Now().Add(7 * time.Second)
			return a
		}, 7 * time.Second},
		{"denial: SOA minimum", func() dnssec.Answer { return answer("x.example.", 1, dnssec.Secure, soa) }, 30 * time.Second},
		{"denial without SOA", func() dnssec.Answer { return answer("x.example.", 1, dnssec.Insecure) }, 0},
		{"TTL 0", func() dnssec.Answer { return answer("x.example.", 1, dnssec.Secure, "x.example. 0 IN A 192.0.2.1") }, 0},
		{"TTL with the highest bit (RFC 2181, 8)", func() dnssec.Answer {
			a := answer("x.example.", 1, dnssec.Secure, "x.example. 1 IN A 192.0.2.1")
			a.RRs[0].Header().Ttl = 1 << 31
			return a
		}, 0},
		{"bogus (A-02)", func() dnssec.Answer { return answer("x.example.", 1, dnssec.Bogus, "x.example. 90 IN A 192.0.2.1") }, failureTime},
		{"SERVFAIL", func() dnssec.Answer {
			a := answer("x.example.", 1, dnssec.Indeterminate)
			a.Rcode = dns.RcodeServerFailure
			return a
		}, failureTime},
		{"a year", func() dnssec.Answer {
			return answer("x.example.", 1, dnssec.Secure, "x.example. 31536000 IN A 192.0.2.1")
		}, maxPositive},
	} {
		t.Run(c.what, func(t *testing.T) {
			z := newZone()
			synctest.Test(t, func(t *testing.T) {
				a := c.ans()
				z.m[question{"x.example.", 1}] = func(context.Context) (dnssec.Answer, error) { return a, nil }
				s := newServer(Config{Lookup: z})
				defer s.Close()
				asked := func() int {
					ask(t, s, newQuery("x.example.", 1, flags{}))
					return z.count("x.example.", 1)
				}
				asked()
				if c.lives == 0 {
					if n := asked(); n != 2 {
						t.Errorf("kept, want not")
					}
					return
				}
				time.Sleep(c.lives - time.Millisecond)
				if n := asked(); n != 1 {
					t.Errorf("asked again before %v", c.lives)
				}
				time.Sleep(time.Millisecond)
				if n := asked(); n != 2 {
					t.Errorf("kept beyond %v", c.lives)
				}
			})
		})
	}
}

// I6: TTLs only go down: by age, by Until, by the Watcher's cap.
func TestTTLs(t *testing.T) {
	z := newZone()
	w := &watcher{}
	synctest.Test(t, func(t *testing.T) {
		a := answer("x.example.", 1, dnssec.Secure, "x.example. 90 IN CNAME y.example.", "y.example. 40 IN A 192.0.2.1")
		a.Until = time.Now().Add(35 * time.Second)
		z.m[question{"x.example.", 1}] = func(context.Context) (dnssec.Answer, error) { return a, nil }
		s := newServer(Config{Lookup: z, Watcher: w})
		defer s.Close()
		for _, c := range []struct {
			sleep time.Duration
			cap   time.Duration
			want  [2]uint32
		}{
			{0, 0, [2]uint32{35, 35}},
			{10 * time.Second, 0, [2]uint32{25, 25}},
			{0, 9500 * time.Millisecond, [2]uint32{9, 9}},
			{20500 * time.Millisecond, 9 * time.Second, [2]uint32{4, 4}},
		} {
			time.Sleep(c.sleep)
			w.watch = func(context.Context, Found) Verdict { return Verdict{TTL: c.cap} }
			r := ask(t, s, newQuery("x.example.", 1, flags{}))
			if got := [2]uint32{r.Answer[0].Header().Ttl, r.Answer[1].Header().Ttl}; got != c.want {
				t.Errorf("after %v with cap %v: TTLs %v, want %v", c.sleep, c.cap, got, c.want)
			}
		}
		if w.calls() != 4 || z.count("x.example.", 1) != 1 {
			t.Errorf("watcher called %d times, %d lookups; want 4 and 1", w.calls(), z.count("x.example.", 1))
		}
	})
}

func TestAgeIsTakenOffTTLs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := newZone()
		z.add("x.example.", 16, dnssec.Insecure, `x.example. 90 IN TXT "x"`)
		s := newServer(Config{Lookup: z})
		defer s.Close()
		for _, want := range []uint32{90, 80, 70} {
			if r := ask(t, s, newQuery("x.example.", 16, flags{})); r.Answer[0].Header().Ttl != want {
				t.Errorf("TTL %d, want %d", r.Answer[0].Header().Ttl, want)
			}
			time.Sleep(10 * time.Second)
		}
	})
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache()
	now := time.Now()
	for i := range maxEntries + 100 {
		c.put(&entry{q: question{fmt.Sprint(i), 1}, at: now.Sub(epoch), life: time.Hour})
		c.get(question{"0", 1}, now) // in use: stays
	}
	if len(c.m) != maxEntries || c.length() != maxEntries || c.get(question{"0", 1}, now) == nil || c.get(question{"1", 1}, now) != nil {
		t.Errorf("%d entries, want %d, the least recently used gone", len(c.m), maxEntries)
	}
	large := strings.Repeat("x", 130_000)
	for i := range 1000 {
		c.put(&entry{q: question{fmt.Sprint("big", i), 1}, at: now.Sub(epoch), life: time.Hour, wire: large})
	}
	if c.bytes > maxBytes {
		t.Errorf("%d octets, want at most %d", c.bytes, maxBytes)
	}
	c.put(&entry{q: question{"big0", 1}, at: now.Sub(epoch), life: time.Hour})
	total := 0
	for _, e := range c.m {
		total += e.size()
	}
	if total != c.bytes {
		t.Errorf("counted %d octets, there are %d", c.bytes, total)
	}
}

// length is how many entries the ring has.
func (c *cache) length() (n int) {
	for e := c.lru.older; e != &c.lru; e = e.older {
		n++
	}
	return n
}

// A cached answer with the Watcher on; the parts of a query without the sockets.
func BenchmarkCachedAnswer(b *testing.B) {
	z := newZone()
	z.add("bob.example.", 1, dnssec.Secure, a1)
	z.add("bob.example.", dns.TypeIPSECKEY, dnssec.Secure, "bob.example. 300 IN "+key)
	for _, c := range []struct {
		name string
		i    Interest
	}{{"trigger", AskKey}, {"clear", SkipKey}} {
		b.Run(c.name, func(b *testing.B) {
			w := &quiet{c.i}
			s := testServer(b, z, w)
			q, _ := newQuery("bob.example.", 1, flags{edns: true}).Pack()
			if out := s.serve(q, origin{}); len(out) < 12 || out[3]&0xf != 0 {
				b.Fatalf("got %x", out)
			}
			out := make([]byte, 0, maxUDPReply)
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := s.quick(q, out); !ok {
					b.Fatal("not quick")
				}
			}
		})
	}
}

// quiet is a Watcher with a live claim on everything.
type quiet struct{ i Interest }

func (q *quiet) Interest(string) Interest             { return q.i }
func (q *quiet) Known(Found) (Verdict, bool)          { return Verdict{}, true }
func (q *quiet) Watch(context.Context, Found) Verdict { return Verdict{} }
