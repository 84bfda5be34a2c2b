package dnssec

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// drop removes the records for which f says true from every section.
func drop(m *dns.Msg, f func(dns.RR) bool) {
	m.Answer, m.Ns = slices.DeleteFunc(m.Answer, f), slices.DeleteFunc(m.Ns, f)
}

// isType says whether a record is of type t, or a signature over it.
func isType(t uint16) func(dns.RR) bool {
	return func(r dns.RR) bool {
		sig, ok := r.(*dns.RRSIG)
		return r.Header().Rrtype == t || ok && sig.TypeCovered == t
	}
}

// replay puts in the answer that z would give to another question.
func replay(m *dns.Msg, z *testZone, name string, qtype uint16) {
	m.Answer, m.Ns, m.Rcode = nil, nil, dns.RcodeSuccess
	z.answer(m, name, qtype)
}

// rename gives every record of the answer section that has the owner from the owner to.
func rename(m *dns.Msg, from, to string) {
	for _, r := range slices.Concat(m.Answer, m.Ns) {
		if r.Header().Name == from {
			r.Header().Name = to
		}
	}
}

// attack is what an attacker on the path to the upstream does to the answer of one question.
type attack struct {
	name   string
	ask    string
	rrtype uint16
	at     string // the question that is tampered with, if it is another
	atType uint16
	do     func(w *world, m *dns.Msg)
	want   Status
	ede    uint16
	why    string // in Answer.Why; alternatives between bars
}

const bob, none = "bob.signed.test.", "none.signed.test."

