package dnssec

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// asks is how many questions a lookup costs, and what it brings.
func asks(t *testing.T, w *world, v *Validator, name string, rrtype uint16) (int64, Answer) {
	t.Helper()
	before := w.asked.Load()
	got, err := v.Lookup(context.Background(), name, rrtype)
	if err != nil {
		t.Fatal(err)
	}
	return w.asked.Load() - before, got
}

// RFC 8198: what was proven once is not asked again, and no more than that.
func TestDenialsFromProofs(t *testing.T) {
	w, a := hierarchy(t)
	for _, tt := range []struct {
		first, then string
		types       [2]uint16
		free        bool
		want        Status
		rcode       int
		why         string
	}{
		{bob, bob, [2]uint16{dns.TypeMX, dns.TypeHTTPS}, true, Secure, 0, "the bitmap of the owner"},
		{bob, bob, [2]uint16{dns.TypeMX, dns.TypeIPSECKEY}, false, Secure, 0, "a type that the bitmap has"},
		{"www.sub.signed.test.", "www.sub.signed.test.", [2]uint16{dns.TypeAAAA, dns.TypeIPSECKEY}, true, Secure, 0, "an owner without AAAA has no IPSECKEY"},
		{"www.sub.signed.test.", "www.sub.signed.test.", [2]uint16{dns.TypeHTTPS, dns.TypeIPSECKEY}, true, Secure, 0, "nor one without HTTPS"},
		{"host.hashed.test.", "host.hashed.test.", [2]uint16{dns.TypeAAAA, dns.TypeIPSECKEY}, true, Secure, 0, "the same of NSEC3"},
		{"none.signed.test.", "nonf.signed.test.", [2]uint16{dns.TypeA, dns.TypeA}, true, Secure, 3, "a name in the same span, and the same wildcard"},
		{"none.signed.test.", "a.b.nonf.signed.test.", [2]uint16{dns.TypeA, dns.TypeAAAA}, true, Secure, 3, "a name below such a one"},
		{"none.signed.test.", "c.signed.test.", [2]uint16{dns.TypeA, dns.TypeA}, false, Secure, 3, "a name in another span"},
		{"none.signed.test.", "nonf.hashed.test.", [2]uint16{dns.TypeA, dns.TypeA}, false, Secure, 3, "a name of another zone"},
		{"ent.signed.test.", "ent.signed.test.", [2]uint16{dns.TypeA, dns.TypeMX}, true, Secure, 0, "an empty non-terminal"},
		{"any.wild.signed.test.", "other.wild.signed.test.", [2]uint16{dns.TypeMX, dns.TypeMX}, true, Secure, 0, "a wildcard without the type"},
		{"any.wild.signed.test.", "other.wild.signed.test.", [2]uint16{dns.TypeMX, dns.TypeA}, false, Secure, 0, "a wildcard with the type"},
		{"any.wild.signed.test.", "and.wild.signed.test.", [2]uint16{dns.TypeA, dns.TypeA}, true, Secure, 0, "a wildcard (RFC 8198, 5.3)"},
		{"any.wild.signed.test.", "y.wild.signed.test.", [2]uint16{dns.TypeA, dns.TypeA}, false, Secure, 0, "a wildcard, and a name in another span"},
		{"any.wild.signed.test.", "x.wild.signed.test.", [2]uint16{dns.TypeA, dns.TypeA}, false, Secure, 0, "a name that is there beside the wildcard"},
		{"any.wild.hashed.test.", "any.wild.hashed.test.", [2]uint16{dns.TypeA, dns.TypeA}, true, Secure, 0, "a wildcard of NSEC3, the same name"},
		{"any.wild.hashed.test.", "a.b.any.wild.hashed.test.", [2]uint16{dns.TypeA, dns.TypeA}, true, Secure, 0, "a wildcard of NSEC3, a name below"},
		{"any.wild.hashed.test.", "x.wild.hashed.test.", [2]uint16{dns.TypeA, dns.TypeA}, false, Secure, 0, "a name that is there beside it"},
		{"any.wild.loose.test.", "and.wild.loose.test.", [2]uint16{dns.TypeA, dns.TypeA}, false, Insecure, 0, "a wildcard in an opt-out span"},
		{"none.hashed.test.", "none.hashed.test.", [2]uint16{dns.TypeA, dns.TypeMX}, true, Secure, 3, "NSEC3"},
		{"none.loose.test.", "none.loose.test.", [2]uint16{dns.TypeA, dns.TypeMX}, false, Insecure, 3, "opt-out proves nothing to others (RFC 8198, 5.5)"},
		{"www.plain.test.", "www.plain.test.", [2]uint16{dns.TypeMX, dns.TypeTXT}, false, Insecure, 0, "an unsigned zone"},
		{"alias.signed.test.", "alias.signed.test.", [2]uint16{dns.TypeMX, dns.TypeA}, false, Secure, 0, "an alias is not denied by what denied its target"},
	} {
		v := New(w, a, WithClock(clock))
		asks(t, w, v, "signed.test.", dns.TypeA) // keys known
		asks(t, w, v, "hashed.test.", dns.TypeSOA)
		asks(t, w, v, tt.first, tt.types[0])
		n, got := asks(t, w, v, tt.then, tt.types[1])
		if (n == 0) != tt.free || got.Status != tt.want || got.Rcode != tt.rcode {
			t.Errorf("%s %s after %s: %d questions, %v rcode %d (%s), want none %v, %v rcode %d: %s", tt.then, typeName(tt.types[1]), tt.first, n, got.Status, got.Rcode, got.Why,
				tt.free, tt.want, tt.rcode, tt.why)
		}
		if tt.free && (got.Denied == (len(got.RRs) > 0) || got.Msg == nil || len(group(got.Msg.Ns)) == 0 || got.Denied && len(group(got.Msg.Ns)) < 2) {
			t.Errorf("%s: an answer without its proof: %v", tt.then, got.Msg)
		}
	}
}

