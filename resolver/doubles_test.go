package resolver

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// zone is a Lookuper out of a table. A missing question is a secure denial; a missing name as well.
type zone struct {
	mu    sync.Mutex
	m     map[question]func(ctx context.Context) (dnssec.Answer, error)
	asked map[question]int
}

func newZone() *zone {
	return &zone{m: map[question]func(context.Context) (dnssec.Answer, error){}, asked: map[question]int{}}
}

func (z *zone) Lookup(ctx context.Context, name string, typ uint16) (dnssec.Answer, error) {
	q := question{name, typ}
	z.mu.Lock()
	z.asked[q]++
	f := z.m[q]
	z.mu.Unlock()
	if f == nil {
		return denial(name, typ, dnssec.Secure), nil
	}
	return f(ctx)
}

func (z *zone) count(name string, typ uint16) int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.asked[question{name, typ}]
}

// add puts an answer into the zone, made from records in presentation form.
func (z *zone) add(name string, typ uint16, st dnssec.Status, rrs ...string) {
	a := answer(name, typ, st, rrs...)
	z.m[question{name, typ}] = func(context.Context) (dnssec.Answer, error) { return a, nil }
}

// slow makes a question wait for d, or for its ctx.
func (z *zone) slow(name string, typ uint16, d time.Duration) {
	before := z.m[question{name, typ}]
	z.m[question{name, typ}] = func(ctx context.Context) (dnssec.Answer, error) {
		select {
		case <-time.After(d):
			if before != nil {
				return before(ctx)
			}
			return denial(name, typ, dnssec.Secure), nil
		case <-ctx.Done():
			return dnssec.Answer{}, ctx.Err()
		}
	}
}

func records(texts ...string) (rrs []dns.RR) {
	for _, t := range texts {
		rr, err := dns.NewRR(t)
		if err != nil {
			panic(t + ": " + err.Error())
		}
		rrs = append(rrs, rr)
	}
	return rrs
}

// answer follows CNAMEs in the records as the validator would.
func answer(name string, typ uint16, st dnssec.Status, texts ...string) dnssec.Answer {
	a := dnssec.Answer{Name: name, Type: typ, Owner: name, Chain: []string{name}, Status: st, Msg: new(dns.Msg), EDE: dnssec.NoEDE}
	a.Msg.SetQuestion(name, typ)
	a.Msg.Response = true
	for _, rr := range records(texts...) {
		switch t := rr.Header().Rrtype; t {
		case dns.TypeSOA, dns.TypeNS, dns.TypeNSEC, dns.TypeNSEC3:
			if t != typ {
				a.Msg.Ns = append(a.Msg.Ns, rr)
				continue
			}
		case dns.TypeCNAME:
			if typ != t {
				a.Owner = dns.CanonicalName(rr.(*dns.CNAME).Target)
				a.Chain = append(a.Chain, a.Owner)
			}
		}
		a.Msg.Answer = append(a.Msg.Answer, rr)
		if h := rr.Header(); h.Rrtype == typ && dns.CanonicalName(h.Name) == a.Owner {
			a.RRs = append(a.RRs, rr)
		}
	}
	a.Denied = len(a.RRs) == 0
	if st == dnssec.Bogus {
		a.EDE, a.Why = dns.ExtendedErrorCodeDNSBogus, "a signature does not verify"
	}
	return a
}

func denial(name string, typ uint16, st dnssec.Status) dnssec.Answer {
	return answer(name, typ, st, "example. 60 IN SOA ns.example. root.example. 1 1 1 1 30")
}

// watcher is a Watcher out of functions; without them it withholds what TRUST.md 1 withholds for private-or-clear, and never
// releases an address in lame.
type watcher struct {
	interest func(string) Interest
	watch    func(context.Context, Found) Verdict
	lame     []string

	mu    sync.Mutex
	found []Found
}

func (w *watcher) Interest(name string) Interest {
	if w.interest != nil {
		return w.interest(name)
	}
	return AskKey
}

func (w *watcher) Watch(ctx context.Context, f Found) (v Verdict) {
	w.mu.Lock()
	w.found = append(w.found, f)
	w.mu.Unlock()
	if w.watch != nil {
		return w.watch(ctx, f)
	}
	if f.AddrStatus == dnssec.Insecure {
		return v
	}
	if f.KeyStatus < dnssec.Insecure {
		return withholdAll(f.Addrs, dns.ExtendedErrorCodeDNSSECIndeterminate, "no proof that there is no key: "+f.KeyWhy)
	}
	for _, a := range f.Addrs {
		if slices.Contains(w.lame, a.String()) && len(f.Keys) > 0 {
			v.Withhold = append(v.Withhold, Withheld{Addr: a, EDE: dns.ExtendedErrorCodeProhibited, Why: "no answer from " + a.String()})
		}
	}
	return v
}

// Known never knows: Watch is asked.
func (w *watcher) Known(Found) (Verdict, bool) { return Verdict{}, false }

func (w *watcher) last(t *testing.T) Found {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.found) == 0 {
		t.Fatal("the watcher was not called")
	}
	return w.found[len(w.found)-1]
}

func (w *watcher) calls() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.found)
}

// An Ed25519 key, RFC 8410's example, as IPSECKEY without a gateway.
const key = "IPSECKEY 10 0 4 . Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE="

// question flags for ask.
type flags struct{ do, cd, ad, edns bool }

func newQuery(name string, typ uint16, f flags) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, typ)
	m.CheckingDisabled, m.AuthenticatedData = f.cd, f.ad
	if f.do || f.edns {
		m.SetEdns0(1232, f.do)
	}
	return m
}

func testServer(t testing.TB, z Lookuper, w Watcher, change ...func(*Config)) *Server {
	t.Helper()
	c := Config{Lookup: z, Watcher: w, Hold: 300 * time.Millisecond}
	for _, f := range change {
		f(&c)
	}
	s := newServer(c)
	t.Cleanup(s.Close)
	return s
}

// ask sends a query through the packet path, as TCP does, and reads the answer back. It may be called in any goroutine.
func ask(t testing.TB, s *Server, q *dns.Msg) *dns.Msg {
	t.Helper()
	r := new(dns.Msg)
	b, err := q.Pack()
	if err != nil {
		t.Error(err)
		return r
	}
	if err := r.Unpack(s.serve(b, origin{tcp: true})); err != nil {
		t.Errorf("answer: %v", err)
		return r
	}
	if r.Id != q.Id || !r.Response {
		t.Errorf("head %+v does not answer id %d", r.MsgHdr, q.Id)
	}
	return r
}

// outcomeOf is an answer in one line: rcode, AD, data of the answer section, EDE codes.
func outcomeOf(r *dns.Msg) string {
	s := dns.RcodeToString[r.Rcode]
	if r.AuthenticatedData {
		s += " ad"
	}
	for _, rr := range r.Answer {
		s += " " + strings.TrimPrefix(rr.String(), rr.Header().String())
	}
	if c := edes(r); c != "" {
		s += " ede=" + c
	}
	return s
}

func edes(r *dns.Msg) string {
	var ss []string
	if opt := r.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				ss = append(ss, dns.ExtendedErrorCodeToString[e.InfoCode])
			}
		}
	}
	return strings.Join(ss, ",")
}

// exchanger is a dnssec.Exchanger out of a function.
type exchanger func(ctx context.Context, q *dns.Msg) (*dns.Msg, error)

func (f exchanger) Exchange(ctx context.Context, q *dns.Msg) (*dns.Msg, error) { return f(ctx, q) }

var (
	errTest = errors.New("test: unreachable")
	loop    = netip.MustParseAddr("127.0.0.1")
)
