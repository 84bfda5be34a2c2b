package upstream

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
	"tacit/fair"
)

const good = "x. 60 IN A 192.0.2.1"

func TestAnswers(t *testing.T) {
	// Each row's server is scripted; an answer of 192.0.2.66 is a forgery.
	const bad = "x. 60 IN A 192.0.2.66"
	for _, c := range []struct {
		what     string
		reply    func(q *dns.Msg, tcp bool) [][]byte
		min, max int // TCP queries
	}{
		{"plain", func(q *dns.Msg, _ bool) [][]byte { return [][]byte{reply(q, good, nil)} }, 0, 0},
		{"wrong id first", func(q *dns.Msg, _ bool) [][]byte {
			return [][]byte{reply(q, bad, func(m *dns.Msg) { m.Id++ }), reply(q, good, nil)}
		}, 0, 0},
		{"wrong question first", func(q *dns.Msg, _ bool) [][]byte {
			return [][]byte{reply(q, bad, func(m *dns.Msg) { m.Question[0].Name = "y.example." }),
				reply(q, bad, func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA }), reply(q, good, nil)}
		}, 0, 0},
		{"a query comes back first", func(q *dns.Msg, _ bool) [][]byte {
			return [][]byte{reply(q, bad, func(m *dns.Msg) { m.Response = false }), reply(q, good, nil)}
		}, 0, 0},
		{"rubbish first", func(q *dns.Msg, _ bool) [][]byte { return [][]byte{{}, {1}, make([]byte, 11), reply(q, good, nil)} }, 0, 0},
		{"wrong letters: asked over TCP", func(q *dns.Msg, tcp bool) [][]byte {
			if tcp {
				return [][]byte{reply(q, good, nil)}
			}
			return [][]byte{reply(q, bad, func(m *dns.Msg) { m.Question[0].Name = flip(m.Question[0].Name) })}
		}, 1, 9},
		{"truncated", func(q *dns.Msg, tcp bool) [][]byte {
			if tcp {
				return [][]byte{reply(q, good, nil)}
			}
			return [][]byte{reply(q, "", func(m *dns.Msg) { m.Truncated = true })}
		}, 1, 9},
		{"truncated in the middle of a record", func(q *dns.Msg, tcp bool) [][]byte {
			if tcp {
				return [][]byte{reply(q, good, nil)}
			}
			b := reply(q, bad, func(m *dns.Msg) { m.Truncated = true })
			return [][]byte{b[:len(b)-14]}
		}, 1, 9},
		{"forged without the cookie that the server is known to give", func(q *dns.Msg, tcp bool) [][]byte {
			c := cookieOf(q)
			if tcp || len(c) == 16 {
				return [][]byte{reply(q, good, func(m *dns.Msg) { cookie(m, c[:16]+"00112233445566778899aabbccddeeff") })}
			}
			return [][]byte{reply(q, bad, nil)}
		}, 1, 9},
		{"forged with another cookie", func(q *dns.Msg, tcp bool) [][]byte {
			if tcp {
				return [][]byte{reply(q, good, nil)}
			}
			return [][]byte{reply(q, bad, func(m *dns.Msg) { cookie(m, "ffffffffffffffff0011223344556677") })}
		}, 1, 9},
	} {
		t.Run(c.what, func(t *testing.T) {
			f := newForwarder(t, c.reply)
			u := testRouter(t, f)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			for i := range 6 {
				q := validatorQuery("Bob.example.")
				ask := u.Exchange
				if i%2 > 0 {
					ask = sendFirst(u)
				}
				m, err := ask(ctx, q)
				if err != nil {
					t.Fatal(err)
				}
				if len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "192.0.2.1" {
					t.Errorf("got %v", m.Answer)
				}
				if m.Id != 4711 || m.Question[0].Name != "Bob.example." || m.Answer[0].Header().Name != "Bob.example." || m.Truncated {
					t.Errorf("got id %d, %v, %v: not as asked", m.Id, m.Question, m.Answer)
				}
				if q.Id != 4711 || q.Question[0].Name != "Bob.example." || len(q.IsEdns0().Option) != 0 {
					t.Errorf("the caller's query was changed: %v", q)
				}
			}
			if n := int(f.tcp.Load()); n < c.min || n > 2*c.max {
				t.Errorf("%d queries over TCP, want %d to %d", n, c.min, 2*c.max)
			}
		})
	}
}