// What is at hand ends with its TTL, with a flush, and where the configuration wants every denial asked for.
func TestProofsEnd(t *testing.T) {
	w, a := hierarchy(t)
	now := testNow
	v := New(w, a, WithClock(func() time.Time { return now }))
	asks(t, w, v, bob, dns.TypeMX)
	now = now.Add(100 * time.Second)
	n, got := asks(t, w, v, bob, dns.TypeTXT)
	if n != 0 || !got.Until.Equal(testNow.Add(300*time.Second)) || got.Msg.Ns[0].Header().Ttl != 200 {
		t.Errorf("after 100 s: %d questions, until %v, %v", n, got.Until, got.Msg.Ns)
	}
	now = now.Add(200 * time.Second)
	if n, _ := asks(t, w, v, bob, dns.TypeTXT); n == 0 {
		t.Error("after its TTL a proof is still used")
	}
	v.Flush()
	if n, _ := asks(t, w, v, bob, dns.TypeTXT); n == 0 {
		t.Error("after a flush a proof is still used")
	}
	v = New(w, a, WithClock(clock), WithoutSynthesis())
	asks(t, w, v, bob, dns.TypeMX)
	if n, _ := asks(t, w, v, bob, dns.TypeTXT); n != 1 {
		t.Errorf("without synthesis: %d questions", n)
	}
}

// A proof that did not verify is not kept, nor is a SOA that did not, though it came beside a good proof.
func TestOnlyProofsAreKept(t *testing.T) {
	w, a := hierarchy(t)
	for _, rrtype := range []uint16{dns.TypeNSEC, dns.TypeSOA} {
		v := New(w, a, WithClock(clock))
		w.set(func(q dns.Question, m *dns.Msg) {
			for _, r := range m.Ns {
				if sig, ok := r.(*dns.RRSIG); ok && sig.TypeCovered == rrtype && q.Name == bob {
					sig.Signature = "AAAA" + sig.Signature[4:]
				}
			}
		})
		asks(t, w, v, bob, dns.TypeMX)
		w.set(nil)
		if n, got := asks(t, w, v, bob, dns.TypeTXT); n == 0 || got.Status != Secure {
			t.Errorf("%s: %d questions, %v (%s)", typeName(rrtype), n, got.Status, got.Why)
		}
	}
}

