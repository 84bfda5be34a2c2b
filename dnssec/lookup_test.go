package dnssec

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// hierarchy is the world of most tests.
func hierarchy(t testing.TB) (*world, *Anchors) {
	root := newZone(t, ".", nsec, dns.ED25519, "")
	test := newZone(t, "test.", nsec, dns.ECDSAP256SHA256, "")
	signed := newZone(t, "signed.test.", nsec, dns.ED25519, `
		signed.test. 600 IN A 192.0.2.1
		bob.signed.test. 600 IN A 192.0.2.2
		bob.signed.test. 600 IN AAAA 2001:db8::2
		bob.signed.test. 600 IN IPSECKEY 10 0 4 . AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=
		alias.signed.test. 600 IN CNAME bob.signed.test.
		away.signed.test. 600 IN CNAME www.plain.test.
		out.signed.test. 600 IN CNAME host.hashed.test.
		dead.signed.test. 600 IN CNAME none.hashed.test.
		loop1.signed.test. 600 IN CNAME loop2.signed.test.
		loop2.signed.test. 600 IN CNAME loop1.signed.test.
		*.wild.signed.test. 600 IN A 192.0.2.3
		x.wild.signed.test. 600 IN A 192.0.2.4
		deep.ent.signed.test. 600 IN A 192.0.2.5
		old.signed.test. 600 IN DNAME hashed.test.
		*.walias.signed.test. 600 IN CNAME bob.signed.test.`)
	hashed := newZone(t, "hashed.test.", nsec3, dns.ED25519, `
		host.hashed.test. 600 IN A 192.0.2.10
		deep.ent.hashed.test. 600 IN A 192.0.2.11
		*.wild.hashed.test. 600 IN A 192.0.2.12
		x.wild.hashed.test. 600 IN A 192.0.2.13`)
	hashed.iter = 5
	loose := newZone(t, "loose.test.", optout, dns.ED25519, `
		host.loose.test. 600 IN A 192.0.2.20
		*.wild.loose.test. 600 IN A 192.0.2.21`)
	wplain := newZone(t, "plain.test.", plain, 0, "www.plain.test. 600 IN A 192.0.2.30\nback.plain.test. 600 IN CNAME bob.signed.test.")
	lplain := newZone(t, "sub.loose.test.", plain, 0, "www.sub.loose.test. 600 IN A 192.0.2.31")
	lsec := newZone(t, "sec.loose.test.", nsec, dns.ED25519, "www.sec.loose.test. 600 IN A 192.0.2.32")
	hplain := newZone(t, "sub.hashed.test.", plain, 0, "www.sub.hashed.test. 600 IN A 192.0.2.33")
	sub := newZone(t, "sub.signed.test.", nsec, dns.ED25519, "www.sub.signed.test. 600 IN A 192.0.2.34\nsub.signed.test. 600 IN A 192.0.2.35")
	odd := newZone(t, "odd.test.", nsec, dns.ED25519, "www.odd.test. 600 IN A 192.0.2.40")
	odd.dsHash = dns.SHA256
	sha1 := newZone(t, "sha1.test.", nsec3, dns.RSASHA1NSEC3SHA1, "www.sha1.test. 600 IN A 192.0.2.41")
	costly := newZone(t, "costly.test.", nsec3, dns.ED25519, "www.costly.test. 600 IN A 192.0.2.42\n*.wild.costly.test. 600 IN A 192.0.2.43")
	costly.iter = 101
	w, a := newWorld(t, root, test, signed, hashed, loose, wplain, lplain, lsec, hplain, sub, odd, sha1, costly)
	for _, r := range test.node["odd.test."][dns.TypeDS] {
		r.(*dns.DS).Algorithm = 200 // an algorithm that nobody has
	}
	return w, a
}

func clock() time.Time { return testNow }

