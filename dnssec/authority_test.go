package dnssec

import (
	"context"
	"slices"
	"testing"

	"github.com/miekg/dns"
)

// owners are "owner TYPE" of the records of a section that are no signatures, sorted.
func owners(rrs []dns.RR) (out []string) {
	for _, r := range rrs {
		if _, sig := r.(*dns.RRSIG); !sig {
			out = append(out, r.Header().Name+" "+typeName(r.Header().Rrtype))
		}
	}
	slices.Sort(out)
	return out
}

// The proofs of a chain stay with it, also where its end was asked for by itself: who validates behind us needs all of them.
func TestProofsOfTheWholeChain(t *testing.T) {
	w, a := hierarchy(t)
	const name = "any.walias.signed.test."
	w.set(func(q dns.Question, m *dns.Msg) {
		if q.Name == name { // the upstream gives the alias and its expansion's proof, and leaves the rest to us
			m.Answer = slices.DeleteFunc(m.Answer, func(r dns.RR) bool { return r.Header().Name != name })
		}
	})
	v := New(w, a, WithClock(clock), WithoutSynthesis())
	for rrtype, rest := range map[uint16][]string{dns.TypeA: nil, dns.TypeMX: {"bob.signed.test. NSEC", "signed.test. SOA"}} {
		got, err := v.Lookup(context.Background(), name, rrtype)
		if err != nil || got.Status != Secure || got.Owner != bob {
			t.Fatalf("%s: got %v at %s (%s), %v", typeName(rrtype), got.Status, got.Owner, got.Why, err)
		}
		want := append([]string{"*.walias.signed.test. NSEC"}, rest...)
		if have := owners(got.Msg.Ns); !slices.Equal(have, want) {
			t.Errorf("%s: authority %v, want %v", typeName(rrtype), have, want)
		}
	}
}

// What is Secure carries nothing unproven in its authority section: it goes out with AD.
func TestAuthorityIsProven(t *testing.T) {
	w, a := hierarchy(t)
	w.set(func(q dns.Question, m *dns.Msg) {
		m.Ns = append(m.Ns, rr("signed.test. 600 IN NS mallory.plain.test."), rr("evil.test. 600 IN NSEC zz.test. A"),
			rr("plain.test. 600 IN SOA a. b. 1 2 3 4 5"), rr("0p9mhaveqvm6t7vbl5lop2u3t2rp3tom.test. 600 IN NSEC3 1 0 0 - 2t7b4g4vsa5smi47k61mv5bv1a22bojr A"))
	})
	v := New(w, a, WithClock(clock), WithoutSynthesis())
	for q, want := range map[question][]string{
		{bob, dns.TypeA}:                      nil,
		{bob, dns.TypeMX}:                     {"bob.signed.test. NSEC", "signed.test. SOA"},
		{"any.wild.signed.test.", dns.TypeA}:  {"*.wild.signed.test. NSEC"},
		{"any.wild.signed.test.", dns.TypeMX}: {"*.wild.signed.test. NSEC", "signed.test. SOA"},
	} {
		got, err := v.Lookup(context.Background(), q.name, q.rrtype)
		if err != nil || got.Status != Secure {
			t.Fatalf("%v: got %v (%s), %v", q, got.Status, got.Why, err)
		}
		if have := owners(got.Msg.Ns); !slices.Equal(have, want) {
			t.Errorf("%v: authority %v, want %v", q, have, want)
		}
	}
}
