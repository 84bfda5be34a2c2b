package dnssec

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// A-31, CVE-2023-50387 (KeyTrap): many keys of one tag and many signatures, none of which verifies. The work is bounded, whatever comes.
func TestKeyTrap(t *testing.T) {
	z := newZone(t, "trap.test.", nsec, dns.ECDSAP256SHA256, "www.trap.test. 60 IN A 192.0.2.1")
	tag := z.key.KeyTag()
	other := &zone{name: z.name, verdict: verdict{status: Secure, until: testNow.Add(1e12)}}
	for len(other.keys) < 30 {
		k, _ := newKey(t, z.name, dns.ECDSAP256SHA256)
		other.keys = append(other.keys, zoneKey{tag: tag, rr: k})
	}
	set := &rrset{name: "www.trap.test.", rrtype: dns.TypeA, rrs: z.node["www.trap.test."][dns.TypeA]}
	for range 100 {
		set.sigs = append(set.sigs, z.sign(set.rrs))
	}
	c := checker{now: testNow, rules: &rules{iterations: maxIterations}, work: newBudget()}
	for range 10 {
		if got := c.verify(set, other); got.status != Bogus {
			t.Fatalf("got %v", got)
		}
	}
	if !c.work.spent() {
		t.Errorf("10 RRsets cost less than %d signatures", maxSignatures)
	}
	c.work = newBudget()
	c.verify(set, other)
	if n := maxSignatures - c.work.sigs.Load(); n > maxSetSigs*maxTagKeys {
		t.Errorf("%d signatures tried for one RRset", n)
	}
	good := &zone{name: z.name, verdict: other.verdict, keys: []zoneKey{{tag, z.key}}}
	c.work.sigs.Store(0)
	if got := c.verify(set, good); got.status != Bogus || !strings.Contains(got.why, "more than 96 signatures") {
		t.Errorf("with no work left: %v", got)
	}
}

// A-31, CVE-2023-50868: NSEC3 closest encloser proofs for a name of many labels.
func TestHashTrap(t *testing.T) {
	z := newZone(t, "trap.test.", nsec3, dns.ED25519, "a.trap.test. 60 IN A 192.0.2.1")
	z.iter = maxIterations
	z.finish()
	d := &denials{zone: z.name}
	for _, r := range z.denial {
		for i := range 8 { // records with parameters of their own, each to be hashed for
			n := dns.Copy(r).(*dns.NSEC3)
			n.Salt = fmt.Sprintf("%02x", i)
			h, _ := newHashed(n, z.name)
			d.nsec3s = append(d.nsec3s, h)
		}
	}
	c := checker{now: testNow, rules: &rules{iterations: maxIterations}, work: newBudget()}
	name := strings.Repeat("x.", 110) + z.name
	for range 50 {
		if got := c.prove(name, dns.TypeA, true, d); got != unproven {
			t.Fatalf("got %v", got)
		}
	}
	if c.work.hashes.Load() > 0 {
		t.Errorf("%d hashes left", c.work.hashes.Load())
	}
}

// The questions of one lookup are counted, whatever the upstream answers.
func TestQuestionsBounded(t *testing.T) {
	root := newZone(t, ".", nsec, dns.ED25519, "")
	zones := []*testZone{root}
	name := ""
	for i := range 120 {
		name = fmt.Sprintf("%c.", 'a'+i%3) + name
		zones = append(zones, newZone(t, name, nsec, dns.ED25519, ""))
	}
	w, a := newWorld(t, zones...)
	before := w.asked.Load()
	got, err := New(w, a, WithClock(clock)).Lookup(context.Background(), name, dns.TypeTXT)
	if err != nil || got.Status == Secure {
		t.Errorf("got %v (%s), %v", got.Status, got.Why, err)
	}
	if n := w.asked.Load() - before; n > maxQueries {
		t.Errorf("%d questions", n)
	}
}