// flip changes the case of the first letter.
func flip(s string) string {
	b := []byte(s)
	b[0] ^= 0x20
	return string(b)
}

func cookie(m *dns.Msg, c string) {
	opt := m.IsEdns0()
	opt.Option = append(opt.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: c})
}

// What goes out: random ids and ports, mixed case, DO and CD as given, 1232 octets; a server that gives names back in lower case
// is asked over TCP once and plainly ever after.
func TestQueries(t *testing.T) {
	var mu sync.Mutex
	ids, names := map[uint16]bool{}, map[string]bool{}
	lower := atomic.Bool{}
	f := newForwarder(t, func(q *dns.Msg, tcp bool) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		ids[q.Id], names[q.Question[0].Name] = true, true
		if o := q.IsEdns0(); o == nil || o.UDPSize() != 1232 || !o.Do() || !q.CheckingDisabled || !q.RecursionDesired {
			t.Errorf("query %v lacks EDNS 1232, DO, CD or RD", q)
		}
		return [][]byte{reply(q, good, func(m *dns.Msg) {
			if lower.Load() {
				m.Question[0].Name = strings.ToLower(m.Question[0].Name)
			}
		})}
	})
	u := testRouter(t, f)
	for range 20 {
		if _, err := u.Exchange(t.Context(), validatorQuery("a-long-name-with-letters.example.")); err != nil {
			t.Fatal(err)
		}
	}
	mu.Lock()
	if len(ids) < 19 || len(names) < 19 {
		t.Errorf("%d ids and %d spellings in 20 queries", len(ids), len(names))
	}
	mu.Unlock()
	lower.Store(true)
	for range 5 {
		if _, err := u.Exchange(t.Context(), validatorQuery("a-long-name-with-letters.example.")); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.tcp.Load(); n != 1 {
		t.Errorf("%d queries over TCP, want 1", n)
	}
}

func TestFailover(t *testing.T) {
	rcode := func(c int) func(q *dns.Msg, _ bool) [][]byte {
		return func(q *dns.Msg, _ bool) [][]byte { return [][]byte{reply(q, "", func(m *dns.Msg) { m.Rcode = c })} }
	}
	silent := func(*dns.Msg, bool) [][]byte { return nil }
	fine := func(q *dns.Msg, _ bool) [][]byte { return [][]byte{reply(q, good, nil)} }
	for _, c := range []struct {
		what   string
		first  func(*dns.Msg, bool) [][]byte
		second func(*dns.Msg, bool) [][]byte
		rcode  int
		under  time.Duration
	}{
		{"SERVFAIL", rcode(dns.RcodeServerFailure), fine, 0, 300 * time.Millisecond},
		{"REFUSED", rcode(dns.RcodeRefused), fine, 0, 300 * time.Millisecond},
		{"silence", silent, fine, 0, time.Second},
		{"both fail: their answer", rcode(dns.RcodeServerFailure), rcode(dns.RcodeServerFailure), dns.RcodeServerFailure, 300 * time.Millisecond},
		{"NXDOMAIN is an answer", rcode(dns.RcodeNameError), fine, dns.RcodeNameError, 300 * time.Millisecond},
	} {
		for _, first := range []bool{false, true} {
			t.Run(fmt.Sprint(c.what, ", sent first: ", first), func(t *testing.T) {
				one, two := newForwarder(t, c.first), newForwarder(t, c.second)
				u := testRouter(t, one, two)
				ask := u.Exchange
				if first {
					ask = sendFirst(u)
				}
				start := time.Now()
				m, err := ask(t.Context(), validatorQuery("bob.example."))
				if err != nil {
					t.Fatal(err)
				}
				if m.Rcode != c.rcode || time.Since(start) > c.under {
					t.Errorf("got %s after %v, want %s under %v", dns.RcodeToString[m.Rcode], time.Since(start), dns.RcodeToString[c.rcode], c.under)
				}
				if c.rcode != 0 {
					return
				}
				before := one.udp.Load()
				if _, err := u.Exchange(t.Context(), validatorQuery("bob.example.")); err != nil {
					t.Fatal(err)
				}
				if n := one.udp.Load(); n != before {
					t.Errorf("the first server was asked again: %d queries more", n-before)
				}
			})
		}
	}
}

