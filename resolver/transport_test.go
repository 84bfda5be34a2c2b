package resolver

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
	"tacit/lab"
)

// running is a server on loopback sockets; the test ends it.
func running(t *testing.T, z Lookuper, w Watcher) (*Server, string) {
	t.Helper()
	s, err := New(Config{Listen: []netip.AddrPort{netip.AddrPortFrom(loop, 0)}, Lookup: z, Watcher: w, Hold: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(3 * time.Second):
			t.Error("Serve does not end")
		}
	})
	return s, s.Addrs()[0].String()
}

func exchange(t *testing.T, network, addr string, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 2 * time.Second}
	r, _, err := c.Exchange(q, addr)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestOverTheWire(t *testing.T) {
	z := newZone()
	z.add("bob.example.", 1, dnssec.Secure, a1)
	z.add("bob.example.", dns.TypeIPSECKEY, dnssec.Secure, "bob.example. 300 IN "+key)
	var big []string
	for i := range 60 {
		big = append(big, fmt.Sprintf("big.example. 300 IN A 192.0.2.%d", i+1))
	}
	z.add("big.example.", 1, dnssec.Secure, big...)
	z.add("unknown.example.", 65280, dnssec.Secure, `unknown.example. 300 IN TYPE65280 \# 3 010203`)
	s, addr := running(t, z, &watcher{})

	for _, network := range []string{"udp", "tcp"} {
		r := exchange(t, network, addr, newQuery("bOb.eXample.", 1, flags{ad: true}))
		if got, want := outcomeOf(r), "NOERROR ad 192.0.2.1"; got != want {
			t.Errorf("%s: got %q, want %q", network, got, want)
		}
		if r.Question[0].Name != "bOb.eXample." || r.Answer[0].Header().Name != "bOb.eXample." || !r.RecursionAvailable || r.Authoritative {
			t.Errorf("%s: got %v, want the client's letters", network, r)
		}
		r = exchange(t, network, addr, newQuery("unknown.example.", 65280, flags{}))
		if len(r.Answer) != 1 || !strings.HasSuffix(r.Answer[0].String(), "010203") {
			t.Errorf("%s: unknown type: got %v", network, r.Answer)
		}
	}
	for _, c := range []struct {
		edns  uint16
		whole bool
	}{{0, false}, {512, false}, {800, false}, {1232, true}, {100, false}} {
		q := newQuery("big.example.", 1, flags{})
		limit := 512
		if c.edns > 0 {
			q.SetEdns0(c.edns, false)
			limit = max(limit, int(c.edns))
		}
		r := exchange(t, "udp", addr, q)
		r.Compress = true
		if r.Truncated == c.whole || (len(r.Answer) == 60) != c.whole || r.Len() > limit {
			t.Errorf("EDNS %d: TC %v, %d records, %d octets", c.edns, r.Truncated, len(r.Answer), r.Len())
		}
		if r = exchange(t, "tcp", addr, q); r.Truncated || len(r.Answer) != 60 {
			t.Errorf("TCP: TC %v, %d records", r.Truncated, len(r.Answer))
		}
	}
	if st := s.Stats(); st.Queries != 14 || st.Cached == 0 || st.Watched == 0 {
		t.Errorf("stats %+v", st)
	}
}

// I5 on one connection: a held answer does not hold the next one (RFC 7766, 6.2.1.1).
func TestPipelinedQueriesOvertake(t *testing.T) {
	z := newZone()
	z.add("slow.example.", 16, dnssec.Secure, `slow.example. 60 IN TXT "slow"`)
	z.slow("slow.example.", 16, 150*time.Millisecond)
	z.add("fast.example.", 16, dnssec.Secure, `fast.example. 60 IN TXT "fast"`)
	_, addr := running(t, z, &watcher{})
	c, err := dns.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	for _, n := range []string{"slow.example.", "fast.example."} {
		if err := c.WriteMsg(newQuery(n, 16, flags{})); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"fast.example.", "slow.example."} {
		r, err := c.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		if r.Question[0].Name != want {
			t.Errorf("got the answer of %s, want %s", r.Question[0].Name, want)
		}
	}
}

