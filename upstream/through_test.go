package upstream

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
	"tacit/lab"
)

// signedNames are a signed root, test. with bob and his key, and an unsigned zone.
func signedNames(t *testing.T) (*lab.DNS, *dnssec.Anchors) {
	t.Helper()
	d, err := lab.NewDNS()
	for _, do := range []func() error{
		func() error { return d.AddZone("test.", true) }, func() error { return d.AddZone("plain.", false) },
		func() error {
			return d.Add("bob.test. 300 A 192.0.2.1", "bob.test. 300 IPSECKEY 10 0 4 . Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=",
				"carol.test. 300 A 192.0.2.2", "carol.test. 300 IPSECKEY 10 0 4 . Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=", "host.plain. 300 A 192.0.2.3")
		},
	} {
		if err == nil {
			err = do()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	anchors, err := dnssec.ParseAnchors([]byte(d.TrustAnchor()), "anchors")
	if err != nil {
		t.Fatal(err)
	}
	return d, anchors
}

// fault is what a forwarder does to an answer; nil is silence.
type fault func(q, m *dns.Msg, tcp bool) *dns.Msg

// newFaulty is a forwarder with a fault.
func newFaulty(t *testing.T, d *lab.DNS, f fault) *forwarder {
	t.Helper()
	return newForwarder(t, func(q *dns.Msg, tcp bool) [][]byte {
		m := d.Answer(q)
		if f != nil {
			if m = f(q, m, tcp); m == nil {
				return nil
			}
		}
		b, err := m.Pack()
		if err != nil {
			panic(err)
		}
		return [][]byte{b}
	})
}

// stripped is m without signatures.
func stripped(m *dns.Msg) *dns.Msg {
	for _, section := range []*[]dns.RR{&m.Answer, &m.Ns} {
		var kept []dns.RR
		for _, rr := range *section {
			if rr.Header().Rrtype != dns.TypeRRSIG {
				kept = append(kept, rr)
			}
		}
		*section = kept
	}
	return m
}

// faults are what middle boxes do to DNSSEC, and what a probe says of it.
var faults = []struct {
	what, why string
	dead      bool // even the names that no proof is wanted for do not pass
	fault     fault
}{
	{"strips RRSIG", "signatures do not pass: the answer comes without its proof", false, func(_, m *dns.Msg, _ bool) *dns.Msg { return stripped(m) }},
	{"does not know EDNS", "signatures do not pass: FORMERR", true, func(q, m *dns.Msg, _ bool) *dns.Msg {
		if q.IsEdns0() != nil {
			m = new(dns.Msg).SetRcode(q, dns.RcodeFormatError)
		}
		return m
	}},
	{"drops TYPE45", "TYPE45 does not pass: no answer in time", false, forKeys(func(m *dns.Msg) *dns.Msg { return nil })},
	{"NOTIMP for TYPE45", "TYPE45 does not pass: NOTIMP", false, forKeys(func(m *dns.Msg) *dns.Msg { m.Rcode, m.Answer, m.Ns = dns.RcodeNotImplemented, nil, nil; return m })},
	{"SERVFAIL for TYPE45", "TYPE45 does not pass: SERVFAIL", false, forKeys(func(m *dns.Msg) *dns.Msg { m.Rcode, m.Answer, m.Ns = dns.RcodeServerFailure, nil, nil; return m })},
	{"nothing for TYPE45", "TYPE45 does not pass: the answer comes without its proof", false, forKeys(func(m *dns.Msg) *dns.Msg { m.Answer, m.Ns = nil, nil; return m })},
	{"truncates, and filters TCP", "signatures do not pass: the answer is truncated, and TCP does not pass", false, func(q, m *dns.Msg, tcp bool) *dns.Msg {
		if tcp {
			return nil
		}
		if m.Len() > 120 {
			m.Answer, m.Ns, m.Truncated = nil, nil, true
		}
		return m
	}},
	{"drops large answers", "large answers do not pass: no answer in time", false, func(_, m *dns.Msg, _ bool) *dns.Msg {
		if m.Len() > 360 {
			return nil
		}
		return m
	}},
	{"is silent", "no answer in time", true, func(_, m *dns.Msg, _ bool) *dns.Msg { return nil }},
}

func forKeys(f func(m *dns.Msg) *dns.Msg) fault {
	return func(q, m *dns.Msg, _ bool) *dns.Msg {
		if q.Question[0].Qtype == dns.TypeIPSECKEY {
			return f(m)
		}
		return m
	}
}

// lines counts the lines of a log that have a text.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) with(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// through looks a name up and says how it ended and by which way.
func through(t *testing.T, v *dnssec.Validator, name string, rrtype uint16) (string, dnssec.Answer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	a, err := v.Lookup(ctx, name, rrtype)
	if err != nil {
		t.Errorf("%s: %v", name, err)
	}
	n := len(a.RRs)
	return strings.TrimSpace(strings.Join([]string{a.Status.String(), map[bool]string{true: "data"}[n > 0]}, " ")), a
}

// Whatever the first upstream does to DNSSEC, names are proven by the next one: found out by a probe, or by the proof that does not come. The names that no
// proof is wanted for stay with the first.
func TestGettingThrough(t *testing.T) {
	for _, c := range faults {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			d, anchors := signedNames(t)
			bad, fine := newFaulty(t, d, c.fault), newFaulty(t, d, nil)
			for _, probed := range []bool{false, true} {
				log := &lines{}
				r, err := New(Config{Servers: []Server{{Addr: bad.addr, Port: bad.addr.Port()}, {Addr: fine.addr, Port: fine.addr.Port()}},
					Log: slog.New(slog.NewTextHandler(log, nil))})
				if err != nil {
					t.Fatal(err)
				}
				if probed {
					r.Probe(t.Context())
					if s := r.States(); s[0].Why != c.why || s[0].OK || !s[1].OK {
						t.Fatalf("states %+v, want %q", s, c.why)
					}
					r.Probe(t.Context()) // what was said is not said again
				}
				v := dnssec.New(r, anchors)
				for _, name := range []string{"bob.test.", "carol.test.", "bob.test."} {
					for _, rrtype := range []uint16{dns.TypeA, dns.TypeIPSECKEY} {
						began := time.Now()
						got, a := through(t, v, name, rrtype)
						if got != "secure data" {
							t.Errorf("probed %t: %s %s is %s: %s", probed, name, dns.TypeToString[rrtype], got, a.Why)
						}
						if small := c.what == "drops large answers" && !probed; rrtype == dns.TypeIPSECKEY && !small && (a.Via != fine.addr.String() || a.Detour == "") {
							t.Errorf("probed %t: the key of %s came by %q since %q", probed, name, a.Via, a.Detour)
						}
						if d := time.Since(began); d > 3*time.Second {
							t.Errorf("probed %t: %s took %v", probed, name, d)
						}
					}
				}
				if got, a := through(t, v, "host.plain.", dns.TypeA); got != "insecure data" || probed && !c.dead && a.Via != bad.addr.String() {
					t.Errorf("probed %t: an unsigned name is %s, by %s: %s", probed, got, a.Via, a.Why)
				}
				if probed && log.with("not good for everything") != 1 {
					t.Errorf("the log says\n%s", &log.b)
				}
				if n := log.with("another way to the DNS"); n > 2 { // of two zones
					t.Errorf("%d lines about the way:\n%s", n, &log.b)
				}
			}
		})
	}
}