var attacks = []attack{
	{name: "A-01 IPSECKEY stripped, nothing in its place", ask: bob, rrtype: dns.TypeIPSECKEY, want: Bogus, ede: 12, why: "no proof that there is no bob.signed.test. IPSECKEY",
		do: func(_ *world, m *dns.Msg) { m.Answer = nil }},
	{name: "A-01 IPSECKEY stripped, SOA in its place", ask: bob, rrtype: dns.TypeIPSECKEY, want: Bogus, ede: 12,
		do: func(w *world, m *dns.Msg) {
			m.Answer = nil
			z := w.zones["signed.test."]
			z.emit(&m.Ns, z.name, z.node[z.name][dns.TypeSOA])
		}},
	{name: "A-01 IPSECKEY stripped, denial of another type in its place", ask: bob, rrtype: dns.TypeIPSECKEY, want: Bogus, ede: 12, why: "do not prove",
		do: func(w *world, m *dns.Msg) { replay(m, w.zones["signed.test."], bob, dns.TypeMX) }},
	{name: "A-01 IPSECKEY stripped, denial of another name in its place", ask: bob, rrtype: dns.TypeIPSECKEY, want: Bogus, ede: 12,
		do: func(w *world, m *dns.Msg) { replay(m, w.zones["signed.test."], none, dns.TypeIPSECKEY) }},
	{name: "A-01 denial stripped of its NSEC", ask: bob, rrtype: dns.TypeMX, want: Bogus, ede: 12,
		do: func(_ *world, m *dns.Msg) { drop(m, isType(dns.TypeNSEC)) }},
	{name: "A-01 denial stripped of its signatures", ask: bob, rrtype: dns.TypeMX, want: Bogus, ede: 10,
		do: func(_ *world, m *dns.Msg) { drop(m, func(r dns.RR) bool { return r.Header().Rrtype == dns.TypeRRSIG }) }},
	{name: "A-01 NSEC3 denial stripped", ask: "host.hashed.test.", rrtype: dns.TypeIPSECKEY, want: Bogus, ede: 12,
		do: func(_ *world, m *dns.Msg) { drop(m, isType(dns.TypeNSEC3)) }},
	{name: "A-01 the signatures of IPSECKEY stripped", ask: bob, rrtype: dns.TypeIPSECKEY, want: Bogus, ede: 10, why: "no signature by zone|is not signed",
		do: func(_ *world, m *dns.Msg) { m.Answer = m.Answer[:1] }},
	{name: "A-02 bogus signature", ask: bob, rrtype: dns.TypeIPSECKEY, want: Bogus, ede: 6, why: "signature of bob.signed.test. IPSECKEY by key",
		do: func(_ *world, m *dns.Msg) {
			m.Answer[0].(*dns.IPSECKEY).PublicKey = "AAAAAAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHwA="
		}},
	{name: "A-02 the signature of another type", ask: bob, rrtype: dns.TypeIPSECKEY, want: Bogus, ede: 6,
		do: func(w *world, m *dns.Msg) {
			z := w.zones["signed.test."]
			sig := z.sign(z.node[bob][dns.TypeA])
			sig.TypeCovered = dns.TypeIPSECKEY
			m.Answer[1] = sig
		}},
	{name: "A-03 unsigned IPSECKEY beside a genuine one", ask: bob, rrtype: dns.TypeIPSECKEY, want: Bogus, ede: 6,
		do: func(_ *world, m *dns.Msg) {
			m.Answer = append(m.Answer, rr(bob+" 600 IN IPSECKEY 10 0 4 . AAAAAAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHwA="))
		}},
	{name: "A-03 unsigned IPSECKEY under another owner, the genuine one left out", ask: "alias.signed.test.", rrtype: dns.TypeIPSECKEY, want: Bogus,
		do: func(_ *world, m *dns.Msg) {
			rename(m, "alias.signed.test.", "x.signed.test.")
			rename(m, bob, "alias.signed.test.")
		}, ede: 6},
	{name: "A-03 unsigned IPSECKEY of an insecure name", ask: "www.plain.test.", rrtype: dns.TypeIPSECKEY, want: Insecure, ede: NoEDE,
		do: func(_ *world, m *dns.Msg) { m.Answer = []dns.RR{rr("www.plain.test. 600 IN IPSECKEY 10 0 4 . AAAA")} }},
	{name: "A-03 a genuine RRset of another name", ask: none, rrtype: dns.TypeA, want: Bogus, ede: 6,
		do: func(w *world, m *dns.Msg) { replay(m, w.zones["signed.test."], bob, dns.TypeA); rename(m, bob, none) }},
	{name: "A-04 an address that is not the signed one", ask: bob, rrtype: dns.TypeA, want: Bogus, ede: 6,
		do: func(_ *world, m *dns.Msg) { m.Answer[0] = rr(bob + " 600 IN A 203.0.113.1") }},
	{name: "A-11 wildcard without the proof that the name is not there", ask: "any.wild.signed.test.", rrtype: dns.TypeA, want: Bogus, ede: 12,
		do: func(_ *world, m *dns.Msg) { m.Ns = nil }},
	{name: "A-11 wildcard in place of a name that is there", ask: "x.wild.signed.test.", rrtype: dns.TypeA, want: Bogus, ede: 12,
		do: func(w *world, m *dns.Msg) {
			replay(m, w.zones["signed.test."], "any.wild.signed.test.", dns.TypeA)
			rename(m, "any.wild.signed.test.", "x.wild.signed.test.")
		}},
	{name: "A-11 wildcard below a name that is there", ask: "y.x.wild.signed.test.", rrtype: dns.TypeA, want: Bogus, ede: 12,
		do: func(w *world, m *dns.Msg) {
			replay(m, w.zones["signed.test."], "any.wild.signed.test.", dns.TypeA)
			rename(m, "any.wild.signed.test.", "y.x.wild.signed.test.")
			z := w.zones["signed.test."]
			z.proof(m, "y.x.wild.signed.test.")
		}},
	{name: "A-11 NSEC3 wildcard without proof", ask: "any.wild.hashed.test.", rrtype: dns.TypeA, want: Bogus, ede: 12,
		do: func(_ *world, m *dns.Msg) { m.Ns = nil }},
	{name: "A-11 a wildcard's NSEC as that of another name", ask: "q.wild.signed.test.", rrtype: dns.TypeIPSECKEY, want: Bogus, ede: 6, why: "made from a wildcard",
		do: func(w *world, m *dns.Msg) {
			replay(m, w.zones["signed.test."], "*.wild.signed.test.", dns.TypeIPSECKEY)
			rename(m, "*.wild.signed.test.", "q.wild.signed.test.")
		}},
	{name: "A-11 NXDOMAIN without the wildcard's denial", ask: "none.wild.signed.test.", rrtype: dns.TypeA, want: Bogus, ede: 12,
		do: func(w *world, m *dns.Msg) {
			m.Answer, m.Ns, m.Rcode = nil, nil, dns.RcodeNameError
			w.zones["signed.test."].proof(m, "none.wild.signed.test.")
		}},
	{name: "A-11 NSEC3 NXDOMAIN without the wildcard's denial", ask: "none.wild.hashed.test.", rrtype: dns.TypeA, want: Bogus, ede: 12,
		do: func(w *world, m *dns.Msg) {
			m.Answer, m.Ns, m.Rcode = nil, nil, dns.RcodeNameError
			w.zones["hashed.test."].proof(m, "none.wild.hashed.test.")
		}},
	{name: "A-11 NSEC3 NXDOMAIN in an opt-out zone without the wildcard's denial", ask: "none.wild.loose.test.", rrtype: dns.TypeA, want: Insecure, ede: NoEDE, why: "opt-out",
		do: func(w *world, m *dns.Msg) {
			m.Answer, m.Ns, m.Rcode = nil, nil, dns.RcodeNameError
			w.zones["loose.test."].proof(m, "none.wild.loose.test.")
		}},
	{name: "A-11 ANY denied where a wildcard has records", ask: "none.wild.signed.test.", rrtype: dns.TypeANY, want: Bogus, ede: 12,
		do: func(w *world, m *dns.Msg) {
			m.Answer, m.Ns = nil, nil
			w.zones["signed.test."].deny(m, "none.wild.signed.test.", true)
			w.zones["signed.test."].deny(m, "*.wild.signed.test.", false)
		}},
	{name: "A-11 ANY denied where a wildcard has records, NSEC3", ask: "none.wild.hashed.test.", rrtype: dns.TypeANY, want: Bogus, ede: 12,
		do: func(w *world, m *dns.Msg) {
			m.Answer, m.Ns = nil, nil
			w.zones["hashed.test."].deny(m, "none.wild.hashed.test.", true)
			w.zones["hashed.test."].deny(m, "*.wild.hashed.test.", false)
		}},
	{name: "A-11 labels field raised", ask: bob, rrtype: dns.TypeA, want: Bogus, ede: 6, why: "name of 5 labels",
		do: func(_ *world, m *dns.Msg) { m.Answer[1].(*dns.RRSIG).Labels = 5 }},
	{name: "A-11 labels field below the zone", ask: bob, rrtype: dns.TypeA, want: Bogus, ede: 6, why: "wildcard outside of zone",
		do: func(_ *world, m *dns.Msg) { m.Answer[1].(*dns.RRSIG).Labels = 1 }},
	{name: "A-12 expired", ask: bob, rrtype: dns.TypeA, want: Bogus, ede: 7, why: "expired at 20261101115959",
		do: func(w *world, m *dns.Msg) { resign(w, m, testNow.Add(-time.Hour), testNow.Add(-time.Second)) }},
	{name: "A-12 expired denial", ask: bob, rrtype: dns.TypeMX, want: Bogus, ede: 7,
		do: func(w *world, m *dns.Msg) { resign(w, m, testNow.Add(-time.Hour), testNow.Add(-time.Second)) }},
	{name: "not yet valid", ask: bob, rrtype: dns.TypeA, want: Bogus, ede: 8, why: "valid from 2026110112",
		do: func(w *world, m *dns.Msg) { resign(w, m, testNow.Add(6*time.Minute), testNow.Add(time.Hour)) }},
	{name: "not yet valid, within the skew", ask: bob, rrtype: dns.TypeA, want: Secure, ede: NoEDE,
		do: func(w *world, m *dns.Msg) { resign(w, m, testNow.Add(4*time.Minute), testNow.Add(time.Hour)) }},
	{name: "expires before it begins", ask: bob, rrtype: dns.TypeA, want: Bogus, ede: 6,
		do: func(w *world, m *dns.Msg) { resign(w, m, testNow.Add(4*time.Minute), testNow.Add(time.Minute)) }},
	{name: "the signer's name is a suffix of letters, not of labels", ask: "www.notsigned.test.", rrtype: dns.TypeA, want: Bogus, ede: 10,
		do: func(w *world, m *dns.Msg) { forgeBy(m, "www.notsigned.test.", w.zones["signed.test."]) }},
	{name: "signed by a sibling zone", ask: bob, rrtype: dns.TypeA, want: Bogus, ede: 10,
		do: func(w *world, m *dns.Msg) { forgeBy(m, bob, w.zones["hashed.test."]) }},
	{name: "signed by a child zone", ask: bob, rrtype: dns.TypeA, want: Bogus, ede: 10,
		do: func(w *world, m *dns.Msg) { forgeBy(m, bob, w.zones["sub.signed.test."]) }},
	{name: "signed by nobody's zone below the name", ask: bob, rrtype: dns.TypeA, want: Bogus, ede: 9, why: "has no such key",
		do: func(_ *world, m *dns.Msg) { m.Answer[1].(*dns.RRSIG).KeyTag++ }},
	{name: "signed with the name itself as its zone", ask: bob, rrtype: dns.TypeA, want: Bogus, ede: 10,
		do: func(_ *world, m *dns.Msg) { m.Answer[1].(*dns.RRSIG).SignerName = bob }},
	{name: "the parent's NSEC at a cut denies a type of the child", ask: "sub.signed.test.", rrtype: dns.TypeA, want: Bogus, ede: 10,
		do: func(w *world, m *dns.Msg) {
			m.Answer, m.Ns = nil, nil
			w.zones["signed.test."].proof(m, "sub.signed.test.")
		}},
	{name: "an ancestor's delegation NSEC denies a name below the cut", ask: "www.sub.signed.test.", rrtype: dns.TypeA, want: Bogus, ede: 10,
		do: func(w *world, m *dns.Msg) {
			m.Answer, m.Ns, m.Rcode = nil, nil, dns.RcodeNameError
			w.zones["signed.test."].proof(m, "sub.signed.test.")
			w.zones["signed.test."].proof(m, "*.signed.test.")
		}},
	{name: "an ancestor's delegation NSEC3 denies a name below a signed cut", ask: "www.sec.loose.test.", rrtype: dns.TypeA, want: Bogus, ede: 10,
		do: func(w *world, m *dns.Msg) {
			m.Answer, m.Ns, m.Rcode = nil, nil, dns.RcodeNameError
			w.zones["loose.test."].proof(m, "www.sec.loose.test.")
			w.zones["loose.test."].proof(m, "*.sec.loose.test.")
		}},
	{name: "an ancestor's delegation NSEC3 denies a name below the cut", ask: "www.sub.hashed.test.", rrtype: dns.TypeA, want: Insecure, ede: NoEDE, why: "delegated by zone hashed.test. without DS",
		do: func(w *world, m *dns.Msg) {
			m.Answer, m.Ns, m.Rcode = nil, nil, dns.RcodeNameError
			w.zones["hashed.test."].proof(m, "www.sub.hashed.test.")
		}},
	{name: "the NSEC of a DNAME denies a name below it", ask: "host.old.signed.test.", rrtype: dns.TypeA, want: Bogus, ede: 12,
		do: func(w *world, m *dns.Msg) {
			m.Answer, m.Ns, m.Rcode = nil, nil, dns.RcodeNameError
			w.zones["signed.test."].proof(m, "old.signed.test.")
			w.zones["signed.test."].proof(m, "*.old.signed.test.")
		}},
	{name: "the child's NSEC denies DS", ask: "sub.signed.test.", rrtype: dns.TypeDS, want: Bogus, ede: 10,
		do: func(w *world, m *dns.Msg) {
			m.Answer, m.Ns = nil, nil
			w.zones["sub.signed.test."].deny(m, "sub.signed.test.", false)
		}},
	{name: "the DNAME bit: a CNAME that says otherwise than the DNAME", ask: "host.old.signed.test.", rrtype: dns.TypeA, want: Bogus, ede: 6, why: "contradicts",
		do: func(_ *world, m *dns.Msg) {
			for _, r := range m.Answer {
				if c, ok := r.(*dns.CNAME); ok {
					c.Target = "evil.plain.test."
				}
			}
		}},
	{name: "an unsigned DNAME", ask: bob, rrtype: dns.TypeA, want: Bogus, ede: 10,
		do: func(_ *world, m *dns.Msg) { m.Answer = []dns.RR{rr("signed.test. 600 IN DNAME plain.test.")} }},
	{name: "an unsigned CNAME", ask: bob, rrtype: dns.TypeA, want: Bogus, ede: 10,
		do: func(_ *world, m *dns.Msg) {
			m.Answer = []dns.RR{rr(bob + " 600 IN CNAME www.plain.test."), rr("www.plain.test. 600 IN A 203.0.113.1")}
		}},
	{name: "a CNAME NSEC denies a type", ask: "alias.signed.test.", rrtype: dns.TypeA, want: Bogus, ede: 12,
		do: func(w *world, m *dns.Msg) {
			m.Answer, m.Ns = nil, nil
			w.zones["signed.test."].deny(m, "alias.signed.test.", false)
		}},
	{name: "DS stripped", ask: bob, rrtype: dns.TypeA, at: "signed.test.", atType: dns.TypeDS, want: Bogus, ede: 12, why: "no DS of signed.test.",
		do: func(_ *world, m *dns.Msg) { m.Answer = nil }},
	{name: "DS replaced by an unsigned one", ask: bob, rrtype: dns.TypeA, at: "signed.test.", atType: dns.TypeDS, want: Bogus, ede: 10,
		do: func(_ *world, m *dns.Msg) { m.Answer = m.Answer[:1] }},
	{name: "DS denied by the NSEC of an unsigned sibling", ask: bob, rrtype: dns.TypeA, at: "signed.test.", atType: dns.TypeDS, want: Bogus, ede: 12,
		do: func(w *world, m *dns.Msg) { m.Answer, m.Ns = nil, nil; w.zones["test."].deny(m, "plain.test.", false) }},
	{name: "DNSKEY replaced", ask: bob, rrtype: dns.TypeA, at: "signed.test.", atType: dns.TypeDNSKEY, want: Bogus, ede: 9, why: "no key of zone signed.test.",
		do: func(w *world, m *dns.Msg) {
			k, priv := newKey(w.t, "signed.test.", dns.ED25519)
			z := &testZone{name: "signed.test.", mode: nsec, key: k, priv: priv, from: testNow.Add(-time.Hour), to: testNow.Add(time.Hour)}
			m.Answer = nil
			z.emit(&m.Answer, z.name, []dns.RR{k})
		}},
	{name: "DNSKEY added", ask: bob, rrtype: dns.TypeA, at: "signed.test.", atType: dns.TypeDNSKEY, want: Bogus, ede: 6,
		do: func(w *world, m *dns.Msg) {
			k, _ := newKey(w.t, "signed.test.", dns.ED25519)
			m.Answer = append(m.Answer, k)
		}},
	{name: "DNSKEY stripped", ask: bob, rrtype: dns.TypeA, at: "signed.test.", atType: dns.TypeDNSKEY, want: Bogus, ede: 9,
		do: func(_ *world, m *dns.Msg) { m.Answer = nil }},
	{name: "root DNSKEY replaced", ask: bob, rrtype: dns.TypeA, at: ".", atType: dns.TypeDNSKEY, want: Bogus, ede: 9,
		do: func(w *world, m *dns.Msg) {
			replay(m, w.zones["signed.test."], "signed.test.", dns.TypeDNSKEY)
			rename(m, "signed.test.", ".")
		}},
	{name: "the signatures of an insecure zone are not believed", ask: "www.odd.test.", rrtype: dns.TypeA, want: Insecure, ede: NoEDE,
		do: func(*world, *dns.Msg) {}},
	{name: "SERVFAIL for DS", ask: bob, rrtype: dns.TypeA, at: "signed.test.", atType: dns.TypeDS, want: Indeterminate, ede: 22, why: "signed.test. DS: the upstream says SERVFAIL",
		do: func(_ *world, m *dns.Msg) { m.Answer, m.Rcode = nil, dns.RcodeServerFailure }},
	{name: "SERVFAIL", ask: bob, rrtype: dns.TypeA, want: Indeterminate, ede: 22,
		do: func(_ *world, m *dns.Msg) { m.Answer, m.Rcode = nil, dns.RcodeServerFailure }},
	{name: "another question answered", ask: bob, rrtype: dns.TypeA, want: Indeterminate, ede: 22,
		do: func(_ *world, m *dns.Msg) { m.Question[0].Name = "x." }},
	{name: "truncated", ask: bob, rrtype: dns.TypeA, want: Indeterminate, ede: 22, do: func(_ *world, m *dns.Msg) { m.Truncated = true }},
	{name: "ANY denied by the NSEC of a name with types", ask: bob, rrtype: dns.TypeANY, want: Bogus, ede: 12,
		do: func(w *world, m *dns.Msg) { replay(m, w.zones["signed.test."], bob, dns.TypeMX) }},
	{name: "class CH", ask: bob, rrtype: dns.TypeA, want: Bogus, ede: 12, do: func(_ *world, m *dns.Msg) {
		for _, r := range m.Answer {
			r.Header().Class = dns.ClassCHAOS
		}
	}},
	{name: "TTL raised", ask: bob, rrtype: dns.TypeA, want: Secure, ede: NoEDE, do: func(_ *world, m *dns.Msg) {
		for _, r := range m.Answer {
			r.Header().Ttl = 1 << 30
		}
	}},
	{name: "spelling mixed", ask: bob, rrtype: dns.TypeA, want: Secure, ede: NoEDE, do: func(_ *world, m *dns.Msg) {
		for _, r := range m.Answer {
			r.Header().Name = "bOb.SIGNED.test."
		}
	}},
}

