package resolver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// knowing is a Watcher that knows what it would say: it withholds one address, and caps the TTL of all others.
type knowing struct {
	watcher
	withheld netip.Addr
	ttl      time.Duration
}

func newKnowing(withheld string, ttl time.Duration) *knowing {
	k := &knowing{withheld: netip.MustParseAddr(withheld), ttl: ttl}
	k.watch = func(_ context.Context, f Found) Verdict { return k.verdict(f) }
	return k
}

func (k *knowing) verdict(f Found) (v Verdict) {
	v.TTL = k.ttl
	for _, a := range f.Addrs {
		if a == k.withheld {
			v.Withhold = append(v.Withhold, Withheld{Addr: a, EDE: 18, Why: "test"})
		}
	}
	return v
}

func (k *knowing) Known(f Found) (Verdict, bool) { v := k.verdict(f); return v, len(v.Withhold) == 0 }

// What quick answers it answers as serve does, to the record: for any answer, flags, letters and Watcher.
func TestQuickAnswersAsServe(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	answered := map[string]int{}
	for i := range 3000 {
		typ := []uint16{1, 28, dns.TypeHTTPS, 16, dns.TypeMX, dns.TypeIPSECKEY, dns.TypeNSEC}[rnd.IntN(7)]
		z, a := newZone(), randomAnswer(rnd, typ)
		z.m[question{a.Name, typ}] = func(context.Context) (dnssec.Answer, error) { return a, nil }
		for _, n := range []string{"x.example.", "y.example."} {
			if n == "y.example." || typ != dns.TypeIPSECKEY {
				z.add(n, dns.TypeIPSECKEY, dnssec.Status(3+rnd.IntN(2)), [][]string{{n + " 60 IN " + key}, {soa}}[rnd.IntN(2)]...)
			}
		}
		w := newKnowing(fmt.Sprintf("192.0.2.%d", 1+rnd.IntN(250)), time.Duration(rnd.IntN(3))*10*time.Second)
		w.interest = func(n string) Interest {
			return map[bool]Interest{true: AskKey, false: Interest(i % 3)}[n == "x.example." || i%5 > 0]
		}
		start, passed := time.Now(), atomic.Int64{}
		s := testServer(t, z, w, func(c *Config) { c.Now = func() time.Time { return start.Add(time.Duration(passed.Load())) } })
		q := newQuery("X.exAMPle.", typ, flags{do: rnd.IntN(3) == 0, cd: rnd.IntN(3) == 0, ad: rnd.IntN(2) == 0, edns: rnd.IntN(2) == 0})
		q.RecursionDesired = rnd.IntN(5) > 0
		packet, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		s.serve(packet, origin{})
		passed.Store(int64(rnd.IntN(20)) * int64(500*time.Millisecond))
		quick, ok := s.quick(packet, make([]byte, 0, maxUDPReply))
		if !ok {
			continue
		}
		got, want := new(dns.Msg), new(dns.Msg)
		if err := got.Unpack(quick); err != nil {
			t.Fatalf("case %d: %x: %v", i, quick, err)
		}
		if err := want.Unpack(s.serve(packet, origin{})); err != nil {
			t.Fatal(err)
		}
		for _, m := range []*dns.Msg{got, want} {
			for _, rr := range append(append(m.Answer, m.Ns...), m.Extra...) {
				rr.Header().Rdlength = 0 // of compressed names
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("case %d: quick says\n%v\nserve\n%v", i, got, want)
		}
		answered[dns.TypeToString[typ]]++
		s.Close()
	}
	t.Logf("answered: %v", answered)
	for _, typ := range []string{"A", "AAAA", "TXT", "MX", "IPSECKEY"} {
		if answered[typ] == 0 {
			t.Errorf("quick has answered none of %s", typ)
		}
	}
}

const soa = "example. 60 IN SOA ns.example. root.example. 1 1 1 1 30"

// What is not a plain query, is not in the cache, or has to be withheld, is left to serve.
func TestQuickLeavesTheRest(t *testing.T) {
	z := newZone()
	z.add("bob.example.", 1, dnssec.Secure, a1)
	z.add("bob.example.", dns.TypeIPSECKEY, dnssec.Secure, "bob.example. 300 IN "+key)
	z.add("lame.example.", 1, dnssec.Secure, "lame.example. 60 IN A 192.0.2.9")
	z.add("bogus.example.", 1, dnssec.Bogus, "bogus.example. 60 IN A 192.0.2.8")
	z.add("large.example.", 16, dnssec.Secure, `large.example. 60 IN TXT "`+strings.Repeat("x", 250)+`" "`+strings.Repeat("y", 250)+`"`)
	s := testServer(t, z, newKnowing("192.0.2.9", 0))
	plain := newQuery("bob.example.", 1, flags{edns: true})
	for _, n := range []string{"bob.example.", "lame.example.", "bogus.example."} {
		ask(t, s, newQuery(n, 1, flags{cd: true, edns: true}))
	}
	ask(t, s, newQuery("large.example.", 16, flags{}))
	change := func(f func(m *dns.Msg)) *dns.Msg { m := plain.Copy(); f(m); return m }
	for _, c := range []struct {
		what string
		q    *dns.Msg
		want bool
	}{
		{"a plain query", plain, true},
		{"without EDNS", newQuery("bob.example.", 1, flags{}), true},
		{"not asked before", newQuery("new.example.", 1, flags{}), false},
		{"an address that is withheld", newQuery("lame.example.", 1, flags{}), false},
		{"bogus data, with CD", newQuery("bogus.example.", 1, flags{cd: true}), false},
		{"an answer that does not fit", newQuery("large.example.", 16, flags{}), false},
		{"the same where it fits", newQuery("large.example.", 16, flags{edns: true}), true},
		{"a name with an escape", newQuery(`b\.ob.example.`, 1, flags{}), false},
		{"the root", newQuery(".", 1, flags{}), false},
		{"ANY", newQuery("bob.example.", dns.TypeANY, flags{}), false},
		{"a response", change(func(m *dns.Msg) { m.Response = true }), false},
		{"another opcode", change(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), false},
		{"another class", change(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), false},
		{"two questions", change(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), false},
		{"another version of EDNS", change(func(m *dns.Msg) { m.IsEdns0().SetVersion(1) }), false},
		{"an option", change(func(m *dns.Msg) {
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
		}), false},
	} {
		b, err := c.q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := s.quick(b, make([]byte, 0, maxUDPReply)); ok != c.want {
			t.Errorf("%s: quick says %v, want %v", c.what, ok, c.want)
		}
		for n := range b { // no prefix of a query is one
			if _, ok := s.quick(b[:n], make([]byte, 0, maxUDPReply)); ok {
				t.Errorf("%s: the first %d octets of %d are answered", c.what, n, len(b))
			}
		}
		if _, ok := s.quick(append(b, 0), make([]byte, 0, maxUDPReply)); ok {
			t.Errorf("%s: answered with an octet more", c.what)
		}
	}
}

func TestQuickAllocatesNothing(t *testing.T) {
	z := newZone()
	z.add("bob.example.", 1, dnssec.Secure, a1)
	s := testServer(t, z, &quiet{AskKey})
	b, _ := newQuery("bob.example.", 1, flags{do: true}).Pack()
	s.serve(b, origin{})
	out := make([]byte, 0, maxUDPReply)
	if n := testing.AllocsPerRun(100, func() {
		if _, ok := s.quick(b, out); !ok {
			t.Fatal("not quick")
		}
	}); n != 0 {
		t.Errorf("%v allocations for a cached answer, want none", n)
	}
}

// A denial of a key is kept without its proof until somebody asks for it, who gets it.
func TestKeyDenialsWithoutProof(t *testing.T) {
	z := newZone()
	z.add("bob.example.", 1, dnssec.Secure, a1)
	s := testServer(t, z, &quiet{AskKey})
	ask(t, s, newQuery("bob.example.", 1, flags{}))
	if e := s.start("", "bob.example.", dns.TypeIPSECKEY).ready(); e == nil || !e.bare || e.wire != "" || !e.denied || !e.good() {
		t.Fatalf("the denial of the key is kept as %+v", e)
	}
	for range 2 {
		if r := ask(t, s, newQuery("bob.example.", dns.TypeIPSECKEY, flags{})); len(r.Ns) != 1 {
			t.Errorf("a denial without its SOA: %v", r)
		}
	}
	if n := z.count("bob.example.", dns.TypeIPSECKEY); n != 2 {
		t.Errorf("%d lookups of the key, want one for the Watcher and one for the client", n)
	}
	ask(t, s, newQuery("bob.example.", 1, flags{}))
	if n := z.count("bob.example.", dns.TypeIPSECKEY); n != 2 {
		t.Errorf("the whole denial does not serve the Watcher")
	}
}

// A hundred thousand names, with what is known of their keys, fit into the cache and take less than 100 MB with what the collector adds.
func TestMemoryOfNames(t *testing.T) {
	const names, most = 100_000, 45 << 20
	sig := "60 IN RRSIG %s 13 2 60 20300101000000 20200101000000 1 example. " + strings.Repeat("A", 86) + "=="
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	c, now := newCache(), time.Now()
	for i := range names {
		n := fmt.Sprintf("host-%d.example.", i)
		a := answer(n, 1, dnssec.Secure, n+" 60 IN A 192.0.2.1", n+" "+fmt.Sprintf(sig, "A"))
		k := denial(n, dns.TypeIPSECKEY, dnssec.Secure)
		c.put(newEntry(question{n, 1}, a, now))
		c.put(newEntry(question{n, dns.TypeIPSECKEY}, k, now).withoutProof())
	}
	grown := heap() - before
	counted := c.bytes + c.none.bytes
	t.Logf("%d octets a name, the cache counts %d", grown/names, counted/names)
	if len(c.m) != names || len(c.none.m) != names {
		t.Errorf("%d and %d entries are left of %d", len(c.m), len(c.none.m), names)
	}
	if grown > most {
		t.Errorf("%d names take %d octets, want at most %d", names, grown, most)
	}
	if counted < int(grown)*2/3 {
		t.Errorf("the cache counts %d octets of %d", counted, grown)
	}
}

// Clients of all sockets of an address are answered, many at once, each by its own answer.
func TestManyClients(t *testing.T) {
	z := newZone()
	for i := range 40 {
		z.add(fmt.Sprintf("n%d.example.", i), 1, dnssec.Secure, fmt.Sprintf("n%d.example. 60 IN A 192.0.2.%d", i, i+1))
	}
	_, addr := running(t, z, &quiet{AskKey})
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			c, err := net.Dial("udp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			name := fmt.Sprintf("n%d.example.", i)
			for range 20 {
				q := newQuery(name, 1, flags{})
				b, _ := q.Pack()
				in := make([]byte, 512)
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				if _, err := c.Write(b); err != nil {
					t.Error(err)
					return
				}
				n, err := c.Read(in)
				r := new(dns.Msg)
				if err != nil || r.Unpack(in[:n]) != nil || r.Id != q.Id || len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != fmt.Sprintf("192.0.2.%d", i+1) {
					t.Errorf("%s: %v, %v", name, r, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
