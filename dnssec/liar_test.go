package dnssec

import (
	"context"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
)

// liar is an upstream that answers honestly, or with answers that it has changed. What it says to a question depends on the round and the question only.
type liar struct {
	w     *world
	evil  *testZone // a zone of the attacker's, properly delegated and signed
	round atomic.Uint64

	mu     sync.Mutex
	honest map[question]*dns.Msg
	pool   []dns.RR // all that the zones have ever said, to be said again elsewhere
}

// truth is the honest answer to q.
func (l *liar) truth(q dns.Question) *dns.Msg {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := question{dns.CanonicalName(q.Name), q.Qtype}
	if m := l.honest[k]; m != nil {
		return m.Copy()
	}
	req := new(dns.Msg)
	req.SetQuestion(q.Name, q.Qtype)
	m, err := l.w.Exchange(context.Background(), req)
	if err != nil {
		l.w.t.Error(err)
		return new(dns.Msg)
	}
	l.honest[k] = m
	if len(l.pool) < 4000 {
		l.pool = append(append(l.pool, m.Answer...), m.Ns...)
	}
	return m.Copy()
}

func (l *liar) Exchange(_ context.Context, q *dns.Msg) (*dns.Msg, error) {
	m := l.truth(q.Question[0])
	h := fnv.New64a()
	h.Write([]byte(q.Question[0].String()))
	round := l.round.Load()
	r := rand.New(rand.NewPCG(round, h.Sum64()))
	if round > 0 && r.IntN(3) == 0 {
		for range 1 + r.IntN(3) {
			l.lie(r, m)
		}
	}
	m.Id = q.Id
	b, err := m.Pack()
	if err != nil {
		return nil, err // what has no wire form cannot be sent
	}
	out := new(dns.Msg)
	return out, out.Unpack(b)
}

// said is a record that some zone has said.
func (l *liar) said(r *rand.Rand) dns.RR {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pool) == 0 {
		return rr("test. 60 IN TXT nothing")
	}
	return dns.Copy(l.pool[r.IntN(len(l.pool))])
}

// lie changes a message once.
func (l *liar) lie(r *rand.Rand, m *dns.Msg) {
	secs := []*[]dns.RR{&m.Answer, &m.Ns}
	sec := secs[r.IntN(2)]
	if len(*sec) == 0 {
		sec = secs[r.IntN(2)]
	}
	name := m.Question[0].Name
	switch n := r.IntN(14); {
	case n == 0:
		m.Rcode = []int{0, 2, 3, 5, 6}[r.IntN(5)]
	case n == 1:
		*sec = append(*sec, l.said(r))
	case n == 2: // an answer to another question
		other := l.truth(dns.Question{Name: dns.CanonicalName(l.said(r).Header().Name), Qtype: m.Question[0].Qtype, Qclass: dns.ClassINET})
		m.Answer, m.Ns, m.Rcode = other.Answer, other.Ns, other.Rcode
	case n == 3: // the attacker's own
		l.forge(r, m, sec, name)
	case n == 4:
		m.Answer, m.Ns = m.Ns, m.Answer
	case len(*sec) == 0:
		*sec = append(*sec, l.said(r))
	case n == 5:
		*sec = slices.Delete(*sec, 0, 1+r.IntN(len(*sec)))
	case n == 6:
		i := r.IntN(len(*sec))
		*sec = slices.Delete(*sec, i, i+1)
	case n == 7:
		i := r.IntN(len(*sec))
		*sec = append(*sec, dns.Copy((*sec)[i]))
		(*sec)[i] = l.said(r)
	case n == 8:
		from, to := (*sec)[r.IntN(len(*sec))].Header().Name, l.said(r).Header().Name
		if r.IntN(2) == 0 {
			to = name
		}
		rename(m, from, to)
	case n == 9:
		(*sec)[r.IntN(len(*sec))].Header().Ttl = r.Uint32()
	case n == 10:
		h := (*sec)[r.IntN(len(*sec))].Header()
		h.Name = []string{strings.ToUpper(h.Name), "*." + h.Name, parent(dns.CanonicalName(h.Name)), "x." + h.Name}[r.IntN(4)]
	default:
		bend(r, (*sec)[r.IntN(len(*sec))])
	}
}

// forge adds a record about name, signed by the attacker's key, in its own name or another's.
func (l *liar) forge(r *rand.Rand, m *dns.Msg, sec *[]dns.RR, name string) {
	forged := []dns.RR{rr("a. 60 IN A 203.0.113.66"), rr("a. 60 IN CNAME www.hashed.test."), rr("a. 60 IN DNAME hashed.test."), rr("a. 60 IN NSEC \\000.a. A RRSIG NSEC"),
		rr("a. 60 IN IPSECKEY 10 0 4 . AAAA"), dns.Copy(l.evil.key), l.evil.key.ToDS(dns.SHA256)}[r.IntN(7)]
	forged.Header().Name = []string{name, parent(dns.CanonicalName(name)), l.evil.name}[r.IntN(3)]
	sig := l.evil.sign([]dns.RR{forged})
	sig.Hdr.Name = forged.Header().Name
	if r.IntN(2) == 0 {
		for _, old := range slices.Concat(m.Answer, m.Ns) {
			if s, ok := old.(*dns.RRSIG); ok {
				sig.SignerName, sig.KeyTag = s.SignerName, s.KeyTag
			}
		}
	}
	if r.IntN(2) == 0 {
		*sec = nil
	}
	*sec = append(*sec, forged, sig)
}

