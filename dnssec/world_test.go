package dnssec

import (
	"context"
	"crypto"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// testNow is the time of every test.
var testNow = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// How a test zone denies.
const (
	plain = iota // not signed
	nsec
	nsec3
	optout
)

// testZone is a zone with its keys, signed when it is asked.
type testZone struct {
	name   string
	mode   int
	alg    uint8
	key    *dns.DNSKEY
	priv   crypto.Signer
	iter   uint16
	dsHash uint8
	node   map[string]map[uint16][]dns.RR
	denial map[string]dns.RR // NSEC by owner, NSEC3 by hash
	from   time.Time
	to     time.Time
}

// world is a hierarchy of zones and the recursive server that answers for all of them.
type world struct {
	t       testing.TB
	zones   map[string]*testZone
	mu      sync.Mutex
	queries []string
	asked   atomic.Int64
	tamper  func(q dns.Question, m *dns.Msg)
	delay   time.Duration
	fail    func(q dns.Question) error
}

// set changes what the upstream does to its answers. Questions of an earlier lookup may still be on their way.
func (w *world) set(tamper func(q dns.Question, m *dns.Msg)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tamper = tamper
}

func newZone(t testing.TB, name string, mode int, alg uint8, records string) *testZone {
	t.Helper()
	z := &testZone{name: name, mode: mode, alg: alg, dsHash: dns.SHA256, node: map[string]map[uint16][]dns.RR{}, denial: map[string]dns.RR{},
		from: testNow.Add(-time.Hour), to: testNow.Add(24 * time.Hour)}
	z.add(fmt.Sprintf("%s 3600 IN SOA ns.%s host.%s 1 3600 600 86400 300", name, strings.TrimPrefix(name, "."), strings.TrimPrefix(name, ".")))
	z.add(fmt.Sprintf("%s 3600 IN NS ns.example.", name))
	for _, line := range strings.Split(records, "\n") {
		if line = strings.TrimSpace(line); line != "" {
			z.add(line)
		}
	}
	if mode != plain {
		z.key, z.priv = newKey(t, name, alg)
		z.put(z.key)
	}
	return z
}

// rsaKeys are the RSA keys that were made, by algorithm: one serves all zones, as making one takes long.
var rsaKeys = map[uint8]struct {
	public string
	priv   crypto.Signer
}{}

func newKey(t testing.TB, name string, alg uint8) (*dns.DNSKEY, crypto.Signer) {
	t.Helper()
	if made, ok := rsaKeys[alg]; ok {
		return &dns.DNSKEY{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeDNSKEY, Class: dns.ClassINET, Ttl: 3600}, Flags: 257, Protocol: 3, Algorithm: alg,
			PublicKey: made.public}, made.priv
	}
	k := &dns.DNSKEY{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeDNSKEY, Class: dns.ClassINET, Ttl: 3600}, Flags: 257, Protocol: 3, Algorithm: alg}
	bits := map[uint8]int{dns.ED25519: 256, dns.ECDSAP256SHA256: 256, dns.ECDSAP384SHA384: 384, dns.RSASHA256: 2048, dns.RSASHA1: 2048, dns.RSASHA1NSEC3SHA1: 2048, dns.RSASHA512: 2048}[alg]
	priv, err := k.Generate(bits)
	if err != nil {
		t.Fatal(err)
	}
	made := rsaKeys[alg]
	if made.public, made.priv = k.PublicKey, priv.(crypto.Signer); alg < dns.ECDSAP256SHA256 {
		rsaKeys[alg] = made
	}
	return k, made.priv
}

func rr(line string) dns.RR {
	r, err := dns.NewRR(line)
	if err != nil {
		panic(err)
	}
	return r
}

func (z *testZone) add(line string) {
	z.put(rr(line))
}

func (z *testZone) put(r dns.RR) {
	name := dns.CanonicalName(r.Header().Name)
	if z.node[name] == nil {
		z.node[name] = map[uint16][]dns.RR{}
	}
	z.node[name][r.Header().Rrtype] = append(z.node[name][r.Header().Rrtype], r)
}

// sign is the signature over an RRset as z makes it.
func (z *testZone) sign(rrs []dns.RR) *dns.RRSIG {
	sig := &dns.RRSIG{Hdr: dns.RR_Header{Ttl: rrs[0].Header().Ttl}, Algorithm: z.key.Algorithm, KeyTag: z.key.KeyTag(), SignerName: z.name,
		Inception: uint32(z.from.Unix()), Expiration: uint32(z.to.Unix())}
	if err := sig.Sign(z.priv, rrs); err != nil {
		panic(err)
	}
	return sig
}

// cutAbove is the delegation at or above name in z, or empty.
func (z *testZone) cutAbove(name string) string {
	for n := name; n != z.name && within(n, z.name); n = parent(n) {
		if len(z.node[n][dns.TypeNS]) > 0 {
			return n
		}
	}
	return ""
}