// A port that nobody listens on, and one that never answers: an error by the end of ctx, and no goroutine or socket left.
func TestEndsWithItsContext(t *testing.T) {
	f := newForwarder(t, func(*dns.Msg, bool) [][]byte { return nil })
	closed, l, err := listen(netip.AddrPortFrom(loop, 0))
	if err != nil {
		t.Fatal(err)
	}
	gone := closed.LocalAddr().(*net.UDPAddr).AddrPort()
	closed.Close()
	l.Close()
	u, err := New(Config{Servers: []Server{{Addr: gone, Port: gone.Port()}, {Addr: f.addr, Port: f.addr.Port()}}})
	if err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	start := time.Now()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 600*time.Millisecond)
			defer cancel()
			if m, err := u.Exchange(ctx, validatorQuery("bob.example.")); err == nil {
				t.Errorf("got %v, want an error", m)
			}
		})
	}
	wg.Wait()
	if d := time.Since(start); d > 1500*time.Millisecond {
		t.Errorf("took %v, want about 600 ms", d)
	}
	for i := 0; runtime.NumGoroutine() > before && i < 100; i++ {
		time.Sleep(5 * time.Millisecond) // finished goroutines take a moment to be gone
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, before %d", n, before)
	}
	if f.udp.Load() < 20 {
		t.Errorf("the second server saw %d queries, want one each at least", f.udp.Load())
	}
}