func TestLookup(t *testing.T) {
	w, a := hierarchy(t)
	tests := []struct {
		name   string
		rrtype uint16
		status Status
		rcode  int
		owner  string
		rrs    int
	}{
		{"bob.signed.test.", dns.TypeA, Secure, 0, "", 1},
		{"BOB.Signed.test", dns.TypeAAAA, Secure, 0, "bob.signed.test.", 1},
		{"bob.signed.test.", dns.TypeIPSECKEY, Secure, 0, "", 1},
		{"signed.test.", dns.TypeA, Secure, 0, "", 1},
		{"signed.test.", dns.TypeDNSKEY, Secure, 0, "", 1},
		{"signed.test.", dns.TypeDS, Secure, 0, "", 1},
		{"signed.test.", dns.TypeMX, Secure, 0, "", 0},
		{"bob.signed.test.", dns.TypeMX, Secure, 0, "", 0},
		{"none.signed.test.", dns.TypeA, Secure, 3, "", 0},
		{"a.b.none.signed.test.", dns.TypeA, Secure, 3, "", 0},
		{"ent.signed.test.", dns.TypeA, Secure, 0, "", 0},
		{"any.wild.signed.test.", dns.TypeA, Secure, 0, "", 1},
		{"a.b.wild.signed.test.", dns.TypeA, Secure, 0, "", 1},
		{"*.wild.signed.test.", dns.TypeA, Secure, 0, "", 1},
		{"any.wild.signed.test.", dns.TypeIPSECKEY, Secure, 0, "", 0},
		{"y.x.wild.signed.test.", dns.TypeA, Secure, 3, "", 0},
		{"alias.signed.test.", dns.TypeIPSECKEY, Secure, 0, "bob.signed.test.", 1},
		{"alias.signed.test.", dns.TypeCNAME, Secure, 0, "", 1},
		{"alias.signed.test.", dns.TypeMX, Secure, 0, "bob.signed.test.", 0},
		{"any.walias.signed.test.", dns.TypeA, Secure, 0, "bob.signed.test.", 1},
		{"out.signed.test.", dns.TypeA, Secure, 0, "host.hashed.test.", 1},
		{"dead.signed.test.", dns.TypeA, Secure, 3, "none.hashed.test.", 0},
		{"away.signed.test.", dns.TypeA, Insecure, 0, "www.plain.test.", 1},
		{"host.old.signed.test.", dns.TypeA, Secure, 0, "host.hashed.test.", 1},
		{"old.signed.test.", dns.TypeDNAME, Secure, 0, "", 1},
		{"back.plain.test.", dns.TypeA, Insecure, 0, "bob.signed.test.", 1},
		{"loop1.signed.test.", dns.TypeA, Indeterminate, 0, "", 0},
		{"host.hashed.test.", dns.TypeA, Secure, 0, "", 1},
		{"host.hashed.test.", dns.TypeIPSECKEY, Secure, 0, "", 0},
		{"none.hashed.test.", dns.TypeA, Secure, 3, "", 0},
		{"a.b.none.hashed.test.", dns.TypeA, Secure, 3, "", 0},
		{"ent.hashed.test.", dns.TypeA, Secure, 0, "", 0},
		{"any.wild.hashed.test.", dns.TypeA, Secure, 0, "", 1},
		{"any.wild.hashed.test.", dns.TypeMX, Secure, 0, "", 0},
		{"host.hashed.test.", dns.TypeDS, Secure, 0, "", 0},
		{"host.loose.test.", dns.TypeA, Secure, 0, "", 1},
		{"host.loose.test.", dns.TypeIPSECKEY, Secure, 0, "", 0},
		{"none.loose.test.", dns.TypeA, Insecure, 3, "", 0},
		{"any.wild.loose.test.", dns.TypeA, Insecure, 0, "", 1},
		{"www.plain.test.", dns.TypeA, Insecure, 0, "", 1},
		{"www.plain.test.", dns.TypeMX, Insecure, 0, "", 0},
		{"none.plain.test.", dns.TypeA, Insecure, 3, "", 0},
		{"plain.test.", dns.TypeDS, Secure, 0, "", 0},
		{"www.sub.loose.test.", dns.TypeA, Insecure, 0, "", 1},
		{"www.sec.loose.test.", dns.TypeA, Secure, 0, "", 1},
		{"www.sub.hashed.test.", dns.TypeA, Insecure, 0, "", 1},
		{"www.sub.signed.test.", dns.TypeA, Secure, 0, "", 1},
		{"sub.signed.test.", dns.TypeA, Secure, 0, "", 1},
		{"sub.signed.test.", dns.TypeMX, Secure, 0, "", 0},
		{"sub.signed.test.", dns.TypeDS, Secure, 0, "", 1},
		{"www.odd.test.", dns.TypeA, Insecure, 0, "", 1},
		{"www.sha1.test.", dns.TypeA, Insecure, 0, "", 1},
		{"www.costly.test.", dns.TypeA, Secure, 0, "", 1},
		{"www.costly.test.", dns.TypeMX, Insecure, 0, "", 0},
		{"any.wild.costly.test.", dns.TypeA, Insecure, 0, "", 1},
		{".", dns.TypeSOA, Secure, 0, "", 1},
		{".", dns.TypeDNSKEY, Secure, 0, "", 1},
		{"nowhere.", dns.TypeA, Secure, 3, "", 0},
		{"test.", dns.TypeNS, Secure, 0, "", 1},
		{"bob.signed.test.", dns.TypeANY, Secure, 0, "", 3},
		{"any.wild.signed.test.", dns.TypeANY, Secure, 0, "", 1},
		{"www.plain.test.", dns.TypeANY, Insecure, 0, "", 1},
	}
	warm := New(w, a, WithClock(clock))
	for _, tt := range tests {
		t.Run(tt.name+" "+typeName(tt.rrtype), func(t *testing.T) {
			for _, v := range []*Validator{New(w, a, WithClock(clock)), warm, warm} {
				got, err := v.Lookup(context.Background(), tt.name, tt.rrtype)
				if err != nil {
					t.Fatal(err)
				}
				owner := tt.owner
				if owner == "" && tt.status != Indeterminate {
					owner = dns.CanonicalName(tt.name)
				}
				if got.Status != tt.status || got.Rcode != tt.rcode || len(got.RRs) != tt.rrs || owner != "" && got.Owner != owner {
					t.Errorf("got %v rcode %d at %s, %d records (%s); want %v rcode %d at %s, %d records", got.Status, got.Rcode, got.Owner, len(got.RRs), got.Why,
						tt.status, tt.rcode, owner, tt.rrs)
				}
				if got.Denied != (tt.rrs == 0 && tt.status != Indeterminate) || got.Why == "" {
					t.Errorf("denied %v, why %q", got.Denied, got.Why)
				}
				if tt.status >= Insecure && (got.EDE != NoEDE || !got.Until.After(testNow) || got.Until.After(testNow.Add(time.Hour))) {
					t.Errorf("EDE %d, until %v", got.EDE, got.Until)
				}
			}
		})
	}
}