// finish makes the chain of NSEC or NSEC3.
func (z *testZone) finish() {
	if z.mode == plain {
		return
	}
	var names []string
	for name, node := range z.node {
		if c := z.cutAbove(name); c != "" && c != name {
			continue
		}
		if z.mode == optout && len(node[dns.TypeNS]) > 0 && name != z.name && len(node[dns.TypeDS]) == 0 {
			continue
		}
		names = append(names, name)
	}
	if z.mode == nsec {
		slices.SortFunc(names, compare)
		for i, name := range names {
			next := names[(i+1)%len(names)]
			z.denial[name] = &dns.NSEC{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeNSEC, Class: dns.ClassINET, Ttl: 300}, NextDomain: next,
				TypeBitMap: z.bitmap(name, dns.TypeNSEC)}
		}
		return
	}
	for _, name := range slices.Clone(names) { // empty non-terminals
		for n := name; n != z.name; n = parent(n) {
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	byHash := map[string]string{}
	var hashes []string
	for _, name := range names {
		h := dns.HashName(name, dns.SHA1, z.iter, "ab")
		byHash[h] = name
		hashes = append(hashes, h)
	}
	slices.Sort(hashes)
	for i, h := range hashes {
		n := &dns.NSEC3{Hdr: dns.RR_Header{Name: strings.ToLower(h) + "." + strings.TrimPrefix(z.name, "."), Rrtype: dns.TypeNSEC3, Class: dns.ClassINET, Ttl: 300},
			Hash: dns.SHA1, Iterations: z.iter, SaltLength: 1, Salt: "ab", HashLength: 20, NextDomain: hashes[(i+1)%len(hashes)], TypeBitMap: z.bitmap(byHash[h], 0)}
		if z.mode == optout {
			n.Flags = 1
		}
		z.denial[h] = n
	}
}

func (z *testZone) bitmap(name string, extra uint16) []uint16 {
	var out []uint16
	for t := range z.node[name] {
		if z.cutAbove(name) == "" || t == dns.TypeNS || t == dns.TypeDS {
			out = append(out, t)
		}
	}
	if extra != 0 {
		out = append(out, extra)
	}
	if len(out) > 0 && (z.cutAbove(name) == "" || len(z.node[name][dns.TypeDS]) > 0 || extra != 0) {
		out = append(out, dns.TypeRRSIG)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// newWorld links zones by NS and DS records and returns the anchor of the root.
func newWorld(t testing.TB, zones ...*testZone) (*world, *Anchors) {
	t.Helper()
	w := &world{t: t, zones: map[string]*testZone{}}
	for _, z := range zones {
		w.zones[z.name] = z
	}
	slices.SortFunc(zones, func(a, b *testZone) int { return dns.CountLabel(b.name) - dns.CountLabel(a.name) })
	for _, z := range zones {
		if z.name != "." {
			up := w.zoneFor(parent(z.name))
			up.add(z.name + " 3600 IN NS ns.example.")
			if z.mode != plain && z.dsHash != 0 {
				ds := z.key.ToDS(z.dsHash)
				ds.Hdr.Ttl = 3600
				up.put(ds)
			}
		}
	}
	for _, z := range zones {
		z.finish()
	}
	ds := w.zones["."].key.ToDS(dns.SHA256)
	a, err := ParseAnchors([]byte(ds.String()), "test")
	if err != nil {
		t.Fatal(err)
	}
	return w, a
}

func (w *world) zoneFor(name string) *testZone {
	for {
		if z := w.zones[name]; z != nil {
			return z
		}
		name = parent(name)
	}
}

// Exchange answers like a recursive server that was asked with CD.
func (w *world) Exchange(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	w.asked.Add(1)
	qu := q.Question[0]
	w.mu.Lock()
	w.queries = append(w.queries, qu.Name+" "+typeName(qu.Qtype))
	tamper, fail := w.tamper, w.fail
	w.mu.Unlock()
	if fail != nil {
		if err := fail(qu); err != nil {
			return nil, err
		}
	}
	if w.delay > 0 {
		select {
		case <-time.After(w.delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	m := new(dns.Msg)
	m.SetReply(q)
	w.mu.Lock()
	w.resolve(m, dns.CanonicalName(qu.Name), qu.Qtype)
	w.mu.Unlock()
	m = m.Copy()
	if tamper != nil {
		tamper(qu, m)
	}
	b, err := m.Pack() // what is tested must survive the wire
	if err != nil {
		w.t.Errorf("pack: %v", err)
		return nil, err
	}
	r := new(dns.Msg)
	return r, r.Unpack(b)
}

func (w *world) resolve(m *dns.Msg, name string, qtype uint16) {
	for range 20 {
		z := w.zoneFor(locus(name, qtype))
		if name == "." {
			z = w.zones["."]
		}
		next := z.answer(m, name, qtype)
		if next == "" {
			return
		}
		name = next
	}
}

// emit adds an RRset, with its signature, under the name owner.
func (z *testZone) emit(sec *[]dns.RR, owner string, rrs []dns.RR) {
	for _, r := range rrs {
		r = dns.Copy(r)
		r.Header().Name = owner
		*sec = append(*sec, r)
	}
	if z.mode != plain {
		sig := z.sign(rrs)
		sig.Hdr.Name = owner
		*sec = append(*sec, sig)
	}
}

// answer adds z's answer and returns where an alias leads.
func (z *testZone) answer(m *dns.Msg, name string, qtype uint16) string {
	for n := parent(name); within(n, z.name); n = parent(n) {
		if d := z.node[n][dns.TypeDNAME]; d != nil {
			z.emit(&m.Answer, n, d)
			target := strings.TrimSuffix(name, n) + d[0].(*dns.DNAME).Target
			m.Answer = append(m.Answer, rr(name+" 60 IN CNAME "+target))
			return target
		}
		if n == "." {
			break
		}
	}
	if node := z.node[name]; node != nil {
		return z.fromNode(m, name, name, node, qtype)
	}
	for other := range z.node {
		if below(other, name) { // an empty non-terminal
			z.deny(m, name, false)
			return ""
		}
	}
	ce := parent(name)
	for !z.exists(ce) {
		ce = parent(ce)
	}
	if node := z.node[wildcardOf(ce)]; node != nil {
		return z.fromNode(m, name, wildcardOf(ce), node, qtype)
	}
	m.Rcode = dns.RcodeNameError
	z.deny(m, name, true)
	z.deny(m, wildcardOf(ce), false)
	return ""
}

func (z *testZone) exists(name string) bool {
	for other := range z.node {
		if within(other, name) {
			return true
		}
	}
	return false
}

func (z *testZone) fromNode(m *dns.Msg, name, owner string, node map[uint16][]dns.RR, qtype uint16) string {
	rrs, next := node[qtype], ""
	if qtype == dns.TypeANY {
		for _, rrs := range node {
			z.emit(&m.Answer, name, rrs)
		}
		if owner != name && z.mode != plain {
			z.proof(m, name)
		}
		return ""
	}
	if c := node[dns.TypeCNAME]; rrs == nil && c != nil {
		rrs, next = c, dns.CanonicalName(c[0].(*dns.CNAME).Target)
	}
	if rrs == nil {
		z.deny(m, owner, owner != name)
		if owner != name {
			z.deny(m, name, true)
		}
		return ""
	}
	z.emit(&m.Answer, name, rrs)
	if owner != name && z.mode != plain {
		z.proof(m, name)
	}
	return next
}

// deny adds the SOA and the proof about name.
func (z *testZone) deny(m *dns.Msg, name string, _ bool) {
	if len(group(m.Ns)) == 0 || group(m.Ns).find(z.name, dns.TypeSOA) == nil {
		z.emit(&m.Ns, z.name, z.node[z.name][dns.TypeSOA])
	}
	if z.mode != plain {
		z.proof(m, name)
	}
}

// proof adds what matches or covers name, and in NSEC3 the closest encloser.
func (z *testZone) proof(m *dns.Msg, name string) {
	if z.mode == nsec {
		z.once(m, z.find(name))
		return
	}
	h := dns.HashName(name, dns.SHA1, z.iter, "ab")
	if n := z.denial[h]; n != nil {
		z.once(m, n)
		return
	}
	next := name
	for n := parent(name); ; n = parent(n) {
		if r := z.denial[dns.HashName(n, dns.SHA1, z.iter, "ab")]; r != nil {
			z.once(m, r)
			break
		}
		next = n
	}
	z.once(m, z.find3(dns.HashName(next, dns.SHA1, z.iter, "ab")))
}

func (z *testZone) once(m *dns.Msg, r dns.RR) {
	if group(m.Ns).find(dns.CanonicalName(r.Header().Name), r.Header().Rrtype) == nil {
		z.emit(&m.Ns, r.Header().Name, []dns.RR{r})
	}
}

// find is the NSEC at or before name.
func (z *testZone) find(name string) dns.RR {
	var best string
	for owner := range z.denial {
		if compare(owner, name) <= 0 && (best == "" || compare(owner, best) > 0) {
			best = owner
		}
	}
	return z.denial[best]
}

// find3 is the NSEC3 whose span holds hash.
func (z *testZone) find3(hash string) dns.RR {
	var hashes []string
	for h := range z.denial {
		hashes = append(hashes, h)
	}
	slices.Sort(hashes)
	at := hashes[len(hashes)-1]
	for _, h := range hashes {
		if h < hash {
			at = h
		}
	}
	return z.denial[at]
}