func TestControl(t *testing.T) {
	var n atomic.Int32
	f := newForwarder(t, func(q *dns.Msg, tcp bool) [][]byte {
		return [][]byte{reply(q, good, func(m *dns.Msg) { m.Truncated = !tcp })}
	})
	u, err := New(Config{Servers: []Server{{Addr: f.addr, Port: f.addr.Port()}}, Control: func(network, _ string, c syscall.RawConn) error {
		n.Add(1)
		return c.Control(func(fd uintptr) {
			if fd == 0 {
				t.Error("no descriptor")
			}
		})
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Exchange(t.Context(), validatorQuery("bob.example.")); err != nil {
		t.Fatal(err)
	}
	if n.Load() != 2 {
		t.Errorf("control called for %d sockets, want UDP and TCP", n.Load())
	}
}

func TestNewRefuses(t *testing.T) {
	for _, servers := range [][]Server{nil, {{}}, {{Addr: netip.AddrPortFrom(loop, 0)}}, {{TLS: true, Port: 853, Name: "dns.example"}}} {
		if _, err := New(Config{Servers: servers}); err == nil {
			t.Errorf("%v: no error", servers)
		}
	}
}

func TestMixCase(t *testing.T) {
	for _, n := range []string{".", "example.", `a\.b\065\\c.example.`, "192-0-2-1.x.", strings.Repeat("abc.", 60)} {
		changed := false
		for range 50 {
			m := mixCase(n)
			if !strings.EqualFold(m, n) {
				t.Fatalf("mixCase(%q) = %q", n, m)
			}
			changed = changed || m != n
		}
		if !changed && n != "." {
			t.Errorf("%q never changed", n)
		}
	}
}

// A caller sees the letters it asked with, also where the server compressed other names against the mixed question.
func TestRestore(t *testing.T) {
	q := validatorQuery("www.Sub.example.")
	out := q.Copy()
	out.Question[0].Name = "wWw.sUb.eXAmple."
	m := new(dns.Msg)
	m.SetReply(out)
	m.Answer = records("wWw.sUb.eXAmple. 1 IN CNAME host.sUb.eXAmple.", "host.sUb.eXAmple. 1 IN A 192.0.2.1")
	m.Ns = records("eXAmple. 1 IN SOA ns.eXAmple. root.EXAMPLE. 1 1 1 1 1", "notexample. 1 IN NS ns.other.")
	restore(m, q, out)
	want := records("www.Sub.example. 1 IN CNAME host.Sub.example.", "host.Sub.example. 1 IN A 192.0.2.1",
		"example. 1 IN SOA ns.example. root.EXAMPLE. 1 1 1 1 1", "notexample. 1 IN NS ns.other.")
	for i, rr := range append(m.Answer, m.Ns...) {
		if rr.String() != want[i].String() {
			t.Errorf("got %v, want %v", rr, want[i])
		}
	}
}

// What the preferred server said and nobody could prove is asked of the next one; the preference stays.
func TestElsewhere(t *testing.T) {
	fine := func(q *dns.Msg, _ bool) [][]byte { return [][]byte{reply(q, good, nil)} }
	one, two := newForwarder(t, fine), newForwarder(t, fine)
	r := testRouter(t, one, two)
	if got := r.Ways(); !slices.Equal(got, []int{2}) {
		t.Errorf("ways %v, want the second", got)
	}
	for i, ctx := range []context.Context{t.Context(), dnssec.Reroute(t.Context(), 2), t.Context()} {
		if _, err := r.Exchange(ctx, validatorQuery("bob.example.")); err != nil {
			t.Fatal(err)
		}
		if got, want := [2]int32{one.udp.Load(), two.udp.Load()}, [][2]int32{{1, 0}, {1, 1}, {2, 1}}[i]; got != want {
			t.Errorf("after question %d the servers saw %v, want %v", i+1, got, want)
		}
	}
}

// AD is left in an answer where it was asked for so and the server is on this host's loopback, and nowhere else (RFC 6840, 5.8).
func TestAD(t *testing.T) {
	f := newForwarder(t, func(q *dns.Msg, _ bool) [][]byte {
		return [][]byte{reply(q, good, func(m *dns.Msg) { m.AuthenticatedData = true })}
	})
	for _, trust := range []bool{false, true} {
		r, err := New(Config{Servers: []Server{{Addr: f.addr, Port: f.addr.Port()}}, TrustAD: trust})
		if err != nil {
			t.Fatal(err)
		}
		m, err := r.Exchange(t.Context(), validatorQuery("x."))
		if err != nil || m.AuthenticatedData != trust {
			t.Errorf("trusted %v: got %v, %v", trust, m, err)
		}
	}
	for text, want := range map[string]bool{"127.0.0.1": true, "127.9.9.9:5335": true, "::1": true, "192.0.2.53": false, "2001:db8::53": false, "tls://127.0.0.1#localhost": false} {
		s, err := ParseServer(text)
		if err != nil {
			t.Fatal(err)
		}
		r, err := New(Config{Servers: []Server{s}, TrustAD: true, Iterate: true})
		if err != nil {
			t.Fatal(err)
		}
		if r.ways[0].believed != want || r.ways[1].believed {
			t.Errorf("%s: believed %v, the authorities %v", text, r.ways[0].believed, r.ways[1].believed)
		}
	}
}

// A user whose questions nobody answers has half of the places at most, and keeps nobody waiting (TRUST.md A-36).
func TestOneUserFloods(t *testing.T) {
	f := newForwarder(t, func(q *dns.Msg, _ bool) [][]byte {
		if strings.HasPrefix(strings.ToLower(q.Question[0].Name), "bob.") {
			return [][]byte{reply(q, good, nil)}
		}
		return nil
	})
	u := testRouter(t, f)
	u.places = fair.New(20)
	ctx, cancel := context.WithCancel(dnssec.OnBehalf(t.Context(), "flood"))
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() { _, _ = u.Exchange(ctx, validatorQuery(fmt.Sprintf("n%d.example.", i))) })
	}
	for u.places.Used() < 10 {
		time.Sleep(time.Millisecond)
	}
	for range 20 {
		tctx, stop := context.WithTimeout(dnssec.OnBehalf(t.Context(), "other"), 300*time.Millisecond)
		if _, err := u.Exchange(tctx, validatorQuery("bob.example.")); err != nil {
			t.Errorf("another's question: %v", err)
		}
		stop()
	}
	if n := u.places.Used(); n != 10 {
		t.Errorf("%d places are taken", n)
	}
	cancel()
	wg.Wait()
	if n := u.places.Used(); n != 0 {
		t.Errorf("%d places are left of it", n)
	}
}
