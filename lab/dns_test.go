package lab

import (
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// newNames makes the world that most tests use.
func newNames(t *testing.T) *DNS {
	t.Helper()
	d, err := NewDNS()
	if err != nil {
		t.Fatal(err)
	}
	for name, signed := range map[string]bool{"example.": true, "plain.": false} {
		if err := d.AddZone(name, signed); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.AddSignedZone("sub.example.", dns.ECDSAP256SHA256); err != nil {
		t.Fatal(err)
	}
	if err := d.Add("bob.example. 60 A 192.0.2.2", "bob.example. 60 AAAA 2001:db8::2", "www.example. 60 CNAME bob.example.",
		"out.example. 60 CNAME host.plain.", "*.wild.example. 60 A 192.0.2.9", "a.b.c.example. 60 TXT x",
		"bob.example. 60 IPSECKEY 10 0 4 . AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=",
		"host.plain. 60 A 192.0.2.3", "deep.sub.example. 60 A 192.0.2.4"); err != nil {
		t.Fatal(err)
	}
	return d
}

func ask(d *DNS, name string, kind uint16, do bool) *dns.Msg {
	q := new(dns.Msg)
	q.SetQuestion(name, kind)
	q.SetEdns0(1232, do)
	return d.Answer(q)
}

func kinds(rrs []dns.RR) string {
	var s []string
	for _, rr := range rrs {
		s = append(s, dns.TypeToString[rr.Header().Rrtype])
	}
	return strings.Join(s, " ")
}

func TestAnswers(t *testing.T) {
	d := newNames(t)
	tests := []struct {
		name       string
		kind       uint16
		do         bool
		rcode      int
		answer, ns string
	}{
		{"bob.example.", dns.TypeA, false, 0, "A", ""},
		{"bob.example.", dns.TypeA, true, 0, "A RRSIG", ""},
		{"BOB.example.", dns.TypeAAAA, true, 0, "AAAA RRSIG", ""},
		{"bob.example.", dns.TypeIPSECKEY, true, 0, "IPSECKEY RRSIG", ""},
		{"bob.example.", dns.TypeTXT, true, 0, "", "SOA RRSIG NSEC RRSIG"},
		{"bob.example.", dns.TypeTXT, false, 0, "", "SOA"},
		{"c.example.", dns.TypeA, true, 0, "", "SOA RRSIG NSEC RRSIG"},
		{"no.example.", dns.TypeA, true, dns.RcodeNameError, "", "SOA RRSIG NSEC RRSIG NSEC RRSIG"},
		{"no.example.", dns.TypeA, false, dns.RcodeNameError, "", "SOA"},
		{"no.tld.", dns.TypeA, true, dns.RcodeNameError, "", "SOA RRSIG NSEC RRSIG NSEC RRSIG"},
		{"x.wild.example.", dns.TypeA, true, 0, "A RRSIG", "NSEC RRSIG"},
		{"x.wild.example.", dns.TypeA, false, 0, "A", ""},
		{"x.wild.example.", dns.TypeTXT, true, 0, "", "SOA RRSIG NSEC RRSIG"},
		{"www.example.", dns.TypeA, true, 0, "CNAME RRSIG A RRSIG", ""},
		{"www.example.", dns.TypeCNAME, true, 0, "CNAME RRSIG", ""},
		{"out.example.", dns.TypeA, true, 0, "CNAME RRSIG A", ""},
		{"out.example.", dns.TypeIPSECKEY, true, 0, "CNAME RRSIG", "SOA"},
		{"host.plain.", dns.TypeA, true, 0, "A", ""},
		{"host.plain.", dns.TypeIPSECKEY, true, 0, "", "SOA"},
		{"plain.", dns.TypeDS, true, 0, "", "SOA RRSIG NSEC RRSIG"},
		{"example.", dns.TypeDS, true, 0, "DS RRSIG", ""},
		{"example.", dns.TypeDNSKEY, true, 0, "DNSKEY RRSIG", ""},
		{"sub.example.", dns.TypeDS, true, 0, "DS RRSIG", ""},
		{"deep.sub.example.", dns.TypeA, true, 0, "A RRSIG", ""},
		{".", dns.TypeDNSKEY, true, 0, "DNSKEY RRSIG", ""},
	}
	for _, tt := range tests {
		r := ask(d, tt.name, tt.kind, tt.do)
		if r.Rcode != tt.rcode || kinds(r.Answer) != tt.answer || kinds(r.Ns) != tt.ns {
			t.Errorf("%s %s do=%v: got %s, answer %q, authority %q; want %d, %q, %q", tt.name, dns.TypeToString[tt.kind], tt.do,
				dns.RcodeToString[r.Rcode], kinds(r.Answer), kinds(r.Ns), tt.rcode, tt.answer, tt.ns)
		}
		checkSignatures(t, d, append(append([]dns.RR(nil), r.Answer...), r.Ns...))
		if _, err := r.Pack(); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// checkSignatures verifies every signature against the key of its signer.
func checkSignatures(t *testing.T, d *DNS, rrs []dns.RR) {
	t.Helper()
	for _, rr := range rrs {
		sig, ok := rr.(*dns.RRSIG)
		if !ok {
			continue
		}
		var set []dns.RR
		for _, r := range rrs {
			if strings.EqualFold(r.Header().Name, sig.Hdr.Name) && r.Header().Rrtype == sig.TypeCovered {
				set = append(set, r)
			}
		}
		if err := sig.Verify(d.zones[sig.SignerName].key, set); err != nil || !sig.ValidityPeriod(time.Now()) {
			t.Errorf("%s: %v", sig, err)
		}
	}
}

func TestReplaceSignsAgain(t *testing.T) {
	d := newNames(t)
	first := ask(d, "bob.example.", dns.TypeA, true)
	if err := d.Replace("bob.example.", dns.TypeA, "bob.example. 60 A 192.0.2.77"); err != nil {
		t.Fatal(err)
	}
	second := ask(d, "bob.example.", dns.TypeA, true)
	if got := second.Answer[0].(*dns.A).A.String(); got != "192.0.2.77" {
		t.Errorf("got %s", got)
	}
	if first.Answer[1].String() == second.Answer[1].String() {
		t.Error("the signature has not changed")
	}
	checkSignatures(t, d, second.Answer)
	if err := d.Replace("bob.example.", dns.TypeIPSECKEY); err != nil {
		t.Fatal(err)
	}
	if r := ask(d, "bob.example.", dns.TypeIPSECKEY, true); len(r.Answer) != 0 || kinds(r.Ns) != "SOA RRSIG NSEC RRSIG" {
		t.Errorf("removed set: got %v", r)
	}
}

func TestDNSText(t *testing.T) {
	d := newNames(t)
	text, err := d.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	e := new(DNS)
	if err := e.UnmarshalText(text); err != nil {
		t.Fatal(err)
	}
	if d.TrustAnchor() != e.TrustAnchor() {
		t.Error("the trust anchor differs")
	}
	r := ask(e, "deep.sub.example.", dns.TypeA, true)
	checkSignatures(t, d, r.Answer)
	if kinds(r.Answer) != "A RRSIG" {
		t.Errorf("got %v", r)
	}
}

func FuzzUnmarshalText(f *testing.F) {
	f.Add([]byte("zone .\n. 300 SOA ns. hostmaster. 1 3600 600 86400 60\n"))
	f.Add([]byte("zone .\nkey Private-key-format: v1.3\n. 300 IN DNSKEY 257 3 15 AAAA\n"))
	f.Fuzz(func(t *testing.T, b []byte) { _ = new(DNS).UnmarshalText(b) })
}
