package dnssec

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// What a bitmap at exactly the name proves, and what it does not.
func TestAbsent(t *testing.T) {
	const ns, soa, ds, cname, a = dns.TypeNS, dns.TypeSOA, dns.TypeDS, dns.TypeCNAME, dns.TypeA
	for _, tt := range []struct {
		rrtype uint16
		bitmap []uint16
		want   what
	}{
		{a, nil, noData},
		{a, []uint16{dns.TypeMX}, noData},
		{a, []uint16{a}, unproven},
		{a, []uint16{cname}, unproven},
		{cname, []uint16{a}, noData},
		{cname, []uint16{cname}, unproven},
		{a, []uint16{ns}, unproven},     // the parent's side of a cut
		{a, []uint16{ns, ds}, unproven}, // the same, signed
		{a, []uint16{ns, soa}, noData},  // an apex
		{ns, []uint16{ns}, unproven},
		{ds, []uint16{ns}, unsignedCut},
		{ds, []uint16{ns, ds}, unproven},
		{ds, []uint16{ns, soa}, unproven}, // the child's side of a cut
		{ds, []uint16{soa}, unproven},
		{ds, []uint16{a}, noDelegation},
		{ds, []uint16{cname}, noDelegation},
		{ds, nil, noDelegation},
		{dns.TypeANY, []uint16{a}, unproven},
		{dns.TypeANY, []uint16{dns.TypeRRSIG, dns.TypeNSEC}, noData},
	} {
		if got := absent("x.test.", tt.rrtype, tt.bitmap); got != tt.want {
			t.Errorf("%s with %v: got %v, want %v", typeName(tt.rrtype), tt.bitmap, got, tt.want)
		}
	}
	if got := absent(".", ds, []uint16{ns, soa}); got != unsignedCut {
		t.Errorf("DS of the root: got %v", got)
	}
}

func TestCovers(t *testing.T) {
	for _, tt := range []struct {
		nsec, name string
		want       bool
	}{
		{"a.test. 1 IN NSEC c.test. A", "b.test.", true},
		{"a.test. 1 IN NSEC c.test. A", "a.test.", false}, // a match is no cover
		{"a.test. 1 IN NSEC c.test. A", "c.test.", false},
		{"a.test. 1 IN NSEC c.test. A", "x.a.test.", true},
		{"a.test. 1 IN NSEC c.test. A", "d.test.", false},
		{"a.test. 1 IN NSEC c.test. A", "b.other.", false},
		{"c.test. 1 IN NSEC test. A", "d.test.", true}, // the last one
		{"c.test. 1 IN NSEC test. A", "b.test.", false},
		{"test. 1 IN NSEC test. A", "b.test.", true}, // the only one
		{"a.test. 1 IN NSEC c.test. NS", "x.a.test.", false},
		{"a.test. 1 IN NSEC c.test. NS", "b.test.", true}, // a delegation denies its siblings
		{"a.test. 1 IN NSEC c.test. NS SOA", "x.a.test.", true},
		{"a.test. 1 IN NSEC c.test. DNAME", "x.a.test.", false},
		{"a.test. 1 IN NSEC c.other. A", "b.test.", false}, // leads out of the zone
	} {
		if got := covers(rr(tt.nsec).(*dns.NSEC), tt.name, "test."); got != tt.want {
			t.Errorf("%s covers %s: got %v", tt.nsec, tt.name, got)
		}
	}
}

