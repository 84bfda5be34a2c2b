package dnssec

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// A-31, CVE-2023-50387 (KeyTrap): many keys of one tag and many signatures, none of which verifies. The work is bounded, whatever comes.
//
//tacit:attack A-31 bounded work, whatever comes
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
	good := &zone{name: z.name, verdict: other.verdict, keys: []zoneKey{newZoneKey(z.key)}}
	c.work.sigs.Store(0)
	if got := c.verify(set, good); got.status != Bogus || !strings.Contains(got.why, "more than 96 signatures") {
		t.Errorf("with no work left: %v", got)
	}
}

// A-31, CVE-2023-50868: NSEC3 closest encloser proofs for a name of many labels.
//
//tacit:attack A-31 bounded hashing
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

// costs runs a lookup, in as many rounds as a Rerouter would cause, and says what is left of its budget.
func costs(t *testing.T, v *Validator, name string, rrtype uint16) (*budget, Answer) {
	t.Helper()
	work := newBudget()
	got := v.try(context.Background(), name, rrtype, testNow, work, 0)
	for range 3 {
		if got.Status == Secure {
			break
		}
		got = v.try(context.Background(), name, rrtype, testNow, work, 1)
	}
	return work, got
}

// kept says whether no counter has gone further below zero than the one attempt of each goroutine that was refused.
func kept(b *budget) bool {
	return b.sigs.Load() > -64 && b.queries.Load() > -64 && b.digests.Load() > -64
}

