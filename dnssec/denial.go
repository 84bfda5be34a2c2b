package dnssec

import (
	"slices"
	"time"

	"github.com/miekg/dns"
)

// denials are the verified NSEC and NSEC3 records of one zone out of one message: the only material that proofs are made of.
type denials struct {
	zone    string
	nsecs   []*dns.NSEC
	nsec3s  []*hashed
	sets    []*rrset  // all that verified
	first   verdict   // on the first that verified: whose key
	apex    *rrset    // the SOA of the zone, not verified; nil if there was none
	until   time.Time // the earliest end of what was verified, the negative TTL of the SOA included (RFC 2308, 5)
	dated   bool      // there was a SOA
	seen    bool      // there was an NSEC or NSEC3, verified or not
	opaque  bool      // a NSEC3 has more iterations than we compute
	failure verdict   // why the last one that did not verify did not
}

// what is the kind of a proof.
type what uint8

const (
	unproven     what = iota
	noName            // the name does not exist
	noData            // the name exists, or is an empty non-terminal, without the type
	noDelegation      // for DS: there is no zone cut at the name
	unsignedCut       // for DS: a delegation without DS
	optedOut          // a NSEC3 with opt-out covers it: there may be an unsigned delegation (RFC 5155, 6)
	notNamed          // the name does not exist, which a compact denial says with a record of exactly that name (RFC 9824)
	tooCostly         // NSEC3 iterations above the limit
)

// collect verifies the NSEC, NSEC3 and SOA RRsets of an authority section with the keys of z.
func (c *checker) collect(authority rrsets, z *zone) *denials {
	d := &denials{zone: z.name, until: z.until}
	if limit := c.now.Add(maxNegative); limit.Before(d.until) {
		d.until = limit
	}
	var soa *rrset
	n := 0
	for _, set := range authority {
		if len(set.rrs) == 0 {
			continue
		}
		switch set.rrtype {
		case dns.TypeNSEC, dns.TypeNSEC3:
			d.seen = true
			if n++; n > maxDenialRRs {
				continue
			}
			d.add(c, set, z)
		case dns.TypeSOA:
			d.dated = true
			d.soa(c, set)
			if set.name == z.name {
				soa = set
			}
		}
	}
	if c.keep != nil {
		for _, set := range d.sets {
			c.keep(set, z, d.until)
		}
	}
	d.apex = soa
	return d
}

// add takes one NSEC or NSEC3 RRset in, if it verifies.
func (d *denials) add(c *checker, set *rrset, z *zone) {
	got := c.verify(set, z)
	if got.status != Secure {
		d.failure = got.verdict
		return
	}
	for _, rr := range set.rrs {
		d.take(c, rr, z.name)
	}
	set.setTTL(got.ttl)
	if len(d.sets) == 0 {
		d.first = got.verdict
		d.first.proof = typeName(set.rrtype)
	}
	d.sets = append(d.sets, set)
	if got.until.Before(d.until) {
		d.until = got.until
	}
}

// take adds one verified record of zone.
func (d *denials) take(c *checker, rr dns.RR, zone string) {
	switch rr := rr.(type) {
	case *dns.NSEC:
		d.nsecs = append(d.nsecs, rr)
	case *dns.NSEC3:
		h, ok := newHashed(rr, zone)
		if !ok {
			return
		}
		// RFC 9276, 3.2: a validating resolver MAY return an insecure response for iterations larger than 0, but must have verified the signature
		// over the NSEC3 first, so that nobody else can have raised the count. BIND, Knot and unbound draw the line at 50 to 150; ours is 100.
		if rr.Iterations > c.rules.iterations {
			d.opaque = true
			return
		}
		if len(d.nsec3s) == 0 || h.sameChain(d.nsec3s[0]) {
			d.nsec3s = append(d.nsec3s, h)
		}
	}
}

