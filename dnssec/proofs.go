package dnssec

import (
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// proofs remembers verified NSEC and NSEC3 records by zone, and the SOA beside them, so that a denial that follows from them needs no question
// (RFC 8198): an owner's NODATA for one type proves by its bitmap that it has no IPSECKEY. It answers with messages, and these are validated like
// any other: nothing is believed because it is here.
//
// The mutex: lookups run in their callers' goroutines and share it; it is held for map and slice operations only.
type proofs struct {
	mu    sync.Mutex
	zones map[string]*proven
	count int // of records in all zones
}

// proven is what one zone said.
type proven struct {
	soa   proof
	nsec  []proof            // in the canonical order of their owners
	nsec3 []proof            // in the order of their hashes, all of one chain
	wild  map[question]proof // RRsets of wildcards, by the wildcard's name
}

// size is how many records count against the bound.
func (z *proven) size() int { return len(z.nsec) + len(z.nsec3) + len(z.wild) }

// proof is a verified RRset.
type proof struct {
	key   string // see orderKey; of NSEC3 the hash in upper case
	set   *rrset
	until time.Time
}

// orderKey is a text that sorts as RFC 4034, 6.1 sorts names: the labels from the right, each ended by an octet that no label has.
func orderKey(name string) string {
	labels := octets(name)
	var b strings.Builder
	for i := len(labels) - 1; i >= 0; i-- {
		for _, c := range labels[i] {
			if c < 2 {
				b.WriteByte(1)
				c++
			}
			b.WriteByte(c)
		}
		b.WriteByte(0)
	}
	return b.String()
}

// of is the place of a zone, made if it is not there. Call it with the mutex held.
func (p *proofs) of(zone string) *proven {
	z := p.zones[zone]
	if z == nil {
		z = &proven{wild: make(map[question]proof)}
		p.zones[zone] = z
	}
	return z
}

// as is a copy of a set, under the name owner and with TTLs of at most ttl seconds.
func (s *rrset) as(owner string, ttl uint32) *rrset {
	own := &rrset{name: owner, rrtype: s.rrtype}
	for _, rr := range s.rrs {
		own.rrs = append(own.rrs, dns.Copy(rr))
	}
	for _, sig := range s.sigs[:min(len(s.sigs), maxSetSigs)] {
		own.sigs = append(own.sigs, dns.Copy(sig).(*dns.RRSIG))
	}
	for _, rr := range own.all() {
		rr.Header().Name = owner
	}
	own.setTTL(ttl)
	return own
}

// putWild keeps a verified RRset that was made from a wildcard of a zone.
func (p *proofs) putWild(zone, wildcard string, set *rrset, until, now time.Time) {
	if len(set.rrs) > maxWildRRs || !now.Before(until) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	z, q := p.of(zone), question{wildcard, set.rrtype}
	if _, ok := z.wild[q]; !ok {
		p.count++
	}
	z.wild[q] = proof{set: set.as(wildcard, math.MaxUint32), until: until}
	if p.count > maxProofs {
		p.makeRoom(now)
	}
}

// wildcard is the RRset of a wildcard of a zone for a question about name, or the alias that stands there; nil if it is not known.
func (p *proofs) wildcard(zone, wildcard, name string, rrtype uint16, now time.Time) *rrset {
	p.mu.Lock()
	defer p.mu.Unlock()
	z := p.zones[zone]
	if z == nil {
		return nil
	}
	for _, t := range []uint16{rrtype, dns.TypeCNAME} {
		if w, ok := z.wild[question{wildcard, t}]; ok && now.Before(w.until) {
			return w.set.as(name, uint32(w.until.Sub(now)/time.Second))
		}
	}
	return nil
}

// put keeps a verified NSEC, NSEC3 or SOA RRset of a zone.
func (p *proofs) put(zone string, set *rrset, until, now time.Time) {
	if len(set.rrs) != 1 || !now.Before(until) {
		return
	}
	own := set.as(set.name, math.MaxUint32)
	p.mu.Lock()
	defer p.mu.Unlock()
	z := p.of(zone)
	switch rr := own.rrs[0].(type) {
	case *dns.SOA:
		z.soa = proof{set: own, until: until}
		return
	case *dns.NSEC:
		p.count += insert(&z.nsec, proof{orderKey(set.name), own, until})
	case *dns.NSEC3:
		h, ok := newHashed(rr, zone)
		if !ok {
			return
		}
		if len(z.nsec3) > 0 && !h.sameChain(&hashed{rr: z.nsec3[0].set.rrs[0].(*dns.NSEC3)}) { // the zone has a new chain
			p.count -= len(z.nsec3)
			z.nsec3 = nil
		}
		p.count += insert(&z.nsec3, proof{h.owner, own, until})
	}
	if p.count > maxProofs {
		p.makeRoom(now)
	}
}

// insert puts p into its place and says how many records that adds.
func insert(list *[]proof, p proof) int {
	i, found := slices.BinarySearchFunc(*list, p.key, byKey)
	if found {
		(*list)[i] = p
		return 0
	}
	*list = slices.Insert(*list, i, p)
	return 1
}

func byKey(p proof, key string) int { return strings.Compare(p.key, key) }

// makeRoom drops what has ended, then whole zones as the map yields them.
func (p *proofs) makeRoom(now time.Time) {
	ended := func(x proof) bool { return !now.Before(x.until) }
	p.count = 0
	for _, z := range p.zones {
		z.nsec, z.nsec3 = slices.DeleteFunc(z.nsec, ended), slices.DeleteFunc(z.nsec3, ended)
		maps.DeleteFunc(z.wild, func(_ question, x proof) bool { return ended(x) })
		p.count += z.size()
	}
	for name, z := range p.zones {
		if p.count <= maxProofs*7/8 && z.size() > 0 {
			continue
		}
		p.count -= z.size()
		delete(p.zones, name)
	}
}

// flush forgets everything.
func (p *proofs) flush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.zones)
	p.count = 0
}