// An Answer says of each of its links what stands behind it.
func TestLinks(t *testing.T) {
	w, a := hierarchy(t)
	w.set(func(q dns.Question, m *dns.Msg) {
		if q.Name == "x.wild.signed.test." && q.Qtype == dns.TypeA {
			m.Answer = m.Answer[:1]
		}
	})
	tag := func(zone string) uint16 { return w.zones[zone].key.KeyTag() }
	for _, tt := range []struct {
		name   string
		rrtype uint16
		want   []Link
	}{
		{bob, dns.TypeA, []Link{{"bob.signed.test. A", Secure, "signed.test.", tag("signed.test."), 15, "signature", ""}}},
		{"out.signed.test.", dns.TypeA, []Link{{"out.signed.test. CNAME", Secure, "signed.test.", tag("signed.test."), 15, "signature", ""},
			{"host.hashed.test. A", Secure, "hashed.test.", tag("hashed.test."), 15, "signature", ""}}},
		{"any.wild.signed.test.", dns.TypeA, []Link{{"any.wild.signed.test. A", Secure, "signed.test.", tag("signed.test."), 15, "wildcard", ""}}},
		{"host.old.signed.test.", dns.TypeA, []Link{{"old.signed.test. DNAME", Secure, "signed.test.", tag("signed.test."), 15, "signature", ""},
			{"host.hashed.test. A", Secure, "hashed.test.", tag("hashed.test."), 15, "signature", ""}}},
		{bob, dns.TypeMX, []Link{{"no bob.signed.test. MX", Secure, "signed.test.", tag("signed.test."), 15, "NSEC", ""}}},
		{"none.hashed.test.", dns.TypeA, []Link{{"no none.hashed.test. A", Secure, "hashed.test.", tag("hashed.test."), 15, "NSEC3", ""}}},
		{"none.loose.test.", dns.TypeA, []Link{{"no none.loose.test. A", Insecure, "loose.test.", tag("loose.test."), 15, "opt-out", ""}}},
		{"away.signed.test.", dns.TypeA, []Link{{"away.signed.test. CNAME", Secure, "signed.test.", tag("signed.test."), 15, "signature", ""},
			{"www.plain.test. A", Insecure, "plain.test.", tag("test."), 13, "no DS", ""}}},
		{"www.odd.test.", dns.TypeA, []Link{{"www.odd.test. A", Insecure, "odd.test.", tag("test."), 13, "algorithm", ""}}},
		{"x.wild.signed.test.", dns.TypeA, []Link{{"x.wild.signed.test. A", Bogus, "signed.test.", 0, 0, "", ""}}},
	} {
		got, err := New(w, a, WithClock(clock)).Lookup(context.Background(), tt.name, tt.rrtype)
		if err != nil {
			t.Fatal(err)
		}
		worst := Secure
		for i := range got.Links {
			if got.Links[i].Why == "" || !strings.Contains(got.Why, got.Links[i].Why) && got.Links[i].Status == got.Status {
				t.Errorf("%s: %q is not in %q", tt.name, got.Links[i].Why, got.Why)
			}
			worst = min(worst, got.Links[i].Status)
			got.Links[i].Why = ""
		}
		if !slices.Equal(got.Links, tt.want) || worst != got.Status {
			t.Errorf("%s %s: got %v %+v, want %+v", tt.name, typeName(tt.rrtype), got.Status, got.Links, tt.want)
		}
	}
}