//tacit:attack A-01 each is bogus, and says what proof is missing
//tacit:attack A-02 bogus, EDE 6
//tacit:attack A-03 bogus in a signed zone, no more than insecure in another
//tacit:attack A-11 bogus without each proof that an expansion or a gap needs
func TestAttacks(t *testing.T) {
	w, a := hierarchy(t)
	for _, tt := range attacks {
		t.Run(tt.name, func(t *testing.T) {
			if tt.at == "" {
				tt.at, tt.atType = tt.ask, tt.rrtype
			}
			w.set(func(q dns.Question, m *dns.Msg) {
				if q.Name == tt.at && q.Qtype == tt.atType {
					w.mu.Lock()
					defer w.mu.Unlock()
					tt.do(w, m)
				}
			})
			v := New(w, a, WithClock(clock), WithoutSynthesis())
			for range 2 { // the second time with the keys that the first has cached
				got, err := v.Lookup(context.Background(), tt.ask, tt.rrtype)
				if err != nil {
					t.Fatal(err)
				}
				ok := tt.why == ""
				for _, why := range strings.Split(tt.why, "|") {
					ok = ok || why != "" && strings.Contains(got.Why, why)
				}
				if got.Status != tt.want || got.EDE != tt.ede || !ok {
					t.Errorf("got %v EDE %d (%s), want %v EDE %d (%s)", got.Status, got.EDE, got.Why, tt.want, tt.ede, tt.why)
				}
				if got.Until.After(testNow.Add(time.Hour)) {
					t.Errorf("until %v", got.Until)
				}
			}
			w.set(nil)
		})
	}
}