// soa lowers until to the negative TTL. The SOA proves nothing; one that does not verify lowers it too, as it can do no other harm.
func (d *denials) soa(c *checker, set *rrset) {
	for _, rr := range set.rrs {
		soa, ok := rr.(*dns.SOA)
		if !ok {
			continue
		}
		if t := c.now.Add(seconds(min(soa.Minttl, soa.Hdr.Ttl))); t.Before(d.until) {
			d.until = t
		}
	}
}

// prove says what the records prove about name and type (RFC 4035, 5.4; RFC 5155, 8; RFC 6840, 4).
// nxdomain is what the message claims: then an opt-out span alone is not enough.
func (c *checker) prove(name string, rrtype uint16, nxdomain bool, d *denials) what {
	if !within(locus(name, rrtype), d.zone) {
		return unproven
	}
	if got := proveNSEC(name, rrtype, d); got != unproven {
		return got
	}
	if got := c.proveNSEC3(name, rrtype, nxdomain, d); got != unproven {
		return got
	}
	if d.opaque {
		return tooCostly
	}
	return unproven
}

// proveFully is prove, and tells for DS, too, whether there is the name at all: where there is none, there is no DS either.
func (c *checker) proveFully(name string, rrtype uint16, nxdomain bool, d *denials) what {
	got := c.prove(name, rrtype, nxdomain, d)
	if got == noDelegation && c.prove(name, dns.TypeNone, true, d) == noName {
		return noName
	}
	return got
}

// proveExpansion says whether name was rightly answered from a wildcard: no closer name exists
// (RFC 4035, 5.3.4; RFC 5155, 8.8).
func (c *checker) proveExpansion(name, wildcard string, d *denials) what {
	base := parent(wildcard)
	for _, n := range d.nsecs {
		if covers(n, name, d.zone) && encloser(n, name) == base {
			return noName
		}
	}
	next := ancestor(name, dns.CountLabel(base)+1)
	if h, ok := c.cover(next, d); ok {
		if h.optOut {
			return optedOut
		}
		return noName
	}
	if d.opaque {
		return tooCostly
	}
	return unproven
}

// has says whether a type bitmap holds t.
func has(bitmap []uint16, t uint16) bool { return slices.Contains(bitmap, t) }

// answers says whether a wildcard with this bitmap answers a question for a type: with the type, with an alias or, for ANY, with whatever it has.
func answers(bitmap []uint16, rrtype uint16) bool {
	return rrtype == dns.TypeANY && anything(bitmap) || has(bitmap, rrtype) || has(bitmap, dns.TypeCNAME)
}

// anything says whether a bitmap holds more than what DNSSEC itself puts everywhere.
func anything(bitmap []uint16) bool {
	return slices.ContainsFunc(bitmap, func(t uint16) bool { return t != dns.TypeRRSIG && t != dns.TypeNSEC })
}

// delegation says whether a bitmap is that of the parent's side of a zone cut.
func delegation(bitmap []uint16) bool {
	return has(bitmap, dns.TypeNS) && !has(bitmap, dns.TypeSOA)
}

// typeNXNAME marks in a bitmap a name that does not exist (RFC 9824, 2).
const typeNXNAME = 128

// absent says what a bitmap at exactly name proves about type.
//
// RFC 6840, 4.1 and 4.4: a record of the parent's side proves nothing but the absence of DS; one of the child's side (SOA set) does not prove the
// absence of DS. RFC 6840, 4.3: where CNAME is set, the absence of other types says nothing.
func absent(name string, rrtype uint16, bitmap []uint16) what {
	switch {
	case rrtype == dns.TypeANY && anything(bitmap):
		return unproven
	case has(bitmap, rrtype), has(bitmap, dns.TypeCNAME) && rrtype != dns.TypeCNAME && rrtype != dns.TypeDS:
		return unproven
	case rrtype == dns.TypeDS && has(bitmap, dns.TypeSOA) && name != ".":
		return unproven
	case rrtype == dns.TypeDS && has(bitmap, dns.TypeNS):
		return unsignedCut
	case rrtype == dns.TypeDS:
		return noDelegation
	case delegation(bitmap):
		return unproven
	case has(bitmap, typeNXNAME):
		return notNamed
	}
	return noData
}
