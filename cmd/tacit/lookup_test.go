package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"tacit/config"
	"tacit/dnssec"
	"tacit/ipseckey"
	peerdb "tacit/pad"
	"tacit/policy"
	"tacit/upstream"
)

// zone is a validator that knows its answers: "name TYPE" to an answer.
type zone map[string]dnssec.Answer

func (z zone) Lookup(_ context.Context, name string, rrtype uint16) (dnssec.Answer, error) {
	a, ok := z[name+" "+dns.TypeToString[rrtype]]
	if !ok {
		return dnssec.Answer{}, errors.New("not in the test's zone")
	}
	a.Name, a.Type = name, rrtype
	if a.Owner == "" {
		a.Owner = name
	}
	return a, nil
}

// Trust gives a signed zone below the root to each answer with links.
func (z zone) Trust(a dnssec.Answer) []dnssec.Link {
	if len(a.Links) == 0 {
		return nil
	}
	return []dnssec.Link{{Of: ". DNSKEY", Status: dnssec.Secure, KeyTag: 20326, Algorithm: dns.RSASHA256, Proof: "trust anchor", Why: "signed"},
		{Of: "test. DNSKEY", Status: dnssec.Secure, KeyTag: 12345, Algorithm: dns.ED25519, Proof: "DS", Why: "signed"}}
}

func rrs(t *testing.T, lines ...string) (all []dns.RR) {
	t.Helper()
	for _, l := range lines {
		rr, err := dns.NewRR(l)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, rr)
	}
	return all
}

// keyRecord is an IPSECKEY record of the test's only key, with the gateway fields given.
func keyRecord(t *testing.T, owner, gateway string) string {
	t.Helper()
	pub := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public()
	r, err := ipseckey.NewRecord(pub)
	if err != nil {
		t.Fatal(err)
	}
	return owner + " 300 IN IPSECKEY " + strings.Replace(r.String(), "10 0 4 .", gateway, 1)
}

// oneWay is a Router by which everything comes.
type oneWay struct{}

func (oneWay) Probe(context.Context) {}
func (oneWay) States() []upstream.State {
	return []upstream.State{{Name: "192.0.2.53:53", OK: true}}
}

// newTestLookup has a rule that leaves clear.test. alone, and the addresses that documentation reserves.
func newTestLookup(z zone) *lookup {
	clear := policy.Rule{Names: []string{".clear.test."}, Class: policy.Clear, Line: 7}
	env := peerdb.Environment{Own: []netip.Addr{netip.MustParseAddr("198.51.100.7")}, Upstreams: []netip.Addr{netip.MustParseAddr("198.51.100.53")}}
	return &lookup{z, oneWay{}, "own", policy.NewTable([]policy.Rule{clear}), env}
}