// hasSOA says whether the SOA of a zone is kept, with this data and one of these signatures.
func (p *proofs) hasSOA(zone string, set *rrset, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	z := p.zones[zone]
	if z == nil || z.soa.set == nil || !now.Before(z.soa.until) || len(set.rrs) != 1 || len(set.sigs) == 0 || !dns.IsDuplicate(set.rrs[0], z.soa.set.rrs[0]) {
		return false
	}
	return set.sigs[0].Signature == z.soa.set.sigs[0].Signature
}

// at are the records of a list that match key, or whose span may hold it.
func at(list []proof, key string, now time.Time) []proof {
	i, found := slices.BinarySearchFunc(list, key, byKey)
	if !found {
		i = (i + len(list) - 1) % max(len(list), 1) // before the first stands the last: its span may go round
	}
	if i >= len(list) || !now.Before(list[i].until) {
		return nil
	}
	return list[i : i+1]
}

// gather collects from the records of zone what may deny name, or a wildcard that would answer for it. Of NSEC3 it hashes with c's budget.
func (p *proofs) gather(c *checker, zone, name string) (found []proof, soa proof) {
	p.mu.Lock()
	z := p.zones[zone]
	if z == nil {
		p.mu.Unlock()
		return nil, proof{}
	}
	nsec, nsec3, soa := slices.Clone(at(z.nsec, orderKey(name), c.now)), slices.Clone(z.nsec3), z.soa
	if len(nsec) == 1 {
		wild := wildcardOf(encloser(nsec[0].set.rrs[0].(*dns.NSEC), name))
		nsec = append(nsec, at(z.nsec, orderKey(wild), c.now)...)
	}
	p.mu.Unlock()
	if len(nsec) > 0 || len(nsec3) == 0 {
		return nsec, soa
	}
	return gather3(c, nsec3, zone, name), soa
}

// spans are the records of zone in whose spans name lies or, of NSEC3, the hash of next, which is name or above it.
func (p *proofs) spans(c *checker, zone, name, next string) []proof {
	p.mu.Lock()
	z := p.zones[zone]
	if z == nil {
		p.mu.Unlock()
		return nil
	}
	nsec, nsec3 := slices.Clone(at(z.nsec, orderKey(name), c.now)), slices.Clone(z.nsec3)
	p.mu.Unlock()
	if len(nsec) > 0 || len(nsec3) == 0 {
		return nsec
	}
	h := &hashed{rr: nsec3[0].set.rrs[0].(*dns.NSEC3)}
	hash, ok := c.hash(next, h)
	if h.rr.Iterations > c.rules.iterations || !ok {
		return nil
	}
	return at(nsec3, hash, c.now)
}

// gather3 is gather for NSEC3.
func gather3(c *checker, list []proof, zone, name string) (found []proof) {
	h := &hashed{rr: list[0].set.rrs[0].(*dns.NSEC3)}
	if h.rr.Iterations > c.rules.iterations || dns.CountLabel(name)-dns.CountLabel(zone) > maxGather {
		return nil
	}
	for n := name; within(n, zone); n = parent(n) {
		hash, ok := c.hash(n, h)
		if !ok {
			return nil
		}
		here := at(list, hash, c.now)
		found = append(found, here...)
		if len(here) == 1 && here[0].key == hash { // the closest encloser, or the name itself
			if hash, ok = c.hash(wildcardOf(n), h); ok && n != name {
				found = append(found, at(list, hash, c.now)...)
			}
			return found
		}
		if n == "." {
			break
		}
	}
	return nil
}

// message makes the answer to a question out of proofs: NOERROR, as the records tell the rest. TTLs are what is left of them.
func message(q question, found []proof, soa proof, now time.Time) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.rrtype)
	m.Response, m.RecursionAvailable = true, true
	seen := make(map[*rrset]bool)
	for _, p := range append([]proof{soa}, found...) {
		if p.set == nil || seen[p.set] {
			continue
		}
		seen[p.set] = true
		own := p.set.as(p.set.name, uint32(max(p.until.Sub(now)/time.Second, 0)))
		m.Ns = append(m.Ns, own.all()...)
	}
	return m
}
