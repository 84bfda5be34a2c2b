package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
	"tacit/fair"
)

// ask asks for an address, within the time that a lookup has.
func (tr *tree) ask(a *authorities, name string) string {
	tr.t.Helper()
	ctx, cancel := context.WithTimeout(tr.t.Context(), 5*time.Second)
	defer cancel()
	return text(a.ask(ctx, in(name, dns.TypeA)))
}

// From the root to the leaf: each server is told no more of the name than it needs (RFC 9156), and is not asked again for what it has said.
func TestIteration(t *testing.T) {
	tr := newTree(t)
	a := tr.authorities()
	for _, c := range []struct{ name, want, root, test, deep, other string }{
		{"www.deep.test.", "NOERROR 192.0.2.3", ". NS, test. A", "deep.test. A", "www.deep.test. A", ""},
		{"a.b.c.test.", "NOERROR 192.0.2.2", "", "c.test. A, b.c.test. A, a.b.c.test. A", "", ""},
		{"nothing.test.", "NXDOMAIN", "", "nothing.test. A", "", ""},
		{"a.b.nothing.test.", "NXDOMAIN", "", "nothing.test. A, a.b.nothing.test. A", "", ""}, // the proof is for the whole name
		{"b.c.test.", "NOERROR", "", "c.test. A, b.c.test. A", "", ""},
		{"alias.test.", "NOERROR www.test.", "", "alias.test. A", "", ""}, // the validator follows
		{"www.other.", "NOERROR 192.0.2.4", "other. A", "", "", "www.other. A"},
		{"away.test.", "NOERROR www.other.", "", "away.test. A", "", ""},
		{"no.such.", "NXDOMAIN", "such. A, no.such. A", "", "", ""},
		{".", "NOERROR", ". A", "", "", ""},
	} {
		if got := tr.ask(a, c.name); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
		for at, want := range map[netip.Addr]string{rootAddr: c.root, testAddr: c.test, deepAddr: c.deep, otherAddr: c.other} {
			if got := strings.Join(tr.asked(at), ", "); got != want {
				t.Errorf("%s: %s was asked %q, want %q", c.name, at, got, want)
			}
		}
	}
	// A DS is the parent's to say, and comes from there.
	if got := text(a.ask(t.Context(), in("deep.test.", dns.TypeDS))); !strings.HasPrefix(got, "NOERROR 1 15 2 FFFF") || len(tr.asked(deepAddr)) > 0 {
		t.Errorf("DS: got %q", got)
	}
	if got := tr.ask(a, strings.Repeat("x.", 60)+"test."); got != "NXDOMAIN" || len(tr.asked(testAddr)) > 13 {
		t.Errorf("many labels: got %q", got)
	}
}

// Many labels take few questions (RFC 9156, 2.3), and each of them is a name of its own that ends in the whole one.
func TestShortener(t *testing.T) {
	for _, labels := range []int{0, 1, 2, 3, 5, 9, 10, 11, 34, 120} {
		full := strings.Repeat("a.", labels)
		if labels == 0 {
			full = "."
		}
		s := shortener{zone: ".", full: full}
		last, n := "", 0
		for whole := false; !whole; n++ {
			var name string
			if name, whole = s.next(); !within(name, last) && last != "" || name == last || n > shortenedMax {
				t.Fatalf("%d labels: question %d is %s after %s", labels, n, name, last)
			}
			last = name
		}
		if last != full || n > shortenedMax+1 {
			t.Errorf("%d labels: %d questions, the last %s", labels, n, last)
		}
	}
}

// An intermediate name on which servers fail, or lie, is not the whole name (RFC 9156, 2.3).
func TestServersThatFailOnShortNames(t *testing.T) {
	for _, rcode := range []int{dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNameError, dns.RcodeNotImplemented} {
		tr := newTree(t)
		tr.lie(testAddr, func(q, m *dns.Msg, _ bool) *dns.Msg {
			if q.Question[0].Qtype == dns.TypeA && !strings.EqualFold(q.Question[0].Name, "a.b.c.test.") {
				m.Rcode = rcode
			}
			return m
		})
		a := tr.authorities()
		want := "NOERROR 192.0.2.2"
		if got := tr.ask(a, "a.b.c.test."); got != want {
			t.Errorf("%s: got %q, want %q", dns.RcodeToString[rcode], got, want)
		}
	}
}