// resign signs every RRset of a message anew, for another time.
func resign(w *world, m *dns.Msg, from, to time.Time) {
	z := *w.zones["signed.test."]
	z.from, z.to = from, to
	for _, sec := range []*[]dns.RR{&m.Answer, &m.Ns} {
		sets := group(*sec)
		*sec = nil
		for _, set := range sets {
			z.emit(sec, set.name, set.rrs)
		}
	}
}

// forgeBy puts in an address for name, signed by z.
func forgeBy(m *dns.Msg, name string, z *testZone) {
	m.Answer, m.Ns, m.Rcode = nil, nil, dns.RcodeSuccess
	z.emit(&m.Answer, name, []dns.RR{rr(name + " 600 IN A 203.0.113.9")})
}

// the weakest link of a chain decides, and the name that is reported is where it ended.
//
//tacit:attack A-10 the status of a chain is its weakest link's
func TestChainWeakestLink(t *testing.T) {
	w, a := hierarchy(t)
	w.set(func(q dns.Question, m *dns.Msg) {
		if q.Name == "back.plain.test." {
			for _, r := range m.Answer {
				if x, ok := r.(*dns.A); ok {
					x.A[3] = 99
				}
			}
		}
	})
	got, err := New(w, a, WithClock(clock)).Lookup(context.Background(), "back.plain.test.", dns.TypeA)
	if err != nil || got.Status != Bogus || got.Owner != "bob.signed.test." {
		t.Errorf("got %v at %s (%s), %v", got.Status, got.Owner, got.Why, err)
	}
}

