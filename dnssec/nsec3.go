package dnssec

import (
	"strings"

	"github.com/miekg/dns"
)

// hashed is a NSEC3 record that verified, made ready for comparing. Hashes are base32hex in upper case: their order is that of the octets.
type hashed struct {
	owner, next string
	optOut      bool
	rr          *dns.NSEC3
}

// newHashed says whether a NSEC3 may be used at all (RFC 5155, 8.2): a hash that we know, no flag but opt-out, and directly below the apex.
func newHashed(rr *dns.NSEC3, zone string) (*hashed, bool) {
	name := dns.CanonicalName(rr.Hdr.Name)
	label, _, _ := strings.Cut(name, ".")
	if rr.Hash != dns.SHA1 || rr.Flags&^1 != 0 || parent(name) != zone || len(label) != 32 || len(rr.NextDomain) != 32 {
		return nil, false
	}
	return &hashed{owner: strings.ToUpper(label), next: strings.ToUpper(rr.NextDomain), optOut: rr.Flags&1 != 0, rr: rr}, true
}

// hash is the hash of name under the parameters of h. False: the work budget is used up.
func (c *checker) hash(name string, h *hashed) (string, bool) {
	if !c.work.hash(int64(h.rr.Iterations) + 1) {
		return "", false
	}
	defer c.turn()()
	return dns.HashName(name, h.rr.Hash, h.rr.Iterations, h.rr.Salt), true
}

// each is the first record of d for which try says true of the hash of name. All records have the same parameters, see denials.add.
func (c *checker) each(name string, d *denials, try func(h *hashed, hash string) bool) *hashed {
	if len(d.nsec3s) == 0 {
		return nil
	}
	hash, ok := c.hash(name, d.nsec3s[0])
	if !ok {
		return nil
	}
	for _, h := range d.nsec3s {
		if try(h, hash) {
			return h
		}
	}
	return nil
}

// sameChain says whether two records belong to one chain (RFC 5155, 8.2: hash, iterations and salt are the same in all records of a response).
func (h *hashed) sameChain(o *hashed) bool {
	return h.rr.Iterations == o.rr.Iterations && strings.EqualFold(h.rr.Salt, o.rr.Salt)
}

// match is the record of exactly name.
func (c *checker) match(name string, d *denials) (*hashed, bool) {
	h := c.each(name, d, func(h *hashed, hash string) bool { return h.owner == hash })
	return h, h != nil
}

// cover is the record in whose span the hash of name lies. A match is no cover.
func (c *checker) cover(name string, d *denials) (*hashed, bool) {
	h := c.each(name, d, func(h *hashed, hash string) bool {
		if h.owner < h.next {
			return h.owner < hash && hash < h.next
		}
		return hash != h.owner && (h.owner < hash || hash < h.next) // the last one, or the only one
	})
	return h, h != nil
}

// proveNSEC3 is prove for the NSEC3 records of d (RFC 5155, 8.4 to 8.7).
func (c *checker) proveNSEC3(name string, rrtype uint16, nxdomain bool, d *denials) what {
	if len(d.nsec3s) == 0 {
		return unproven
	}
	if h, ok := c.match(name, d); ok {
		return absent(name, rrtype, h.rr.TypeBitMap)
	}
	encloser, next, ok := c.closest(name, d)
	if !ok {
		return unproven
	}
	found := noName
	if next.optOut {
		found = optedOut // an unsigned delegation may be there
	}
	if rrtype == dns.TypeDS {
		if found == optedOut {
			return optedOut
		}
		return noDelegation // a wildcard makes no zone cut
	}
	wild := wildcardOf(encloser)
	if h, ok := c.match(wild, d); ok {
		if answers(h.rr.TypeBitMap, rrtype) {
			return unproven
		}
		return max(found, noData)
	}
	if _, ok := c.cover(wild, d); ok {
		return found
	}
	if found == optedOut && !nxdomain {
		return optedOut // RFC 5155, 7.2.8 with errata 3441: an empty non-terminal above unsigned delegations has no NSEC3 of its own
	}
	return unproven
}

// closest is the closest encloser proof (RFC 5155, 8.3): the longest ancestor of name that exists, and the record that covers the name one label longer.
//
// RFC 5155, 8.3: "If the NSEC3 RR has the DNAME type bit set, or the NS bit set without SOA, then an attacker is using it to deny names on the other side".
func (c *checker) closest(name string, d *denials) (encloser string, next *hashed, ok bool) {
	nextCloser := name
	for encloser = parent(name); within(encloser, d.zone); encloser = parent(encloser) {
		if h, ok := c.match(encloser, d); ok {
			if delegation(h.rr.TypeBitMap) || has(h.rr.TypeBitMap, dns.TypeDNAME) {
				return "", nil, false
			}
			next, ok = c.cover(nextCloser, d)
			return encloser, next, ok
		}
		if encloser == "." || c.work.spent() {
			break
		}
		nextCloser = encloser
	}
	return "", nil, false
}