// trapped makes zone z show 30 more keys of the tag of its own, and 40 signatures that none of them made, over everything.
func trapped(t *testing.T, w *world, z *testZone) {
	var keys []dns.RR
	for tag := z.key.KeyTag(); len(keys) < 30; {
		k := dns.Copy(z.key).(*dns.DNSKEY)
		raw, err := base64.StdEncoding.DecodeString(k.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		for i := 8 + 4*len(keys); ; i++ { // two octets of one weight changed against each other: the tag stays; and any odd number is a modulus
			if raw[i] < 255 && raw[i+2] > 0 {
				raw[i]++
				raw[i+2]--
				break
			}
		}
		k.PublicKey = base64.StdEncoding.EncodeToString(raw)
		if k.KeyTag() != tag {
			t.Fatalf("tag %d, want %d", k.KeyTag(), tag)
		}
		keys = append(keys, k)
	}
	w.set(func(q dns.Question, m *dns.Msg) {
		if !within(q.Name, z.name) || q.Qtype == dns.TypeDS && q.Name == z.name {
			return
		}
		for _, sec := range []*[]dns.RR{&m.Answer, &m.Ns} {
			for _, set := range group(*sec) {
				for i := range 40 {
					if len(set.sigs) > 0 {
						bad := dns.Copy(set.sigs[0]).(*dns.RRSIG)
						bad.Signature = base64.StdEncoding.EncodeToString(append(make([]byte, 255), byte(i)))
						*sec = append([]dns.RR{bad}, *sec...)
					}
				}
				if set.rrtype == dns.TypeDNSKEY {
					*sec = append(append([]dns.RR{}, keys...), *sec...)
				}
			}
		}
	})
}

// one budget for all that a lookup causes: aliases, ways, zones, whatever is traps on the way. None of them begins it anew.
//
//tacit:attack A-31 no alias, way or zone begins the budget anew
func TestOneBudget(t *testing.T) {
	zones := []*testZone{newZone(t, ".", nsec, dns.ED25519, "")}
	for i := range 14 { // CAMP: an alias leads to the next zone, and each has to be validated
		zones = append(zones, newZone(t, fmt.Sprintf("z%d.", i), nsec, dns.ED25519, fmt.Sprintf("a.z%d. 60 IN CNAME a.z%d.", i, i+1)))
	}
	trap := newZone(t, "trap.", nsec, dns.RSASHA256, "a.trap. 60 IN A 192.0.2.1")
	zones = append(zones, trap)
	w, a := newWorld(t, zones...)
	v := New(w, a, WithClock(clock))
	if work, got := costs(t, v, "a.z0.", dns.TypeA); got.Status == Secure || !kept(work) {
		t.Errorf("a chain of 14 zones: %v (%s), left %+v", got.Status, got.Why, work)
	}
	trapped(t, w, trap)
	work, got := costs(t, New(w, a, WithClock(clock)), "a.trap.", dns.TypeA)
	if got.Status != Bogus || !kept(work) {
		t.Errorf("a zone of traps: %v (%s), left %+v", got.Status, got.Why, work)
	}
	for range 100 { // nor does the next try of the same lookup find anything left
		costs := work.sigs.Load()
		if got := v.try(context.Background(), "a.trap.", dns.TypeA, testNow, work, 1); got.Status == Secure || costs < 0 && work.sigs.Load() < costs-64 {
			t.Fatalf("with nothing left: %v, %d", got.Status, work.sigs.Load())
		}
	}
}

// DS records of one tag and 30 keys of that tag: the digests are counted, too.
func TestDigestsBounded(t *testing.T) {
	z := newZone(t, "test.", nsec, dns.ED25519, "")
	c := rollChecker(testNow)
	var ds []*dns.DS
	for range maxDS {
		d := z.key.ToDS(dns.SHA256)
		d.Digest = strings.Repeat("0", 64)
		ds = append(ds, d)
	}
	for range 30 {
		if c.vouched(newZoneKey(z.key), ds) {
			t.Fatal("a digest of zeros")
		}
	}
	if !c.work.spent() {
		t.Errorf("480 digests, and %d left", c.work.digests.Load())
	}
	if c.vouched(newZoneKey(z.key), []*dns.DS{z.key.ToDS(dns.SHA256)}) {
		t.Error("with nothing left a digest is computed")
	}
}

// Sets of a thousand records are validated in bounded time, and what comes is counted in octets.
func TestThousandRecords(t *testing.T) {
	var lines []string
	for i := range 1000 {
		lines = append(lines, fmt.Sprintf("a.test. 60 IN IPSECKEY 10 0 4 . %s", base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%032d", i))))
	}
	z := newZone(t, "test.", nsec, dns.ED25519, strings.Join(lines, "\n"))
	w, a := newWorld(t, newZone(t, ".", nsec, dns.ED25519, ""), z)
	start := time.Now()
	got, err := New(w, a, WithClock(clock)).Lookup(context.Background(), "a.test.", dns.TypeIPSECKEY)
	if err != nil || got.Status != Secure || len(got.RRs) != 1000 {
		t.Errorf("got %v (%s) with %d records, %v", got.Status, got.Why, len(got.RRs), err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("%v", d)
	}
	work := newBudget()
	work.octets.Store(2000)
	v := New(w, a, WithClock(clock))
	if got := v.try(context.Background(), "a.test.", dns.TypeIPSECKEY, testNow, work, 0); got.Status != Bogus || !strings.Contains(got.Why, "budget") {
		t.Errorf("with 2000 octets left: %v (%s)", got.Status, got.Why)
	}
}

// a lookup that meets more signatures than an honest zone has, or one that does not hold, is heavy from then on; an honest one never is.
func TestTrapsAreHeavy(t *testing.T) {
	z := newZone(t, "test.", nsec, dns.ED25519, "www.test. 60 IN A 192.0.2.1")
	set := func(bad, good int) *rrset {
		s := &rrset{name: "www.test.", rrtype: dns.TypeA, rrs: z.node["www.test."][dns.TypeA]}
		for range bad {
			sig := z.sign(s.rrs)
			sig.Signature = base64.StdEncoding.EncodeToString(make([]byte, 64))
			s.sigs = append(s.sigs, sig)
		}
		for range good {
			s.sigs = append(s.sigs, z.sign(s.rrs))
		}
		return s
	}
	keys := &zone{name: z.name, verdict: verdict{status: Secure, until: testNow.Add(1e12)}, keys: []zoneKey{newZoneKey(z.key)}}
	for _, tt := range []struct {
		bad, good int
		want      bool
	}{{0, 1, false}, {0, fastSetSigs, false}, {0, fastSetSigs + 1, true}, {1, 1, true}, {1, 0, true}} {
		c := checker{now: testNow, rules: &rules{iterations: maxIterations}, work: newBudget()}
		c.verify(set(tt.bad, tt.good), keys)
		if got := c.work.heavy(); got != tt.want {
			t.Errorf("%d wrong and %d good signatures: heavy %v, want %v", tt.bad, tt.good, got, tt.want)
		}
	}
}

// honest are the times of n lookups with a cold cache.
func honest(t *testing.T, v *Validator, n int) (took []time.Duration) {
	for range n {
		v.Flush()
		start := time.Now()
		if got, err := v.Lookup(context.Background(), "www.good.", dns.TypeA); err != nil || got.Status != Secure {
			t.Fatalf("honest: %v (%s), %v", got.Status, got.Why, err)
		}
		took = append(took, time.Since(start))
	}
	return took
}

// p99 is the time that all but one in a hundred take.
func p99(took []time.Duration) time.Duration {
	slices.Sort(took)
	return took[len(took)*99/100]
}

// however many lookups are heavy, an honest one stands behind one of their operations at a time, and does so at most for each of its own.
func TestLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const operation = time.Millisecond
		for _, processors := range []int{1, 2, 8} {
			l := newLanes(processors)
			ctx, stop := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					for ctx.Err() == nil {
						leave := l.enter(true)
						time.Sleep(operation)
						leave()
					}
				})
			}
			time.Sleep(10 * operation)
			start := time.Now()
			for range 16 {
				leave := l.enter(false)
				time.Sleep(operation)
				leave()
			}
			if took := time.Since(start); took > 2*16*operation {
				t.Errorf("%d processors: 16 operations took %v under attack", processors, took)
			}
			stop()
			wg.Wait()
		}
	})
}