// A chain that the upstream leaves unfinished is asked for, and comes out whole.
func TestChainUnfinished(t *testing.T) {
	w, a := hierarchy(t)
	for _, cut := range []string{"out.signed.test.", "dead.signed.test.", "away.signed.test.", "host.old.signed.test."} {
		want, err := New(w, a, WithClock(clock)).Lookup(context.Background(), cut, dns.TypeA)
		if err != nil {
			t.Fatal(err)
		}
		w.set(func(q dns.Question, m *dns.Msg) {
			if q.Name == cut {
				m.Ns, m.Rcode = nil, 0
				drop(m, func(r dns.RR) bool { return r.Header().Name != cut && !strings.HasPrefix(r.Header().Name, "old.") })
			}
		})
		got, err := New(w, a, WithClock(clock)).Lookup(context.Background(), cut, dns.TypeA)
		w.set(nil)
		if err != nil {
			t.Fatal(err)
		}
		if got.Status != want.Status || got.Owner != want.Owner || got.Rcode != want.Rcode || len(got.Msg.Answer) != len(want.Msg.Answer) || got.Msg.Question[0].Name != cut {
			t.Errorf("%s: got %v at %s rcode %d (%s)\n%v, want %v at %s rcode %d\n%v", cut, got.Status, got.Owner, got.Rcode, got.Why, got.Msg, want.Status, want.Owner, want.Rcode, want.Msg)
		}
	}
}

