package dnssec

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
)

// Whatever the upstream answers for an address, Secure means that it is the address that was signed.
func FuzzLookup(f *testing.F) {
	w, a := hierarchy(f)
	const name = "bob.signed.test."
	for _, q := range []question{{name, dns.TypeA}, {name, dns.TypeMX}, {"alias.signed.test.", dns.TypeA}, {"any.wild.signed.test.", dns.TypeA},
		{"none.hashed.test.", dns.TypeA}, {"host.old.signed.test.", dns.TypeA}} {
		m := new(dns.Msg)
		m.SetQuestion(q.name, q.rrtype)
		r, err := w.Exchange(context.Background(), m)
		if err != nil {
			f.Fatal(err)
		}
		b, err := r.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	var forged atomic.Pointer[dns.Msg] // questions of an earlier run may still be on their way
	v := New(exchangerFunc(func(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
		if q.Question[0].Name != name || q.Question[0].Qtype != dns.TypeA {
			return w.Exchange(ctx, q)
		}
		m := forged.Load().Copy()
		m.Response, m.Opcode, m.Truncated, m.Question = true, dns.OpcodeQuery, false, q.Question
		return m, nil
	}), a, WithClock(clock))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(dns.Msg)
		if m.Unpack(b) != nil {
			return
		}
		forged.Store(m)
		got, err := v.Lookup(context.Background(), name, dns.TypeA)
		if err != nil {
			t.Fatal(err)
		}
		if got.Status == Secure && (len(got.RRs) != 1 || got.Owner != name || !dns.IsDuplicate(got.RRs[0], rr(name+" 60 IN A 192.0.2.2"))) {
			t.Errorf("secure: %v at %s (%s)", got.RRs, got.Owner, got.Why)
		}
		for _, r := range got.RRs {
			if _, err := RDATA(r); err != nil {
				t.Logf("%v: %v", r, err)
			}
		}
	})
}

func FuzzParseAnchors(f *testing.F) {
	f.Add([]byte(rootAnchors))
	f.Add([]byte("test. 3600 IN DNSKEY 257 3 15 (\n l02Woi0iS8Aa25FQkUd9RMzZHJpBoRQwAQEX1SxZJA4= ) ; a key\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := ParseAnchors(text, "f")
		if (err == nil) != (a != nil) || a != nil && len(a.Zones()) == 0 {
			t.Errorf("got %v, %v", a, err)
		}
	})
}