// bend changes the data of a record.
func bend(r *rand.Rand, record dns.RR) {
	switch rr := record.(type) {
	case *dns.RRSIG:
		switch r.IntN(8) {
		case 0:
			rr.Labels = uint8(r.IntN(5))
		case 1:
			rr.SignerName = []string{"test.", ".", "signed.test.", "hashed.test.", rr.Hdr.Name}[r.IntN(5)]
		case 2:
			rr.TypeCovered = []uint16{dns.TypeA, dns.TypeNSEC, dns.TypeDS, dns.TypeDNSKEY, dns.TypeIPSECKEY}[r.IntN(5)]
		case 3:
			rr.KeyTag++
		case 4:
			rr.Algorithm = []uint8{5, 8, 13, 15, 200}[r.IntN(5)]
		case 5:
			rr.Expiration += uint32(r.IntN(1 << 20))
		case 6:
			rr.OrigTtl++
		default:
			rr.Signature = "A" + rr.Signature[1:]
		}
	case *dns.NSEC:
		if rr.NextDomain = "zz." + rr.NextDomain; r.IntN(2) == 0 {
			rr.TypeBitMap = nil
		}
	case *dns.NSEC3:
		switch r.IntN(5) {
		case 0:
			rr.Flags ^= 1
		case 1:
			rr.Iterations += 200
		case 2:
			rr.NextDomain = "VVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVV"
		case 3:
			rr.TypeBitMap = []uint16{dns.TypeNS}
		default:
			rr.Salt, rr.SaltLength = "cd", 1
		}
	case *dns.DS:
		if rr.Algorithm = 200; r.IntN(2) == 0 {
			rr.DigestType = 77
		}
	case *dns.DNSKEY:
		if rr.Flags ^= 1 << r.IntN(10); r.IntN(2) == 0 {
			rr.Algorithm = 200
		}
	case *dns.A:
		rr.A = []byte{203, 0, 113, byte(r.IntN(256))}
	case *dns.CNAME:
		rr.Target = "www.plain.test."
	case *dns.DNAME:
		rr.Target = "plain.test."
	case *dns.IPSECKEY:
		rr.PublicKey = "AAAA"
	}
}

// facts are what an answer says: where the name leads, and the records there.
func facts(a Answer) string {
	var out []string
	for _, r := range a.RRs {
		r = dns.Copy(r)
		r.Header().Ttl = 0
		out = append(out, strings.ToLower(r.String()))
	}
	slices.Sort(out)
	if a.Denied {
		out = append(out, "denied", dns.RcodeToString[a.Rcode])
	}
	return a.Owner + " " + strings.Join(out, "; ")
}

// An upstream that changes answers can make them fail, but Secure is never said of anything but what the zones signed, what is signed never passes for
// unsigned, and nothing that it said spoils a later answer. A hundred thousand lies with TACIT_LONG=1.
func TestLyingUpstream(t *testing.T) {
	w, a := hierarchy(t)
	l := &liar{w: w, evil: w.zones["sec.loose.test."], honest: map[question]*dns.Msg{}}
	questions := []question{{bob, dns.TypeA}, {bob, dns.TypeIPSECKEY}, {bob, dns.TypeMX}, {none, dns.TypeA}, {"alias.signed.test.", dns.TypeA}, {"away.signed.test.", dns.TypeA},
		{"ent.signed.test.", dns.TypeA}, {"any.wild.signed.test.", dns.TypeA}, {"any.wild.signed.test.", dns.TypeIPSECKEY}, {"host.old.signed.test.", dns.TypeA},
		{"any.walias.signed.test.", dns.TypeA}, {"www.sub.signed.test.", dns.TypeA}, {"www.sub.signed.test.", dns.TypeIPSECKEY}, {"signed.test.", dns.TypeDS}, {"host.hashed.test.", dns.TypeA},
		{"none.hashed.test.", dns.TypeA}, {"any.wild.hashed.test.", dns.TypeA}, {"host.loose.test.", dns.TypeA}, {"www.plain.test.", dns.TypeA},
		{"plain.test.", dns.TypeDS}, {"dead.signed.test.", dns.TypeA}, {"x.wild.signed.test.", dns.TypeA}, {"y.x.wild.signed.test.", dns.TypeA},
		{"x.wild.hashed.test.", dns.TypeA}}
	want := map[question]Answer{}
	for _, q := range questions {
		got, err := New(l, a, WithClock(clock)).Lookup(context.Background(), q.name, q.rrtype)
		if err != nil || got.Status < Insecure {
			t.Fatalf("honest: %v: %v (%s), %v", q, got.Status, got.Why, err)
		}
		want[q] = got
	}
	lies, seen := 1500, map[Status]int{}
	if os.Getenv("TACIT_LONG") == "1" {
		lies = 100_000
	}
	for round := 1; round <= lies; {
		v := New(l, a, WithClock(clock))
		for range 4 { // with what the lies before have left in the caches
			round++
			l.round.Store(uint64(round))
			q := questions[round%len(questions)]
			got, err := v.Lookup(context.Background(), q.name, q.rrtype)
			if err != nil {
				t.Fatal(err)
			}
			seen[got.Status]++
			honest := want[q]
			switch {
			case got.Status == Secure && (honest.Status != Secure || facts(got) != facts(honest)):
				t.Fatalf("round %d, %v: secure %s (%s)\n%v\nwant %v %s", round, q, facts(got), got.Why, got.Msg, honest.Status, facts(honest))
			case got.Status == Insecure && honest.Status == Secure:
				t.Fatalf("round %d, %v: insecure (%s)\n%v\nwant secure", round, q, got.Why, got.Msg)
			}
		}
	}
	t.Logf("%d lies: %v", lies, seen)
	if seen[Secure] < lies/20 || seen[Bogus] < lies/4 {
		t.Errorf("a test without teeth: %v", seen)
	}
}
