package dnssec

import (
	"context"
	"testing"

	"github.com/miekg/dns"
)

// A lookup with the keys of its zone known: one question, one signature, or two to four of a denial.
func BenchmarkLookup(b *testing.B) {
	for _, bb := range []struct {
		name string
		alg  uint8
		mode int
		ask  string
	}{
		{"Ed25519", dns.ED25519, nsec, "www.bench."},
		{"P-256", dns.ECDSAP256SHA256, nsec, "www.bench."},
		{"RSA-2048", dns.RSASHA256, nsec, "www.bench."},
		{"Ed25519/NSEC", dns.ED25519, nsec, "none.bench."},
		{"Ed25519/NSEC3", dns.ED25519, nsec3, "none.bench."},
	} {
		b.Run(bb.name, func(b *testing.B) {
			w, a := newWorld(b, newZone(b, ".", nsec, dns.ED25519, ""), newZone(b, "bench.", bb.mode, bb.alg, "www.bench. 600 IN A 192.0.2.1"))
			canned := map[question]*dns.Msg{}
			v := New(exchangerFunc(func(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
				k := question{q.Question[0].Name, q.Question[0].Qtype}
				if m := canned[k]; m != nil {
					return m, nil
				}
				return w.Exchange(ctx, q)
			}), a, WithClock(clock))
			if _, err := v.Lookup(context.Background(), bb.ask, dns.TypeA); err != nil {
				b.Fatal(err)
			}
			m := new(dns.Msg)
			m.SetQuestion(bb.ask, dns.TypeA)
			canned[question{bb.ask, dns.TypeA}], _ = w.Exchange(context.Background(), m)
			b.ReportAllocs()
			for b.Loop() {
				if got, err := v.Lookup(context.Background(), bb.ask, dns.TypeA); err != nil || got.Status != Secure {
					b.Fatal(got.Why, err)
				}
			}
		})
	}
}