func TestLookupDecides(t *testing.T) {
	secure := func(lines ...string) dnssec.Answer {
		return dnssec.Answer{Status: dnssec.Secure, RRs: rrs(t, lines...)}
	}
	denied := func(s dnssec.Status) dnssec.Answer {
		return dnssec.Answer{Status: s, Denied: true, Why: "NSEC proves it"}
	}
	good := keyRecord(t, "bob.test.", "10 0 4 .")
	for _, tt := range []struct {
		row          string
		name         string
		addr, key    dnssec.Answer
		want         policy.Outcome
		report, text string
	}{
		{"a key", "bob.test.", secure("bob.test. 300 IN A 192.0.2.1"), secure(good), policy.Protect, "authenticated as bob.test", "proven"},
		{"its own gateway", "bob.test.", secure("bob.test. 300 IN A 192.0.2.1"), secure(keyRecord(t, "bob.test.", "10 1 4 192.0.2.1")),
			policy.Protect, "authenticated as bob.test", ""},
		{"another's gateway", "bob.test.", secure("bob.test. 300 IN A 192.0.2.1"), secure(keyRecord(t, "bob.test.", "10 1 4 203.0.113.9")),
			policy.Answer, "no key, proven", "its gateway is 203.0.113.9"},
		{"no key", "bob.test.", secure("bob.test. 300 IN A 192.0.2.1"), denied(dnssec.Secure), policy.Answer, "no key, proven", ""},
		{"no proof", "bob.test.", secure("bob.test. 300 IN A 192.0.2.1"), denied(dnssec.Bogus), policy.Withhold, "possible stripping", "NSEC proves it"},
		{"unsigned", "bob.test.", dnssec.Answer{Status: dnssec.Insecure, RRs: rrs(t, "bob.test. 300 IN A 192.0.2.1")}, denied(dnssec.Insecure),
			policy.Answer, "anonymous at best", ""},
		{"bogus", "bob.test.", dnssec.Answer{Status: dnssec.Bogus, RRs: rrs(t, "bob.test. 300 IN A 192.0.2.1"), Why: "RRSIG expired"}, secure(good),
			policy.ServFail, "bogus", "RRSIG expired"},
		{"clear by a rule", "www.clear.test.", secure("www.clear.test. 300 IN A 192.0.2.1"), secure(good), policy.Answer, "clear by policy", ""},
		{"our own address", "bob.test.", secure("bob.test. 300 IN A 198.51.100.7"), secure(good), policy.Answer, "local", "own"},
		{"our upstream", "bob.test.", secure("bob.test. 300 IN A 198.51.100.53"), secure(good), policy.Withhold, "not protected", "our DNS upstream"},
		{"private", "bob.test.", secure("bob.test. 300 IN A 10.0.0.1"), secure(good), policy.Withhold, "not protected", "internal zone"},
	} {
		l := newTestLookup(zone{tt.name + " A": tt.addr, tt.name + " AAAA": denied(dnssec.Secure), tt.name + " IPSECKEY": tt.key})
		r, err := l.run(t.Context(), tt.name)
		if err != nil || len(r.Addresses) != 1 {
			t.Errorf("%s: %+v, %v", tt.row, r, err)
			continue
		}
		a := r.Addresses[0]
		if a.Decision != tt.want || a.ReportedAs != tt.report || !strings.Contains(a.Why, tt.text) {
			t.Errorf("%s: %v, %q, %q, want %v, %q, %q", tt.row, a.Decision, a.ReportedAs, a.Why, tt.want, tt.report, tt.text)
		}
		if free := a.Decision == policy.Answer || a.Decision == policy.Protect; free != (a.EDE == nil) {
			t.Errorf("%s: %v with EDE %v", tt.row, a.Decision, a.EDE)
		}
	}
}

// The key of an alias is that of its target (TRUST.md 1, A-10).
func TestLookupAlias(t *testing.T) {
	addr := dnssec.Answer{Status: dnssec.Secure, Owner: "bob.test.", Chain: []string{"www.test.", "bob.test."}, RRs: rrs(t, "bob.test. 300 IN A 192.0.2.1")}
	none := dnssec.Answer{Status: dnssec.Secure, Denied: true}
	z := zone{
		"www.test. A": addr, "www.test. AAAA": none, "www.test. IPSECKEY": none,
		"bob.test. IPSECKEY": {Status: dnssec.Secure, RRs: rrs(t, keyRecord(t, "bob.test.", "10 0 4 ."))},
	}
	r, err := newTestLookup(z).run(t.Context(), "www.test.")
	if err != nil {
		t.Fatal(err)
	}
	if a := r.Addresses[0]; a.Decision != policy.Protect || a.ReportedAs != "authenticated as bob.test (via www.test)" {
		t.Errorf("got %v, reported as %q", a.Decision, a.ReportedAs)
	}
	if len(r.Queries) != 4 || r.Queries[3].Name != "bob.test." || r.Owner != "bob.test." {
		t.Errorf("queries %+v, owner %s", r.Queries, r.Owner)
	}
}