// Where no way brings the proof, nothing is proven: there is no "DNSSEC off".
func TestNeverWithoutProof(t *testing.T) {
	for _, c := range faults {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			d, anchors := signedNames(t)
			one, two := newFaulty(t, d, c.fault), newFaulty(t, d, c.fault)
			for _, probed := range []bool{false, true} {
				r := testRouter(t, one, two)
				if probed {
					r.Probe(t.Context())
				}
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				name := "bob.test."
				if c.what == "drops large answers" {
					name = "nobody.test."
				}
				a, _ := dnssec.New(r, anchors).Lookup(ctx, name, dns.TypeIPSECKEY)
				if a.Status != dnssec.Bogus && a.Status != dnssec.Indeterminate || a.Why == "" {
					t.Errorf("probed %t: %+v", probed, a)
				}
			}
		})
	}
}

// Only the name whose proof does not come takes the other way, and goes on taking it; the others stay, and so does the preference.
func TestTheWayIsChosenPerProof(t *testing.T) {
	d, anchors := signedNames(t)
	bad := newFaulty(t, d, func(q, m *dns.Msg, _ bool) *dns.Msg {
		if strings.EqualFold(q.Question[0].Name, "carol.test.") {
			return stripped(m)
		}
		return m
	})
	fine := newFaulty(t, d, nil)
	r := testRouter(t, bad, fine)
	r.Probe(t.Context())
	if s := r.States(); !s[0].OK {
		t.Fatalf("%+v", s)
	}
	v := dnssec.New(r, anchors)
	for range 3 {
		for name, via := range map[string]string{"bob.test.": bad.addr.String(), "carol.test.": fine.addr.String()} {
			got, a := through(t, v, name, dns.TypeA)
			if got != "secure data" || a.Via != via || (a.Detour == "") != (via == bad.addr.String()) {
				t.Errorf("%s: %s by %s since %q", name, got, a.Via, a.Detour)
			}
		}
	}
	before := bad.udp.Load()
	if _, a := through(t, v, "carol.test.", dns.TypeA); a.Via != fine.addr.String() || bad.udp.Load() != before {
		t.Errorf("the first is asked again: by %s, %d questions", a.Via, bad.udp.Load()-before)
	}
}