func TestAddressInUse(t *testing.T) {
	_, addr := running(t, newZone(), nil)
	_, err := New(Config{Listen: []netip.AddrPort{netip.MustParseAddrPort(addr)}, Lookup: newZone()})
	if err == nil || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("got %v, want an error that says that %s is in use", err, addr)
	}
	if _, err := New(Config{}); err == nil {
		t.Error("no error without a Lookuper")
	}
}

// Serve leaves no goroutine, with connections open and queries held.
func TestServeEndsClean(t *testing.T) {
	before := runtime.NumGoroutine()
	z := newZone()
	z.slow("slow.example.", 16, time.Hour)
	s, err := New(Config{Listen: []netip.AddrPort{netip.AddrPortFrom(loop, 0)}, Lookup: z, Hold: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	for _, network := range []string{"udp", "tcp"} {
		c, err := dns.DialTimeout(network, s.Addrs()[0].String(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.WriteMsg(newQuery("slow.example.", 16, flags{})); err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; s.Stats().Queries < 2 && i < 200; i++ {
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(3 * time.Second):
		t.Fatal("Serve does not end")
	}
	for i := 0; runtime.NumGoroutine() > before && i < 100; i++ {
		time.Sleep(5 * time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before {
		b := make([]byte, 1<<16)
		t.Errorf("%d goroutines, before %d\n%s", n, before, b[:runtime.Stack(b, true)])
	}
}

// What is no query for us.
func TestRefusals(t *testing.T) {
	s := testServer(t, newZone(), &watcher{})
	for _, c := range []struct {
		what   string
		change func(q *dns.Msg)
		want   string
	}{
		{"NOTIFY", func(q *dns.Msg) { q.Opcode = dns.OpcodeNotify }, "NOTIMP"},
		{"UPDATE", func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate }, "NOTIMP"},
		{"STATUS", func(q *dns.Msg) { q.Opcode = dns.OpcodeStatus }, "NOTIMP"},
		{"class CH", func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS }, "REFUSED ede=Not Supported"},
		{"class ANY", func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassANY }, "REFUSED ede=Not Supported"},
		{"AXFR", func(q *dns.Msg) { q.Question[0].Qtype = dns.TypeAXFR }, "NOTIMP ede=Not Supported"},
		{"type OPT", func(q *dns.Msg) { q.Question[0].Qtype = dns.TypeOPT }, "FORMERR"},
		{"no question", func(q *dns.Msg) { q.Question = nil }, "FORMERR"},
		{"two questions", func(q *dns.Msg) { q.Question = append(q.Question, q.Question[0]) }, "FORMERR"},
		{"EDNS version 1", func(q *dns.Msg) { q.IsEdns0().SetVersion(1) }, "BADSIG"}, // 16 is both (RFC 6895, 2.3),
	} {
		q := newQuery("bob.example.", 1, flags{edns: true})
		c.change(q)
		if got := outcomeOf(ask(t, s, q)); got != c.want {
			t.Errorf("%s: got %q, want %q", c.what, got, c.want)
		}
	}
	for _, b := range [][]byte{nil, {1}, make([]byte, 11), {0, 1, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0}} {
		if out := s.serve(b, origin{}); out != nil {
			t.Errorf("%x was answered: %x", b, out)
		}
	}
	if s.Stats().Malformed == 0 {
		t.Error("nothing counted")
	}
}

// Every prefix of a query is no query.
func TestPrefixesOfAQuery(t *testing.T) {
	z := newZone()
	z.add("bob.example.", 1, dnssec.Secure, a1)
	s := testServer(t, z, &watcher{})
	b, err := newQuery("bob.example.", 1, flags{do: true}).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(b) {
		out := s.serve(b[:n], origin{tcp: true})
		if n < 12 && out != nil || n >= 12 && (len(out) < 12 || out[3]&0xf != dns.RcodeFormatError || binary.BigEndian.Uint16(out) != binary.BigEndian.Uint16(b)) {
			t.Errorf("%d octets: answered %x", n, out)
		}
	}
}

// DNSSEC's records are for those who set DO, or ask for them (RFC 4035, 3.2.1).
func TestDNSSECRecordsForDOOnly(t *testing.T) {
	z := newZone()
	sig := func(n, typ string) string {
		return n + " 60 IN RRSIG " + typ + " 15 2 60 20300101000000 20200101000000 1 example. AAAA"
	}
	z.add("bob.example.", 1, dnssec.Secure, a1, sig("bob.example.", "A"))
	no := answer("no.example.", 1, dnssec.Secure, "example. 60 IN SOA ns.example. root.example. 1 1 1 1 30", "m.example. 60 IN NSEC o.example. A RRSIG NSEC")
	no.Msg.Ns = append(no.Msg.Ns, records(sig("m.example.", "NSEC"), sig("example.", "SOA"), "example. 60 IN NS ns.example.")...)
	no.Msg.Rcode, no.Rcode = dns.RcodeNameError, dns.RcodeNameError
	z.m[question{"no.example.", 1}] = func(context.Context) (dnssec.Answer, error) { return no, nil }
	s := testServer(t, z, &watcher{})
	for _, c := range []struct {
		name       string
		f          flags
		answer, ns int
		ad         bool
		rcode      int
	}{
		{"bob.example.", flags{do: true}, 2, 0, true, 0},
		{"bob.example.", flags{ad: true}, 1, 0, true, 0},
		{"bob.example.", flags{do: true, cd: true}, 2, 0, true, 0},
		{"bob.example.", flags{edns: true}, 1, 0, false, 0},
		{"no.example.", flags{do: true}, 0, 4, true, dns.RcodeNameError},
		{"no.example.", flags{}, 0, 1, false, dns.RcodeNameError},
	} {
		r := ask(t, s, newQuery(c.name, 1, c.f))
		if len(r.Answer) != c.answer || len(r.Ns) != c.ns || r.AuthenticatedData != c.ad || r.Rcode != c.rcode || r.CheckingDisabled != c.f.cd {
			t.Errorf("%s %+v: got %v", c.name, c.f, r)
		}
		if opt := r.IsEdns0(); (opt != nil) != (c.f.do || c.f.edns) || opt != nil && opt.Do() != c.f.do {
			t.Errorf("%s %+v: got OPT %v", c.name, c.f, opt)
		}
	}
}

// On a socket of every address the answer leaves from the address that was asked: clients take it from no other.
func TestAnswersFromTheAddressAsked(t *testing.T) {
	z := newZone()
	z.add("bob.example.", 1, dnssec.Secure, a1)
	for _, listen := range []string{"0.0.0.0:0", "[::]:0"} {
		s, err := New(Config{Listen: []netip.AddrPort{netip.MustParseAddrPort(listen)}, Lookup: z})
		if err != nil {
			lab.Missing(t, "no socket on", listen+":", err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx) }()
		addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.77"), s.Addrs()[0].Port())
		if r := exchange(t, "udp", addr.String(), newQuery("bob.example.", 1, flags{})); len(r.Answer) != 1 {
			t.Errorf("%s: got %v", listen, r)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// A name that makes the lookup or the Watcher panic gets SERVFAIL, and the next name its answer.
//
//tacit:attack A-25 the name that panics gets SERVFAIL, the next its answer
//tacit:attack A-50 the name that panics gets SERVFAIL, each time, and the next its answer
func TestPanicsAreContained(t *testing.T) {
	z := newZone()
	z.add("bob.example.", 1, dnssec.Secure, a1)
	z.add("eve.example.", 1, dnssec.Secure, "eve.example. 60 IN A 192.0.2.3")
	w := &watcher{watch: func(_ context.Context, f Found) Verdict {
		if f.Asked == "eve.example." {
			panic("test")
		}
		return Verdict{}
	}}
	s := testServer(t, z, w)
	for name, want := range map[string]string{"eve.example.": "SERVFAIL", "bob.example.": "NOERROR 192.0.2.1"} {
		if got := outcomeOf(ask(t, s, newQuery(name, 1, flags{}))); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if s.Stats().Panics != 1 {
		t.Errorf("stats %+v", s.Stats())
	}
}