// A chain without end is given up.
func TestChainBounded(t *testing.T) {
	root := newZone(t, ".", nsec, dns.ED25519, "")
	var lines []string
	for i := range 40 {
		lines = append(lines, fmt.Sprintf("c%d.test. 600 IN CNAME c%d.test.", i, i+1))
	}
	w, a := newWorld(t, root, newZone(t, "test.", nsec, dns.ED25519, strings.Join(lines, "\n")))
	for _, whole := range []bool{true, false} {
		if !whole {
			w.set(func(q dns.Question, m *dns.Msg) { m.Answer = m.Answer[:min(2, len(m.Answer))]; _ = q })
		}
		before := w.asked.Load()
		got, err := New(w, a, WithClock(clock)).Lookup(context.Background(), "c0.test.", dns.TypeA)
		if err != nil || got.Status != Indeterminate || !strings.Contains(got.Why, "more than 12 aliases") {
			t.Errorf("got %v (%s), %v", got.Status, got.Why, err)
		}
		if n := w.asked.Load() - before; n > 30 {
			t.Errorf("%d questions", n)
		}
	}
}

// What is in the answer section beside the chain does not reach the caller.
func TestStrayRecords(t *testing.T) {
	w, a := hierarchy(t)
	w.set(func(q dns.Question, m *dns.Msg) {
		if q.Qtype == dns.TypeA {
			m.Answer = append(m.Answer, rr("mallory.signed.test. 600 IN A 203.0.113.1"), rr(q.Name+" 600 IN TXT stray"))
		}
	})
	got, err := New(w, a, WithClock(clock)).Lookup(context.Background(), "alias.signed.test.", dns.TypeA)
	if err != nil || got.Status != Secure || len(got.Msg.Answer) != 4 {
		t.Errorf("got %v, %v: %v", got.Status, err, got.Msg)
	}
	for _, r := range got.Msg.Answer {
		if r.Header().Ttl > 600 {
			t.Errorf("TTL of %v", r)
		}
	}
}

// A revoked key, a key that is no zone key and one of another protocol sign nothing.
func TestKeysThatSignNothing(t *testing.T) {
	for name, change := range map[string]func(*dns.DNSKEY){
		"revoked":      func(k *dns.DNSKEY) { k.Flags |= dns.REVOKE },
		"no zone key":  func(k *dns.DNSKEY) { k.Flags &^= dns.ZONE },
		"protocol 2":   func(k *dns.DNSKEY) { k.Protocol = 2 },
		"no change":    func(*dns.DNSKEY) {},
		"SEP not set":  func(k *dns.DNSKEY) { k.Flags = dns.ZONE },
		"unknown flag": func(k *dns.DNSKEY) { k.Flags |= 0x8 },
	} {
		root := newZone(t, ".", nsec, dns.ED25519, "")
		z := newZone(t, "test.", nsec, dns.ED25519, "www.test. 600 IN A 192.0.2.1")
		change(z.key)
		w, a := newWorld(t, root, z)
		got, err := New(w, a, WithClock(clock)).Lookup(context.Background(), "www.test.", dns.TypeA)
		want := Bogus
		if name == "no change" || name == "SEP not set" || name == "unknown flag" {
			want = Secure
		}
		if err != nil || got.Status != want {
			t.Errorf("%s: got %v (%s), %v", name, got.Status, got.Why, err)
		}
	}
}