// twoServers gives deep.test. a first server that the test makes lie, and the good one.
func twoServers(t *testing.T, lie func(q, m *dns.Msg, tcp bool) *dns.Msg) *tree {
	tr := newTree(t)
	tr.zone(testAddr, "test.", "@ 300 NS ns.test.", "ns.test. 300 A 127.53.0.2", "deep.test. 300 NS bad.deep.test.", "deep.test. 300 NS ns.deep.test.",
		"ns.deep.test. 300 A 127.53.0.4", "bad.deep.test. 300 A 127.53.0.66")
	tr.zone(evilAddr, "deep.test.", "@ 300 NS ns.deep.test.", "www.deep.test. 300 A 192.0.2.66")
	tr.lie(evilAddr, lie)
	return tr
}

// A server that does not serve the zone is passed over, at once, and for a while.
func TestLameServers(t *testing.T) {
	for what, lie := range map[string]func(q, m *dns.Msg, tcp bool) *dns.Msg{
		"refuses":   func(_, m *dns.Msg, _ bool) *dns.Msg { m.Rcode, m.Answer = dns.RcodeRefused, nil; return m },
		"fails":     func(_, m *dns.Msg, _ bool) *dns.Msg { m.Rcode, m.Answer = dns.RcodeServerFailure, nil; return m },
		"recurses":  func(_, m *dns.Msg, _ bool) *dns.Msg { m.Authoritative, m.RecursionAvailable = false, true; return m },
		"is silent": func(*dns.Msg, *dns.Msg, bool) *dns.Msg { return nil },
		"refers upwards": func(_, m *dns.Msg, _ bool) *dns.Msg {
			m.Answer, m.Authoritative, m.Ns = nil, false, records(". 300 NS ns.root.")
			return m
		},
		"refers to itself": func(_, m *dns.Msg, _ bool) *dns.Msg {
			m.Answer, m.Authoritative, m.Ns = nil, false, records("deep.test. 300 NS bad.deep.test.")
			return m
		},
		"refers sideways": func(_, m *dns.Msg, _ bool) *dns.Msg {
			m.Answer, m.Authoritative, m.Ns = nil, false, records("x.deep.test. 300 NS bad.deep.test.", "other. 300 NS bad.deep.test.")
			return m
		},
		"answers another question": func(_, m *dns.Msg, _ bool) *dns.Msg { m.Question[0].Qtype = dns.TypeTXT; return m },
	} {
		t.Run(what, func(t *testing.T) {
			tr := twoServers(t, lie)
			a := tr.authorities()
			for range 4 {
				if got := tr.ask(a, "www.deep.test."); got != "NOERROR 192.0.2.3" {
					t.Errorf("got %q", got)
				}
			}
			if n := len(tr.asked(evilAddr)); n > 2 {
				t.Errorf("asked %d times", n)
			}
		})
	}
}

// What a server says of names that are not its zone's is not kept, and nobody is asked on its word: neither glue nor answers nor referrals (RFC 5452, 6).
func TestForgedGlueAndBailiwick(t *testing.T) {
	tr := newTree(t)
	tr.zone(evilAddr, "other.", "www.other. 300 A 192.0.2.66", "srv.other. 300 A 127.53.0.66")
	tr.zone(evilAddr, "deep.test.", "www.deep.test. 300 A 192.0.2.66")
	// deep.test.'s server has a name in other., and test.'s server says where that is.
	tr.zone(testAddr, "test.", "@ 300 NS ns.test.", "ns.test. 300 A 127.53.0.2", "deep.test. 300 NS srv.other.",
		"away.test. 300 CNAME www.other.")
	tr.lie(testAddr, func(_, m *dns.Msg, _ bool) *dns.Msg {
		m.Extra = append(records("srv.other. 300 A 127.53.0.66", "ns.other. 300 A 127.53.0.66", "ns.root. 300 A 127.53.0.66"), m.Extra...)
		if m.Authoritative {
			m.Answer = append(m.Answer, records("www.other. 300 A 192.0.2.66", "test. 300 NS srv.other.")...)
			m.Ns = append(m.Ns, records("other. 300 NS srv.other.", ". 300 NS srv.other.", "other. 300 SOA a. b. 1 1 1 1 1")...)
		}
		return m
	})
	a := tr.authorities()
	if got := tr.ask(a, "www.deep.test."); got != "NOERROR 192.0.2.3" {
		t.Errorf("got %q", got)
	}
	m, err := a.ask(t.Context(), in("nothing.test.", dns.TypeA))
	if err != nil || len(m.Answer) > 0 || len(m.Extra) > 0 || len(m.Ns) != 1 || m.Ns[0].Header().Name != "test." {
		t.Errorf("got %v, %v", m, err)
	}
	if got := tr.ask(a, "away.test."); got != "NOERROR www.other." { // where the alias leads is for other.'s servers to say
		t.Errorf("away.test.: got %q", got)
	}
	for _, name := range []string{"www.other.", "www.deep.test.", "www.test."} {
		if got := tr.ask(a, name); strings.Contains(got, "192.0.2.66") {
			t.Errorf("%s: got %q", name, got)
		}
	}
	if got := tr.asked(evilAddr); len(got) > 0 {
		t.Errorf("the forger was asked %v", got)
	}
}