func TestLookupOutput(t *testing.T) {
	z := zone{
		"bob.test. A": {Status: dnssec.Secure, Via: "192.0.2.53:53", RRs: rrs(t, "bob.test. 300 IN A 192.0.2.1", "bob.test. 300 IN A 10.0.0.1"),
			Links: []dnssec.Link{{Of: "bob.test. A", Status: dnssec.Secure, Zone: "test.", KeyTag: 12345, Algorithm: dns.ED25519, Proof: "signature"}}},
		"bob.test. AAAA": {Status: dnssec.Secure, Via: "192.0.2.53:53", Denied: true, Why: "NSEC at bob.test. has no AAAA", Links: []dnssec.Link{
			{Of: "no bob.test. AAAA", Status: dnssec.Secure, Zone: "test.", KeyTag: 12345, Algorithm: dns.ED25519, Proof: "NSEC"},
			{Of: "no x.test. AAAA", Status: dnssec.Insecure, Zone: "x.test.", Proof: "no DS", Why: "the delegation of x.test. is unsigned"}}},
		"bob.test. IPSECKEY": {Status: dnssec.Secure, Via: "iteration from the root", Detour: "192.0.2.53:53: NOTIMP", RRs: rrs(t, keyRecord(t, "bob.test.", "10 0 4 ."))},
	}
	r, err := newTestLookup(z).run(t.Context(), "bob.test.")
	if err != nil {
		t.Fatal(err)
	}
	for i := range r.Queries {
		r.Queries[i].Micros = 1234
	}
	r.Ways = append(r.Ways, upstream.State{Name: "tls://192.0.2.54:853#dns.example", Why: "tls: unknown authority"})
	var b strings.Builder
	if err := r.write(&b); err != nil {
		t.Fatal(err)
	}
	const want = `bob.test
  A         secure  1.2 ms  192.0.2.1
            secure          10.0.0.1
  AAAA      secure  1.2 ms  there is none: NSEC at bob.test. has no AAAA
  IPSECKEY  secure  1.2 ms  10 0 4 . O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik=

  . DNSKEY      secure  trust anchor, key 20326 RSASHA256
  test. DNSKEY  secure  DS, key 12345 ED25519

  bob.test. A        secure    signature of test., key 12345 ED25519
  no bob.test. AAAA  secure    NSEC of test., key 12345 ED25519
  no x.test. AAAA    insecure  no DS of x.test.: the delegation of x.test. is unsigned

  by 192.0.2.53:53                         A, AAAA
  by iteration from the root               IPSECKEY  since 192.0.2.53:53: NOTIMP
  not by tls://192.0.2.54:853#dns.example            tls: unknown authority

  SHA256:lL1BX1JaoCKEseLnITQYSssK3sfHVSkrB5lNCkpQ2wk is a key of bob.test

  192.0.2.1  protect   authenticated as bob.test  a key is published and proven (private-or-clear, default)
  10.0.0.1   withhold  not protected              a key is proven, but the address cannot be protected: a private address, and bob.test. is in no internal zone (private-or-clear, default)
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &b, want)
	}
}

// lookups are a name of each status.
func lookups(t *testing.T) map[string]zone {
	none := func(s dnssec.Status, why string, ede uint16, links ...dnssec.Link) dnssec.Answer {
		return dnssec.Answer{Status: s, Denied: true, Why: why, EDE: ede, Links: links}
	}
	signed := func(of string) dnssec.Link {
		return dnssec.Link{Of: of, Status: dnssec.Secure, Zone: "test.", KeyTag: 12345, Algorithm: dns.ED25519, Proof: "signature", Why: of + " signed by key 12345 of zone test."}
	}
	insecure := dnssec.Link{Of: "bob.test. A", Status: dnssec.Insecure, Zone: "test.", KeyTag: 7, Algorithm: dns.RSASHA256, Proof: "no DS", Why: "test. is delegated by zone . without DS"}
	const addr, forged = "bob.test. 300 IN A 192.0.2.1", "the signature of bob.test. A by key 12345 of zone test. is wrong"
	return map[string]zone{
		"secure": {
			"bob.test. A": {Status: dnssec.Secure, EDE: dnssec.NoEDE, Via: "192.0.2.53:53", RRs: rrs(t, addr), Links: []dnssec.Link{signed("bob.test. A")}, Why: "signed"},
			"bob.test. AAAA": none(dnssec.Secure, "zone test. proves that there is no bob.test. AAAA", dnssec.NoEDE,
				dnssec.Link{Of: "no bob.test. AAAA", Status: dnssec.Secure, Zone: "test.", KeyTag: 12345, Algorithm: dns.ED25519, Proof: "NSEC3", Why: "proven"}),
			"bob.test. IPSECKEY": {Status: dnssec.Secure, EDE: dnssec.NoEDE, Via: "iteration from the root", Detour: "192.0.2.53:53: drops TYPE45",
				RRs: rrs(t, keyRecord(t, "bob.test.", "10 0 4 .")), Links: []dnssec.Link{signed("bob.test. IPSECKEY")}, Why: "signed"},
		},
		"insecure": {
			"bob.test. A":        {Status: dnssec.Insecure, EDE: dnssec.NoEDE, RRs: rrs(t, addr), Links: []dnssec.Link{insecure}, Why: insecure.Why},
			"bob.test. AAAA":     none(dnssec.Insecure, insecure.Why, dnssec.NoEDE, insecure),
			"bob.test. IPSECKEY": none(dnssec.Insecure, insecure.Why, dnssec.NoEDE, insecure),
		},
		"bogus": {
			"bob.test. A": {Status: dnssec.Bogus, EDE: dns.ExtendedErrorCodeDNSBogus, RRs: rrs(t, addr), Why: forged,
				Links: []dnssec.Link{{Of: "bob.test. A", Status: dnssec.Bogus, Zone: "test.", Why: forged}}},
			"bob.test. AAAA":     none(dnssec.Bogus, "no proof that there is no bob.test. AAAA, but zone test. is signed", dns.ExtendedErrorCodeNSECMissing),
			"bob.test. IPSECKEY": {Status: dnssec.Secure, EDE: dnssec.NoEDE, RRs: rrs(t, keyRecord(t, "bob.test.", "10 0 4 .")), Links: []dnssec.Link{signed("bob.test. IPSECKEY")}, Why: "signed"},
		},
		"indeterminate": {
			"bob.test. A":        {Status: dnssec.Indeterminate, Rcode: dns.RcodeServerFailure, EDE: dns.ExtendedErrorCodeNoReachableAuthority, Why: "bob.test. A: the upstream says SERVFAIL"},
			"bob.test. AAAA":     {Status: dnssec.Indeterminate, Rcode: dns.RcodeServerFailure, EDE: dns.ExtendedErrorCodeNetworkError, Why: "bob.test. AAAA: no answer in time"},
			"bob.test. IPSECKEY": {Status: dnssec.Indeterminate, Rcode: dns.RcodeServerFailure, EDE: dns.ExtendedErrorCodeDNSSECIndeterminate, Why: "no trust anchor at or above bob.test."},
		},
	}
}

// Both forms of output, for each status, are as in testdata/lookup_STATUS.json and .golden; TACIT_UPDATE=1 writes them.
func TestLookupGolden(t *testing.T) {
	for status, z := range lookups(t) {
		r, err := newTestLookup(z).run(t.Context(), "bob.test.")
		if err != nil {
			t.Fatal(err)
		}
		for i := range r.Queries {
			r.Queries[i].Micros = 1234
		}
		var asJSON, text strings.Builder
		if err := errors.Join(writeJSON(&asJSON, r), r.write(&text)); err != nil {
			t.Fatal(err)
		}
		for ext, got := range map[string]string{"json": asJSON.String(), "golden": text.String()} {
			path := filepath.Join("testdata", "lookup_"+status+"."+ext)
			if os.Getenv("TACIT_UPDATE") != "" {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want, err := os.ReadFile(path); err != nil || string(want) != got {
				t.Errorf("%s: %v, got\n%s\nwant\n%s", path, err, got, want)
			}
		}
	}
}

// The configuration is all that a lookup needs.
func TestNewLookup(t *testing.T) {
	c := config.Default()
	if _, err := newLookup(c); err != nil {
		t.Errorf("the authorities alone: %v", err)
	}
	c.DNS.Iterate = false
	if _, err := newLookup(c); err == nil {
		t.Error("nobody to ask is no error")
	}
	c.UseNameservers([]netip.Addr{netip.MustParseAddr("192.0.2.53")})
	l, err := newLookup(c)
	if err != nil || len(l.env.Upstreams) != 1 {
		t.Errorf("%+v, %v", l, err)
	}
	c.DNS.TrustAnchors = "/nonexistent/root.key"
	if _, err := newLookup(c); err == nil {
		t.Error("missing anchors are no error")
	}
}

// The state of the anchors that roll over: made from the anchors, read where it is there, refused where it is none.
func TestTrustPoint(t *testing.T) {
	c := config.Default()
	path := filepath.Join(t.TempDir(), "root.state")
	if p, err := trustPoint(c, dnssec.RootAnchors()); p != nil || err != nil {
		t.Errorf("without a state file: %v, %v", p, err)
	}
	c.DNS.TrustAnchorState = path
	p, err := trustPoint(c, dnssec.RootAnchors())
	if err != nil || p.Zone != "." || len(p.DS) != 2 {
		t.Fatalf("the first time: %+v, %v", p, err)
	}
	if err := dnssec.SaveFile(path, 0o644)(p.Text()); err != nil {
		t.Fatal(err)
	}
	if q, err := trustPoint(c, &dnssec.Anchors{}); err != nil || string(q.Text()) != string(p.Text()) {
		t.Errorf("the second time: %+v, %v", q, err)
	}
	if err := os.WriteFile(path, []byte("not a record\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := trustPoint(c, dnssec.RootAnchors()); err == nil || !strings.HasPrefix(err.Error(), path+":1: ") {
		t.Errorf("a state that is none: %v", err)
	}
	c.DNS.TrustAnchorState = path + ".none"
	if _, err := trustPoint(c, &dnssec.Anchors{}); err == nil {
		t.Error("nothing to follow is no error")
	}
}