// RFC 9905, and the switch for those who must.
func TestSHA1(t *testing.T) {
	w, a := hierarchy(t)
	got, err := New(w, a, WithClock(clock), WithSHA1()).Lookup(context.Background(), "www.sha1.test.", dns.TypeA)
	if err != nil || got.Status != Secure {
		t.Errorf("got %v (%s), %v", got.Status, got.Why, err)
	}
}

// An answer ends with its signature, whatever its TTL says.
func TestUntilExpiration(t *testing.T) {
	w, a := hierarchy(t)
	w.zones["signed.test."].to = testNow.Add(100 * time.Second)
	got, err := New(w, a, WithClock(clock)).Lookup(context.Background(), "bob.signed.test.", dns.TypeA)
	if err != nil || got.Status != Secure || !got.Until.Equal(testNow.Add(100*time.Second)) || got.RRs[0].Header().Ttl != 100 {
		t.Errorf("got %v until %v, %v, %v", got.Status, got.Until, got.RRs, err)
	}
}

// No anchor, no upstream, no name.
func TestNothingToGoBy(t *testing.T) {
	w, a := hierarchy(t)
	got, err := New(w, &Anchors{}, WithClock(clock)).Lookup(context.Background(), "bob.signed.test.", dns.TypeA)
	if err != nil || got.Status != Indeterminate || got.EDE != 5 || len(got.RRs) != 1 {
		t.Errorf("no anchor: got %v EDE %d, %v", got.Status, got.EDE, err)
	}
	w.mu.Lock()
	w.fail = func(dns.Question) error { return errors.New("unplugged") }
	w.mu.Unlock()
	got, err = New(w, a, WithClock(clock)).Lookup(context.Background(), "bob.signed.test.", dns.TypeA)
	if err != nil || got.Status != Indeterminate || got.EDE != 23 || got.Msg != nil || got.Rcode != dns.RcodeServerFailure || !strings.Contains(got.Why, "unplugged") {
		t.Errorf("no upstream: got %+v, %v", got, err)
	}
	for _, name := range []string{strings.Repeat("a", 64) + ".test.", strings.Repeat("a.", 200), "a..b."} {
		if _, err := New(w, a).Lookup(context.Background(), name, dns.TypeA); err == nil {
			t.Errorf("%q is a name", name)
		}
	}
}

// An island: an anchor below a zone that is not secure.
func TestIsland(t *testing.T) {
	w, a := hierarchy(t)
	odd := w.zones["odd.test."]
	island, err := ParseAnchors([]byte(odd.key.String()), "test")
	if err != nil {
		t.Fatal(err)
	}
	both := &Anchors{zones: map[string]*anchor{".": a.zones["."], "odd.test.": island.zones["odd.test."]}}
	for _, anchors := range []*Anchors{island, both} {
		got, err := New(w, anchors, WithClock(clock)).Lookup(context.Background(), "www.odd.test.", dns.TypeA)
		if err != nil || got.Status != Secure {
			t.Errorf("got %v (%s), %v", got.Status, got.Why, err)
		}
	}
	w.set(func(q dns.Question, m *dns.Msg) {
		if q.Name == "www.odd.test." {
			forgeBy(m, q.Name, w.zones["test."])
		}
	})
	got, err := New(w, both, WithClock(clock)).Lookup(context.Background(), "www.odd.test.", dns.TypeA)
	if err != nil || got.Status != Bogus {
		t.Errorf("signed from above the anchor: got %v (%s), %v", got.Status, got.Why, err)
	}
}

// Internal zones that nothing above them vouches for, or that the root denies.
func TestUnsignedByConfiguration(t *testing.T) {
	w, a := hierarchy(t)
	inner := newZone(t, "corp.internal.", plain, 0, "www.corp.internal. 600 IN A 192.0.2.50")
	w.zones[inner.name] = inner // and no delegation
	for _, tt := range []struct {
		name     string
		unsigned []string
		want     Status
	}{
		{"www.corp.internal.", nil, Bogus},
		{"www.corp.internal.", []string{"Internal"}, Insecure},
		{"www.corp.internal.", []string{"www.corp.internal."}, Insecure},
		{"www.corp.internal.", []string{"ternal."}, Bogus},
		{"bob.signed.test.", []string{"internal."}, Secure},
		{"bob.signed.test.", []string{"signed.test."}, Insecure},
		{"bob.signed.test.", []string{"test."}, Insecure},
		{"bob.signed.test.", []string{"."}, Secure}, // its anchor goes before
	} {
		got, err := New(w, a, WithClock(clock), WithUnsigned(tt.unsigned...)).Lookup(context.Background(), tt.name, dns.TypeA)
		if err != nil || got.Status != tt.want || len(got.RRs) != 1 {
			t.Errorf("%s with %v: got %v (%s), %v; want %v", tt.name, tt.unsigned, got.Status, got.Why, err, tt.want)
		}
	}
}