// Glue is the cut's own: what one zone's parent says of a server's name is not believed for another zone.
func TestGlueStaysWithItsCut(t *testing.T) {
	tr := newTree(t)
	tr.zone(rootAddr, ".", "@ 300 NS ns.root.", "ns.root. 300 A 127.53.0.1", "test. 300 NS ns.test.", "ns.test. 300 A 127.53.0.2",
		"evil. 300 NS ns.evil.", "ns.evil. 300 A 127.53.0.66")
	tr.zone(evilAddr, "evil.", "@ 300 NS ns.evil.", "x.evil. 300 NS ns.test.", "x.evil. 300 NS ns.x.evil.", "ns.x.evil. 300 A 127.53.0.66")
	tr.zone(evilAddr, "test.", "www.test. 300 A 192.0.2.66")
	a := tr.authorities()
	tr.ask(a, "a.x.evil.")
	if got := tr.ask(a, "www.test."); got != "NOERROR 192.0.2.1" {
		t.Errorf("got %q", got)
	}
}

// Zones whose servers' names lie in one another, or in themselves without glue, end soon.
func TestDelegationLoops(t *testing.T) {
	tr := newTree(t)
	root := []string{"@ 300 NS ns.root.", "ns.root. 300 A 127.53.0.1", "self. 300 NS ns.self.", "a. 300 NS ns.b.", "b. 300 NS ns.c.", "c. 300 NS ns.a.", "c. 300 NS ns2.b."}
	tr.zone(rootAddr, ".", root...)
	a := tr.authorities()
	for _, name := range []string{"www.self.", "www.a.", "www.b.", "x.y.z.c."} {
		began := time.Now()
		if got := tr.ask(a, name); got != "error" || time.Since(began) > time.Second {
			t.Errorf("%s: got %q after %v", name, got, time.Since(began))
		}
		if n := len(tr.asked(rootAddr)); n > 12 {
			t.Errorf("%s: %d questions to the root", name, n)
		}
	}
	// Many at once do not wait for one another in a circle.
	var wg sync.WaitGroup
	began := time.Now()
	for i := range 12 {
		wg.Go(func() { tr.ask(a, "x."+string(rune('a'+i%3))+".") })
	}
	wg.Wait()
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("12 at once took %v", d)
	}
}

// NXNSAttack (CVE-2020-12662): a referral to many servers of a victim's zone without addresses has a few of them looked up, however it is asked.
func TestReferralFanOut(t *testing.T) {
	tr := newTree(t)
	zone := []string{"@ 300 NS ns.test.", "ns.test. 300 A 127.53.0.2"}
	for i := range 100 {
		zone = append(zone, fmt.Sprintf("deep.test. 300 NS n%d.other.", i))
	}
	tr.zone(testAddr, "test.", zone...)
	a := tr.authorities()
	for i := range 5 {
		if got := tr.ask(a, fmt.Sprintf("w%d.deep.test.", i)); got != "error" {
			t.Errorf("got %q", got)
		}
		if n := len(tr.asked(otherAddr)); n > 2*maxLookedUp {
			t.Errorf("question %d: %d questions to the victim", i, n)
		}
	}
}