// lookups of traps leave the others' p99 at most doubled, with TACIT_LONG=1.
func TestOthersUnharmed(t *testing.T) {
	if os.Getenv("TACIT_LONG") != "1" {
		t.Skip("takes long: TACIT_LONG=1")
	}
	trap := newZone(t, "trap.", nsec, dns.RSASHA256, "a.trap. 60 IN A 192.0.2.1")
	w, a := newWorld(t, newZone(t, ".", nsec, dns.ED25519, ""), trap, newZone(t, "good.", nsec, dns.ED25519, "www.good. 60 IN A 192.0.2.2"))
	trapped(t, w, trap)
	canned := map[question]*dns.Msg{} // signing is the world's cost, not the validator's
	for _, q := range []question{{".", dns.TypeDNSKEY}, {"good.", dns.TypeDS}, {"good.", dns.TypeDNSKEY}, {"www.good.", dns.TypeA}, {"www.good.", dns.TypeDS}, {"trap.", dns.TypeDS},
		{"trap.", dns.TypeDNSKEY}, {"a.trap.", dns.TypeA}, {"a.trap.", dns.TypeDS}} {
		m := new(dns.Msg)
		m.SetQuestion(q.name, q.rrtype)
		r, err := w.Exchange(context.Background(), m)
		if err != nil {
			t.Fatal(err)
		}
		canned[q] = r
	}
	up := exchangerFunc(func(_ context.Context, q *dns.Msg) (*dns.Msg, error) {
		if m := canned[question{q.Question[0].Name, q.Question[0].Qtype}]; m != nil {
			return m.Copy(), nil
		}
		return nil, errors.New("not canned")
	})
	// In turn, so that whatever else the machine does is in both.
	const rounds, n, most = 40, 50, 2
	v := New(up, a, WithClock(clock))
	var quiet, under []time.Duration
	for range rounds {
		quiet = append(quiet, honest(t, v, n)...)
		ctx, stop := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				attacked := New(up, a, WithClock(clock))
				attacked.lanes = v.lanes
				for ctx.Err() == nil {
					attacked.Flush()
					_, _ = attacked.Lookup(ctx, "a.trap.", dns.TypeA)
				}
			})
		}
		time.Sleep(20 * time.Millisecond) // until the attack is what it is
		under = append(under, honest(t, v, n)...)
		stop()
		wg.Wait()
	}
	q, u := p99(quiet), p99(under)
	t.Logf("p99 of honest lookups: %v, under attack %v; medians %v and %v", q, u, quiet[len(quiet)/2], under[len(under)/2])
	if u > most*q {
		t.Errorf("p99 %v, under attack %v", q, u)
	}
}