// a clock at 1970, or a little before what is known to have passed, makes nothing Secure, Insecure or expired; one in the future makes all expire.
//
//tacit:attack A-43 a clock below the floor makes nothing secure, insecure or expired
func TestClock(t *testing.T) {
	w, a := hierarchy(t)
	floor := testNow
	for _, tt := range []struct {
		now  time.Time
		name string
		want Status
		ede  uint16
	}{
		{testNow, bob, Secure, NoEDE},
		{testNow.Add(-time.Second), bob, Indeterminate, dns.ExtendedErrorCodeDNSSECIndeterminate},
		{testNow.Add(-time.Second), "www.plain.test.", Indeterminate, dns.ExtendedErrorCodeDNSSECIndeterminate},
		{time.Unix(0, 0), bob, Indeterminate, dns.ExtendedErrorCodeDNSSECIndeterminate},
		{time.Unix(0, 0), none, Indeterminate, dns.ExtendedErrorCodeDNSSECIndeterminate},
		{testNow.Add(23 * time.Hour), bob, Secure, NoEDE},
		{testNow.Add(25 * time.Hour), bob, Bogus, dns.ExtendedErrorCodeSignatureExpired},
	} {
		now := tt.now
		got, err := New(w, a, WithClock(func() time.Time { return now }), WithFloor(floor)).Lookup(context.Background(), tt.name, dns.TypeA)
		if err != nil || got.Status != tt.want || got.EDE != tt.ede {
			t.Errorf("%v, %s: got %v EDE %d (%s), %v, want %v EDE %d", tt.now, tt.name, got.Status, got.EDE, got.Why, err, tt.want, tt.ede)
		}
		if wrong := tt.now.Before(floor); got.Unclocked != wrong {
			t.Errorf("%v, %s: unclocked %v", tt.now, tt.name, got.Unclocked)
		}
		if tt.name == bob && (len(got.RRs) != 1 || got.Status == Indeterminate && got.Until.After(now)) {
			t.Errorf("%v: %v until %v", tt.now, got.RRs, got.Until)
		}
	}
	w.set(func(_ dns.Question, m *dns.Msg) {
		for _, r := range m.Answer {
			if a, ok := r.(*dns.A); ok {
				a.A = []byte{203, 0, 113, 1}
			}
		}
	})
	if got, err := New(w, a, WithClock(func() time.Time { return time.Unix(0, 0) }), WithFloor(floor)).Lookup(context.Background(), bob, dns.TypeA); err != nil || got.Status != Bogus || got.Unclocked {
		t.Errorf("forged, at 1970: got %v (%s), %v", got.Status, got.Why, err)
	}
	if got, err := New(w, a, WithClock(func() time.Time { return time.Unix(0, 0) })).Lookup(context.Background(), bob, dns.TypeA); err != nil || got.Status != Indeterminate {
		t.Errorf("without a floor of the configuration: got %v (%s), %v", got.Status, got.Why, err)
	}
}

// A CNAME in place of DS is the parent's to say, also where the child is known already: as unsigned, or by its keys.
func TestAliasInPlaceOfDS(t *testing.T) {
	w, a := hierarchy(t)
	for _, tt := range []struct{ zone, why string }{{"plain.test.", "zone test."}, {"sub.signed.test.", "zone signed.test."}} {
		v := New(w, a, WithClock(clock), WithoutSynthesis())
		if got, err := v.Lookup(context.Background(), "www."+tt.zone, dns.TypeA); err != nil || got.Status < Insecure {
			t.Fatalf("honest: %v (%s), %v", got.Status, got.Why, err)
		}
		w.set(func(q dns.Question, m *dns.Msg) {
			if q.Name == tt.zone && q.Qtype == dns.TypeDS {
				w.mu.Lock()
				defer w.mu.Unlock()
				m.Answer, m.Ns = nil, nil
				w.zones[tt.zone].emit(&m.Answer, tt.zone, []dns.RR{rr(tt.zone + " 60 IN CNAME www." + tt.zone)})
			}
		})
		got, err := v.Lookup(context.Background(), tt.zone, dns.TypeDS)
		w.set(nil)
		if err != nil || got.Status != Bogus || !strings.Contains(got.Why, tt.why) {
			t.Errorf("%s: got %v (%s), %v", tt.zone, got.Status, got.Why, err)
		}
	}
}