// The order that proofs are kept in is that of RFC 4034, 6.1.
func TestOrderKey(t *testing.T) {
	names := []string{"example.", "a.example.", "yljkjljk.a.example.", "Z.a.example.", "zABC.a.EXAMPLE.", "z.example.", "\\001.z.example.", "*.z.example.", "\\200.z.example."}
	for i := range names {
		names[i] = dns.CanonicalName(names[i])
	}
	names = append(names, "\\000.a.", "a\\000.a.", "a\\000b.a.", "a\\001.a.", "a.a.", "a.", ".")
	slices.SortFunc(names, compare)
	for i, a := range names {
		for j, b := range names {
			if x, y := orderKey(a) < orderKey(b), i < j; x != y {
				t.Errorf("%q before %q: %v", a, b, x)
			}
		}
	}
}

// The cache of proofs has an end.
func TestProofsBounded(t *testing.T) {
	p := proofs{zones: map[string]*proven{}}
	for i := range 3 * maxProofs {
		zone := fmt.Sprintf("z%d.", i%50)
		name := fmt.Sprintf("n%d.%s", i, zone)
		r := rr(name + " 60 IN NSEC " + zone + " A")
		p.put(zone, &rrset{name: name, rrtype: dns.TypeNSEC, rrs: []dns.RR{r}}, testNow.Add(time.Hour), testNow)
	}
	n := 0
	for _, z := range p.zones {
		n += len(z.nsec)
	}
	if n > maxProofs || n != p.count || n == 0 {
		t.Errorf("%d records, counted %d", n, p.count)
	}
}

// twoWays is an upstream whose first way lies.
type twoWays struct {
	lying, honest Exchanger
	ways          int
}

func (u twoWays) Ways() (ways []int) {
	for i := 1; i < u.ways; i++ {
		ways = append(ways, i)
	}
	return ways
}
func (u twoWays) Chosen(string, uint16, int, string) {}
func (u twoWays) Exchange(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	if Way(ctx) != 0 {
		return u.honest.Exchange(ctx, q)
	}
	return u.lying.Exchange(ctx, q)
}

// What is Bogus by one way is asked by another, in the same work budget; a lie that both tell stays Bogus, and says why.
func TestElsewhere(t *testing.T) {
	liar, a := hierarchy(t)
	honest := &world{t: t, zones: liar.zones}
	for _, broken := range []struct {
		name   string
		rrtype uint16
	}{{bob, dns.TypeA}, {"signed.test.", dns.TypeDS}, {"signed.test.", dns.TypeDNSKEY}, {".", dns.TypeDNSKEY}} {
		liar.set(func(q dns.Question, m *dns.Msg) {
			if q.Name == broken.name && q.Qtype == broken.rrtype {
				m.Answer, m.Ns = nil, nil
			}
		})
		for _, tt := range []struct {
			up   Exchanger
			want Status
		}{{twoWays{liar, honest, 2}, Secure}, {twoWays{liar, honest, 1}, Bogus}, {twoWays{liar, liar, 3}, Bogus}, {liar, Bogus}} {
			got, err := New(tt.up, a, WithClock(clock)).Lookup(context.Background(), bob, dns.TypeA)
			if err != nil || got.Status != tt.want || tt.want == Bogus && got.EDE == NoEDE {
				t.Errorf("%s %s, %+v: got %v (%s), %v, want %v", broken.name, typeName(broken.rrtype), tt.up, got.Status, got.Why, err, tt.want)
			}
		}
	}
	liar.set(func(_ dns.Question, m *dns.Msg) { m.Answer, m.Ns = nil, nil })
	before := liar.asked.Load()
	name := ""
	for range 60 {
		name += "x."
	}
	if got, err := New(twoWays{liar, liar, 9}, a, WithClock(clock)).Lookup(context.Background(), name+"signed.test.", dns.TypeA); err != nil || got.Status == Secure {
		t.Errorf("got %v, %v", got.Status, err)
	}
	if n := liar.asked.Load() - before; n > maxQueries {
		t.Errorf("%d questions by all ways", n)
	}
}
