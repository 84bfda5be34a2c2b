package resolver

import (
	"context"
	"crypto"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// signedZone is example., signed with one Ed25519 key and an NSEC chain, behind a double of the upstreams.
type signedZone struct {
	t      *testing.T
	key    *dns.DNSKEY
	signer crypto.Signer
	mu     sync.Mutex
	sets   map[question][]dns.RR
	tamper func(q question, m *dns.Msg)
}

func newSignedZone(t *testing.T, texts ...string) *signedZone {
	t.Helper()
	z := &signedZone{t: t, sets: map[question][]dns.RR{}}
	z.key = &dns.DNSKEY{Hdr: dns.RR_Header{Name: "example.", Rrtype: dns.TypeDNSKEY, Class: 1, Ttl: 60}, Flags: 257, Protocol: 3, Algorithm: dns.ED25519}
	priv, err := z.key.Generate(256)
	if err != nil {
		t.Fatal(err)
	}
	z.signer = priv.(crypto.Signer)
	all := records("example. 60 IN SOA ns.example. root.example. 1 1 1 1 30", "example. 60 IN NS ns.example.")
	for _, rr := range append(append(all, z.key), records(texts...)...) {
		q := question{rr.Header().Name, rr.Header().Rrtype}
		z.sets[q] = append(z.sets[q], rr)
	}
	return z
}

func (z *signedZone) sign(set []dns.RR) *dns.RRSIG {
	sig := &dns.RRSIG{Algorithm: dns.ED25519, KeyTag: z.key.KeyTag(), SignerName: "example.",
		Inception: uint32(time.Now().Add(-time.Hour).Unix()), Expiration: uint32(time.Now().Add(time.Hour).Unix())}
	sig.Hdr.Ttl = set[0].Header().Ttl
	if err := sig.Sign(z.signer, set); err != nil {
		panic(err)
	}
	return sig
}

// Exchange is what a name server says: the RRset with its signature, or SOA and an NSEC that matches the name ("white lies").
func (z *signedZone) Exchange(_ context.Context, req *dns.Msg) (*dns.Msg, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	q := question{dns.CanonicalName(req.Question[0].Name), req.Question[0].Qtype}
	m := new(dns.Msg)
	m.SetReply(req)
	m.Compress = true
	m.SetEdns0(1232, true)
	if set := z.sets[q]; set != nil {
		for _, rr := range set {
			m.Answer = append(m.Answer, dns.Copy(rr))
		}
		m.Answer = append(m.Answer, z.sign(set))
	} else {
		soa := z.sets[question{"example.", dns.TypeSOA}]
		nsec := &dns.NSEC{Hdr: dns.RR_Header{Name: q.name, Rrtype: dns.TypeNSEC, Class: 1, Ttl: 30}, NextDomain: "\\000." + q.name}
		for _, t := range []uint16{dns.TypeA, dns.TypeNS, dns.TypeSOA, dns.TypeAAAA, dns.TypeIPSECKEY, dns.TypeRRSIG, dns.TypeNSEC, dns.TypeDNSKEY} {
			if z.sets[question{q.name, t}] != nil || t == dns.TypeRRSIG || t == dns.TypeNSEC {
				nsec.TypeBitMap = append(nsec.TypeBitMap, t)
			}
		}
		m.Ns = append(m.Ns, soa[0], z.sign(soa), nsec, z.sign([]dns.RR{nsec}))
	}
	if z.tamper != nil {
		z.tamper(q, m)
	}
	b, err := m.Pack()
	if err != nil {
		return nil, err
	}
	out := new(dns.Msg)
	return out, out.Unpack(b)
}

// The whole way on real parts: client, server, validator, upstream, a signed zone; and against it.
func TestWithTheValidator(t *testing.T) {
	z := newSignedZone(t, "bob.example. 60 IN A 192.0.2.1", "bob.example. 60 IN IPSECKEY 10 0 4 . Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=",
		"plain.example. 60 IN A 192.0.2.2")
	anchors, err := dnssec.ParseAnchors([]byte(z.key.String()+"\n"), "anchors")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, name string
		tamper     func(q question, m *dns.Msg)
		want       string
		key, addr  dnssec.Status // as the Watcher saw them; Unchecked: not called
		keys       int
	}{
		{"key", "bob.example.", nil, "NOERROR ad 192.0.2.1", dnssec.Secure, dnssec.Secure, 1},
		{"no key", "plain.example.", nil, "NOERROR ad 192.0.2.2", dnssec.Secure, dnssec.Secure, 0},
		{"A-01: key stripped", "bob.example.", func(q question, m *dns.Msg) {
			if q.typ == dns.TypeIPSECKEY {
				m.Answer = nil
			}
		}, "SERVFAIL ede=DNSSEC Indeterminate", dnssec.Bogus, dnssec.Secure, 0},
		{"A-01: no answer to the key", "bob.example.", func(q question, m *dns.Msg) {
			if q.typ == dns.TypeIPSECKEY {
				m.Rcode, m.Answer = dns.RcodeServerFailure, nil
			}
		}, "SERVFAIL ede=DNSSEC Indeterminate", dnssec.Indeterminate, dnssec.Secure, 0},
		{"A-02: signature of the key", "bob.example.", func(q question, m *dns.Msg) {
			if q.typ == dns.TypeIPSECKEY {
				m.Answer[1].(*dns.RRSIG).Signature = "AAAA"
			}
		}, "SERVFAIL ede=DNSSEC Indeterminate", dnssec.Bogus, dnssec.Secure, 0},
		{"A-04: forged address", "bob.example.", func(q question, m *dns.Msg) {
			if q.typ == dns.TypeA {
				m.Answer[0] = records("bob.example. 60 IN A 192.0.2.66")[0]
			}
		}, "SERVFAIL ede=DNSSEC Bogus", dnssec.Unchecked, dnssec.Unchecked, 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			z.mu.Lock()
			z.tamper = c.tamper
			z.mu.Unlock()
			w := &watcher{}
			s, err := New(Config{Listen: []netip.AddrPort{netip.AddrPortFrom(loop, 0)}, Lookup: dnssec.New(z, anchors), Upstream: z, Watcher: w, Hold: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- s.Serve(ctx) }()
			defer func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}()
			for range 2 { // the second time from the cache
				r := exchange(t, "udp", s.Addrs()[0].String(), newQuery(c.name, 1, flags{edns: true, ad: true}))
				if got := outcomeOf(r); got != c.want {
					t.Errorf("got %q, want %q", got, c.want)
				}
			}
			if c.addr == dnssec.Unchecked {
				if w.calls() != 0 {
					t.Errorf("watcher called with %+v", w.last(t))
				}
				return
			}
			got := w.last(t)
			if got.AddrStatus != c.addr || got.KeyStatus != c.key || len(got.Keys) != c.keys {
				t.Errorf("found %s, want %v, %v, %d keys", fmt.Sprintf("%+v", got), c.addr, c.key, c.keys)
			}
		})
	}
}