// Trust is the chain of zones above an answer's links.
func TestTrust(t *testing.T) {
	w, a := hierarchy(t)
	w.set(func(q dns.Question, m *dns.Msg) {
		if q.Name == "loose.test." && q.Qtype == dns.TypeDNSKEY {
			m.Answer = nil
		}
	})
	v := New(w, a, WithClock(clock))
	for _, tt := range []struct {
		name string
		want string
	}{
		{"www.sub.signed.test.", ". DNSKEY trust anchor, test. DNSKEY DS, signed.test. DNSKEY DS, sub.signed.test. DNSKEY DS"},
		{"out.signed.test.", ". DNSKEY trust anchor, test. DNSKEY DS, signed.test. DNSKEY DS, hashed.test. DNSKEY DS"},
		{"away.signed.test.", ". DNSKEY trust anchor, test. DNSKEY DS, signed.test. DNSKEY DS, plain.test. no DS"},
		{"www.odd.test.", ". DNSKEY trust anchor, test. DNSKEY DS, odd.test. algorithm"},
		{"host.loose.test.", ". DNSKEY trust anchor, test. DNSKEY DS, loose.test. "},
	} {
		got, err := v.Lookup(context.Background(), tt.name, dns.TypeA)
		if err != nil {
			t.Fatal(err)
		}
		var text []string
		for _, l := range v.Trust(got) {
			text = append(text, l.Of+" "+l.Proof)
			if z := w.zones[strings.TrimSuffix(l.Of, " DNSKEY")]; l.Status == Secure && (l.KeyTag != z.key.KeyTag() || l.Algorithm != z.alg) {
				t.Errorf("%s: %+v, want key %d", tt.name, l, z.key.KeyTag())
			}
		}
		if got := strings.Join(text, ", "); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// RFC 8509: whether a key is a trust anchor of the root is told by failing, to those who ask for addresses and believe in validation.
func TestSentinel(t *testing.T) {
	var lines []string
	root := newZone(t, ".", nsec, dns.ED25519, "")
	tag := root.key.KeyTag()
	names := []string{fmt.Sprintf("root-key-sentinel-is-ta-%05d.test.", tag), fmt.Sprintf("root-key-sentinel-not-ta-%05d.test.", tag),
		fmt.Sprintf("root-key-sentinel-is-ta-%05d.test.", tag^1), fmt.Sprintf("root-key-sentinel-not-ta-%05d.test.", tag^1),
		"root-key-sentinel-is-ta-1.test.", "root-key-sentinel-is-ta-99999.test.", "root-key-sentinel-is-ta-.test."}
	for _, name := range names {
		lines = append(lines, name+" 60 IN A 192.0.2.1", name+" 60 IN TXT text")
	}
	w, a := newWorld(t, root, newZone(t, "test.", nsec, dns.ED25519, strings.Join(lines, "\n")))
	v := New(w, a, WithClock(clock))
	for i, want := range []Status{Secure, Bogus, Bogus, Secure, Secure, Secure, Secure} {
		if got, err := v.Lookup(context.Background(), names[i], dns.TypeA); err != nil || got.Status != want {
			t.Errorf("%s: got %v (%s), %v, want %v", names[i], got.Status, got.Why, err, want)
		}
		if got, err := v.Lookup(context.Background(), names[i], dns.TypeTXT); err != nil || got.Status != Secure {
			t.Errorf("%s TXT: got %v (%s), %v", names[i], got.Status, got.Why, err)
		}
	}
}