// The authorities are the last way, for what DNSSEC alone needs, and for names whose proof did not come; never for another name.
func TestTheAuthoritiesAreLast(t *testing.T) {
	tr := newTree(t)
	f := newForwarder(t, func(q *dns.Msg, _ bool) [][]byte {
		return [][]byte{reply(q, "", func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure })}
	})
	r := testRouter(t, f)
	r.ways = append(r.ways, &way{carrier: tr.authorities(), name: Direct, direct: true})
	for rrtype, want := range map[uint16]bool{dns.TypeA: false, dns.TypeAAAA: false, dns.TypeTXT: false, dns.TypeDS: true, dns.TypeDNSKEY: true, dns.TypeIPSECKEY: true} {
		_, err := r.Exchange(t.Context(), in("deep.test.", rrtype))
		if asked := len(tr.asked(rootAddr))+len(tr.asked(testAddr))+len(tr.asked(deepAddr)) > 0; asked != want || err != nil {
			t.Errorf("%s: the authorities were asked: %t (%v)", dns.TypeToString[rrtype], asked, err)
		}
	}
	if got := r.Ways(); len(got) != 1 || got[0] != 2 {
		t.Errorf("ways %v", got)
	}
}

// Run probes at once, and again soon after something failed or the network changed.
func TestProbesAgain(t *testing.T) {
	d, _ := signedNames(t)
	var mu sync.Mutex
	broken := true
	f := newFaulty(t, d, func(_, m *dns.Msg, _ bool) *dns.Msg {
		mu.Lock()
		defer mu.Unlock()
		if broken {
			return stripped(m)
		}
		return m
	})
	r := testRouter(t, f)
	r.soonest = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.Run(ctx); close(done) }()
	wait := func(ok bool) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); r.States()[0].OK != ok || strings.HasPrefix(r.States()[0].Why, "not probed"); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("states %+v", r.States())
			}
		}
	}
	wait(false)
	mu.Lock()
	broken = false
	mu.Unlock()
	r.Renew()
	wait(true)
	cancel()
	<-done
}