// A referral whose servers' names need referrals that need others: neither a question of ours nor a lookup asks more than its bounds, whoever asks.
func TestNestedReferrals(t *testing.T) {
	tr := newTree(t)
	// Everything below evil. is delegated to ten servers in ten zones below evil.
	tr.zone(rootAddr, ".", "@ 300 NS ns.root.", "ns.root. 300 A 127.53.0.1", "evil. 300 NS ns.evil.", "ns.evil. 300 A 127.53.0.66")
	tr.zone(evilAddr, "evil.")
	var mu sync.Mutex
	serial := 0
	tr.lie(evilAddr, func(q, m *dns.Msg, _ bool) *dns.Msg {
		mu.Lock()
		defer mu.Unlock()
		name := dns.CanonicalName(q.Question[0].Name)
		labels := dns.SplitDomainName(name)
		m.Answer, m.Ns, m.Extra, m.Rcode, m.Authoritative = nil, nil, nil, 0, false
		for range 10 {
			serial++
			m.Ns = append(m.Ns, records(fmt.Sprintf("%s.evil. 300 NS ns.z%d.evil.", labels[len(labels)-2], serial))...)
		}
		return m
	})
	a := tr.authorities()
	if got := tr.ask(a, "www.x.evil."); got != "error" {
		t.Errorf("got %q", got)
	}
	if n := len(tr.asked(evilAddr)); n > 16 { // of which six names of servers
		t.Errorf("%d questions for one", n)
	}
	// With a validator the budget is the lookup's, of all its questions by all ways.
	r := &Router{log: discard, places: fair.New(9), ways: []*way{{carrier: a, name: Direct, direct: true}}, told: map[string]bool{}}
	v := dnssec.New(r, dnssec.RootAnchors())
	for range 3 {
		if got, err := v.Lookup(t.Context(), "www."+strings.Repeat("x.", 20)+"evil.", dns.TypeA); err == nil && got.Status >= dnssec.Insecure {
			t.Errorf("got %v", got)
		}
		if n := len(tr.asked(evilAddr)) + len(tr.asked(rootAddr)); n > 128 {
			t.Errorf("%d questions for a lookup", n)
		}
	}
}

// Every question to a server counts, against the bound of one question of ours and against the lookup's.
func TestSendsAreCounted(t *testing.T) {
	tr := newTree(t)
	total := func() int {
		return len(tr.asked(rootAddr)) + len(tr.asked(testAddr)) + len(tr.asked(deepAddr))
	}
	for left := range int64(5) { // the root twice, test., deep.test.
		d := &descent{authorities: tr.authorities()}
		d.sends.Store(left)
		_, _, err := d.resolve(t.Context(), "www.deep.test.", dns.TypeA, nil)
		if n := total(); n != int(left) || (err == nil) != (left == 4) || err != nil && !errors.Is(err, dnssec.ErrSpent) {
			t.Errorf("%d sends left: %d questions, %v", left, n, err)
		}
	}
	a := tr.authorities()
	v := dnssec.New(exchangeFunc(func(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
		if q.Question[0].Qtype != dns.TypeA {
			return nil, errors.New("no")
		}
		n := 0
		for range 126 {
			if dnssec.Spend(ctx) {
				n++
			}
		}
		if m, err := a.ask(ctx, q); !errors.Is(err, dnssec.ErrSpent) || n != 126 {
			t.Errorf("after %d of 128 questions: %v, %v", n, m, err)
		}
		return nil, errors.New("no")
	}), dnssec.RootAnchors())
	if _, err := v.Lookup(t.Context(), "www.deep.test.", dns.TypeA); err != nil {
		t.Error(err)
	}
	if n := total(); n != 2 {
		t.Errorf("%d questions with 2 left", n)
	}
}

// exchangeFunc is a dnssec.Exchanger.
type exchangeFunc func(ctx context.Context, q *dns.Msg) (*dns.Msg, error)

func (f exchangeFunc) Exchange(ctx context.Context, q *dns.Msg) (*dns.Msg, error) { return f(ctx, q) }

// TCP has what UDP has not; a server older than EDNS is asked without it.
func TestAuthoritiesByTCPAndWithoutEDNS(t *testing.T) {
	tr := newTree(t)
	tr.lie(testAddr, func(_, m *dns.Msg, tcp bool) *dns.Msg {
		if !tcp {
			m.Truncated, m.Answer, m.Ns = true, nil, nil
		}
		return m
	})
	tr.lie(otherAddr, func(q, m *dns.Msg, _ bool) *dns.Msg {
		if q.IsEdns0() != nil {
			m.Rcode, m.Answer, m.Extra = dns.RcodeFormatError, nil, nil
		}
		return m
	})
	a := tr.authorities()
	if got := tr.ask(a, "www.test."); got != "NOERROR 192.0.2.1" {
		t.Errorf("truncated: got %q", got)
	}
	if got := tr.ask(a, "www.other."); got != "NOERROR 192.0.2.4" {
		t.Errorf("without EDNS: got %q", got)
	}
}