// Records of two NSEC3 chains do not make one proof, and some make none.
func TestHashChains(t *testing.T) {
	z := newZone(t, "test.", nsec3, dns.ED25519, "a.test. 60 IN A 192.0.2.1")
	z.finish()
	keys := &zone{name: z.name, verdict: verdict{status: Secure, until: testNow.Add(time.Hour)}, keys: []zoneKey{newZoneKey(z.key)}}
	prove := func(change func(n *dns.NSEC3)) what {
		m := new(dns.Msg)
		m.Rcode = dns.RcodeNameError
		for _, r := range z.denial {
			n := dns.Copy(r).(*dns.NSEC3)
			change(n)
			z.emit(&m.Ns, n.Hdr.Name, []dns.RR{n})
		}
		c := checker{now: testNow, rules: &rules{iterations: maxIterations}, work: newBudget()}
		return c.prove("b.test.", dns.TypeA, true, c.collect(group(m.Ns), keys))
	}
	apex := strings.ToLower(dns.HashName("test.", dns.SHA1, z.iter, "ab")) + ".test."
	for _, tt := range []struct {
		name   string
		want   what
		change func(n *dns.NSEC3)
	}{
		{"all of one chain", noName, func(*dns.NSEC3) {}},
		{"one with another salt", unproven, func(n *dns.NSEC3) {
			if n.Hdr.Name == apex {
				n.Salt = "cd"
			}
		}},
		{"a hash that nobody has", unproven, func(n *dns.NSEC3) { n.Hash = 2 }},
		{"a flag that nobody has", unproven, func(n *dns.NSEC3) { n.Flags = 2 }},
		{"opt-out", optedOut, func(n *dns.NSEC3) { n.Flags = 1 }},
		{"too many iterations", tooCostly, func(n *dns.NSEC3) { n.Iterations = maxIterations + 1 }},
	} {
		if got := prove(tt.change); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

// RFC 4035, 5.3.3: a TTL is never more than the one that was signed, whatever travelled with it.
func TestTTLAsSigned(t *testing.T) {
	w, a := hierarchy(t)
	w.set(func(_ dns.Question, m *dns.Msg) {
		for _, r := range m.Answer {
			r.Header().Ttl = 1 << 30
		}
	})
	got, err := New(w, a, WithClock(clock)).Lookup(context.Background(), bob, dns.TypeA)
	if err != nil || got.Status != Secure || !got.Until.Equal(testNow.Add(600*time.Second)) {
		t.Errorf("got %v until %v, %v", got.Status, got.Until, err)
	}
	for _, r := range got.Msg.Answer {
		if r.Header().Ttl != 600 {
			t.Errorf("TTL of %v", r)
		}
	}
}

// RFC 9824: a server that makes a NSEC of exactly the name for what is not there (compact denial), as online signers do. NXNAME says that there
// is no such name; NODATA has the name's types but the one that was asked. The record speaks about its own name only.
func TestCompactDenial(t *testing.T) {
	root, z := newZone(t, ".", nsec, dns.ED25519, ""), newZone(t, "test.", nsec, dns.ECDSAP256SHA256, "here.test. 60 IN A 192.0.2.1")
	w, a := newWorld(t, root, z)
	compact := func(owner string, types ...uint16) dns.RR {
		return &dns.NSEC{Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypeNSEC, Class: dns.ClassINET, Ttl: 300}, NextDomain: "\\000." + owner, TypeBitMap: types}
	}
	none := func(owner string) dns.RR { return compact(owner, dns.TypeRRSIG, dns.TypeNSEC, typeNXNAME) }
	for _, tt := range []struct {
		name   string
		rrtype uint16
		rcode  int
		proof  dns.RR
		want   Status
		is     int // rcode
		why    string
	}{
		{"none.test.", dns.TypeA, 0, none("none.test."), Secure, 0, "no name none.test. (RFC 9824)"},
		{"none.test.", dns.TypeA, 3, none("none.test."), Secure, 3, "no name none.test. (RFC 9824)"},
		{"none.test.", dns.TypeIPSECKEY, 0, none("none.test."), Secure, 0, "RFC 9824"},
		{"here.test.", dns.TypeMX, 0, compact("here.test.", dns.TypeA, dns.TypeRRSIG, dns.TypeNSEC), Secure, 0, "no here.test. MX"},
		{"here.test.", dns.TypeA, 0, compact("here.test.", dns.TypeA, dns.TypeRRSIG, dns.TypeNSEC), Bogus, 0, "do not prove"},
		{"none.test.", dns.TypeA, 0, none("other.test."), Bogus, 0, "do not prove"},
		{"a.none.test.", dns.TypeA, 3, none("none.test."), Bogus, 3, "do not prove"}, // it leaves the name below it to its own record
	} {
		w.set(func(q dns.Question, m *dns.Msg) {
			if q.Name == tt.name && q.Qtype == tt.rrtype {
				m.Answer, m.Ns, m.Rcode = nil, nil, tt.rcode
				z.emit(&m.Ns, z.name, z.node[z.name][dns.TypeSOA])
				z.emit(&m.Ns, tt.proof.Header().Name, []dns.RR{tt.proof})
			}
		})
		v := New(w, a, WithClock(clock))
		got, err := v.Lookup(context.Background(), tt.name, tt.rrtype)
		if err != nil || got.Status != tt.want || got.Rcode != tt.is || !strings.Contains(got.Why, tt.why) {
			t.Errorf("%s %s by %v: got %v rcode %d (%s), %v", tt.name, typeName(tt.rrtype), tt.proof, got.Status, got.Rcode, got.Why, err)
		}
		if tt.want == Secure { // and for the next question of the same name, but not with a rcode that its proof does not carry
			w.set(nil)
			again, err := v.Lookup(context.Background(), tt.name, dns.TypeTXT)
			if err != nil || again.Status != Secure || !again.Denied || again.Rcode != 0 {
				t.Errorf("%s TXT then: got %v rcode %d (%s), %v", tt.name, again.Status, again.Rcode, again.Why, err)
			}
		}
	}
}