// A delegation ends with its TTL in the parent, whatever the child's servers say (ghost domains, A-34).
//
//tacit:attack A-34 a delegation ends with its TTL in the parent
func TestGhostDelegation(t *testing.T) {
	tr := newTree(t)
	a := tr.authorities()
	now := time.Now()
	a.now = func() time.Time { return now }
	tr.zone(deepAddr, "deep.test.", "@ 86400 NS ns.deep.test.", "ns.deep.test. 86400 A 127.53.0.4", "www.deep.test. 86400 A 192.0.2.3")
	if got := tr.ask(a, "www.deep.test."); got != "NOERROR 192.0.2.3" {
		t.Fatalf("got %q", got)
	}
	tr.zone(testAddr, "test.", "@ 300 NS ns.test.", "ns.test. 300 A 127.53.0.2") // withdrawn
	for range 4 {
		now = now.Add(100 * time.Second)
		_, _ = a.ask(t.Context(), in("deep.test.", dns.TypeNS)) // what the child says of itself renews nothing
	}
	if got := tr.ask(a, "www.deep.test."); got != "NXDOMAIN" {
		t.Errorf("got %q", got)
	}
}

// An answer without the cookie that the server is known to give is asked again over TCP; a name in other letters too.
//
//tacit:attack A-33 asked again over TCP
func TestAuthoritiesAreNotSpoofed(t *testing.T) {
	const secret = "00112233445566778899aabbccddeeff"
	tr := newTree(t)
	forge := func(_, m *dns.Msg, tcp bool) *dns.Msg { return m }
	tr.lie(testAddr, func(q, m *dns.Msg, tcp bool) *dns.Msg {
		if c := cookieOf(q); len(c) >= 16 {
			cookie(m, c[:16]+secret)
		}
		return forge(q, m, tcp)
	})
	a := tr.authorities()
	if got := tr.ask(a, "www.test."); got != "NOERROR 192.0.2.1" {
		t.Fatalf("got %q", got)
	}
	bad := records("www.test. 300 A 192.0.2.66")
	for what, f := range map[string]func(m *dns.Msg){
		"no cookie": func(m *dns.Msg) { m.Answer, m.Extra = bad, nil; m.SetEdns0(1232, true) },
		"another cookie": func(m *dns.Msg) {
			m.Answer, m.Extra = bad, nil
			m.SetEdns0(1232, true)
			cookie(m, "ffffffffffffffff"+secret)
		},
		"other letters": func(m *dns.Msg) { m.Answer, m.Question[0].Name = bad, flip(m.Question[0].Name) },
	} {
		tr.servers[testAddr].mu.Lock()
		forge = func(_, m *dns.Msg, tcp bool) *dns.Msg {
			if !tcp {
				f(m)
			}
			return m
		}
		tr.servers[testAddr].mu.Unlock()
		if got := tr.ask(a, "www.test."); got != "NOERROR 192.0.2.1" {
			t.Errorf("%s: got %q", what, got)
		}
	}
}

// Our own addresses are asked by nobody who was told so by another zone's servers.
func TestOwnAddressIsNoAuthority(t *testing.T) {
	tr := newTree(t)
	a := tr.authorities()
	a.local = false // as on any host: the hints are not on loopback
	if got := tr.ask(a, "www.test."); got != "error" || len(tr.asked(rootAddr)) > 0 {
		t.Errorf("got %q", got)
	}
	s := newPlain(dialer{}, netip.AddrPortFrom(testAddr, tr.port).String())
	s.foreign = true
	if _, err := s.ask(t.Context(), in("www.test.", dns.TypeA)); err == nil || len(tr.asked(testAddr)) > 0 {
		t.Errorf("an address of this host was asked: %v", err)
	}
}

// The root's servers are those that the root names, not those of the hints (RFC 9609); where none answers, that is said.
func TestPriming(t *testing.T) {
	tr := newTree(t)
	tr.zone(deepAddr, ".", "@ 300 NS ns.root.", "@ 300 NS ns2.root.", "ns.root. 300 A 127.53.0.1")
	a := newAuthorities(dialer{}, []Hint{{"old.root.", []netip.Addr{deepAddr}}})
	a.port = tr.port
	if got := tr.ask(a, "www.test."); got != "NOERROR 192.0.2.1" {
		t.Errorf("got %q", got)
	}
	if got := tr.asked(deepAddr); !slices.Equal(got, []string{". NS"}) {
		t.Errorf("the hint was asked %v", got)
	}
	tr.lie(deepAddr, func(*dns.Msg, *dns.Msg, bool) *dns.Msg { return nil })
	a.renew()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if m, err := a.ask(ctx, in("www.test.", dns.TypeA)); err == nil {
		t.Errorf("got %v", m)
	}
}
