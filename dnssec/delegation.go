package dnssec

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// zone is what we know of a zone: its keys, or that it has none, or what is wrong with it. It is not changed once made, but for hosts.
type zone struct {
	verdict
	name  string
	keys  []zoneKey   // if Secure
	hosts atomic.Bool // names directly below it have turned out to be its own, and no zones
}

// zoneKey is a DNSKEY that may verify signatures over RRsets.
type zoneKey struct {
	tag uint16
	rr  *dns.DNSKEY
	rsa func() (*rsaKey, error) // made when it is first asked for; nil: of another algorithm
}

func newZoneKey(rr *dns.DNSKEY) zoneKey {
	k := zoneKey{tag: rr.KeyTag(), rr: rr}
	switch rr.Algorithm {
	case dns.RSASHA1, dns.RSASHA1NSEC3SHA1, dns.RSASHA256, dns.RSASHA512:
		k.rsa = sync.OnceValues(func() (*rsaKey, error) { return parseRSA(rr.PublicKey) })
	}
	return k
}

// cut is what the parent says about a name: where a zone begins, with its DS records, or that none does.
type cut struct {
	verdict
	none bool      // no zone cut here: the name belongs to its parent's zone
	ds   []*dns.DS // Secure with these: the supported ones
}

// judgeDS reads the answer to a DS question for child, which the keys of zone z must have signed.
func (c *checker) judgeDS(child string, msg *dns.Msg, z *zone) cut {
	answer := group(msg.Answer)
	if set := answer.find(child, dns.TypeDS); set != nil {
		got := c.verify(set, z)
		if got.status != Secure {
			return cut{verdict: got.verdict}
		}
		return c.chooseDS(set, got.verdict)
	}
	if set := answer.find(child, dns.TypeCNAME); set != nil {
		got := c.verify(set, z)
		if got.status != Secure {
			return cut{verdict: got.verdict}
		}
		if got.wildcard == "" {
			return cut{verdict: got.verdict, none: true} // no NS beside a CNAME (RFC 2181, 10.1)
		}
		return c.expandedCut(child, got, group(msg.Ns), z)
	}
	return c.judgeNoDS(child, group(msg.Ns), z)
}

// judgeNoDS reads the proof that child has no DS (RFC 4035, 5.2; RFC 5155, 8.6 and 8.9).
func (c *checker) judgeNoDS(child string, authority rrsets, z *zone) cut {
	d := c.collect(authority, z)
	v := verdict{status: Secure, until: d.until, ede: NoEDE, zone: child, tag: d.first.tag, alg: d.first.alg, proof: "no DS"}
	switch c.prove(child, dns.TypeDS, false, d) {
	case unsignedCut:
		v.status, v.why = Insecure, child+" is delegated by zone "+z.name+" without DS"
	case optedOut:
		v.proof = "opt-out"
		v.status, v.why = Insecure, child+" lies in an opt-out span of zone "+z.name
	case tooCostly:
		v.status, v.why = Insecure, "NSEC3 of zone "+z.name+" has more iterations than we compute"
	case noDelegation, noData, noName:
		v.why = child + " is no zone of its own, says " + z.name
		return cut{verdict: v, none: true}
	default:
		return cut{verdict: d.fail("DS of "+child, z)}
	}
	return cut{verdict: v}
}

// expandedCut is for a wildcard CNAME where DS was asked: child does not exist, so there is no cut.
func (c *checker) expandedCut(child string, got signed, authority rrsets, z *zone) cut {
	d := c.collect(authority, z)
	switch c.proveExpansion(child, got.wildcard, d) {
	case noName:
		return cut{verdict: got.verdict, none: true}
	case optedOut, tooCostly:
		v := got.verdict
		v.status, v.why = Insecure, child+" may be an unsigned delegation of zone "+z.name
		return cut{verdict: v}
	}
	return cut{verdict: d.fail(child+" itself", z)}
}

// fail is the verdict on a denial that was not proven.
func (d *denials) fail(of string, z *zone) verdict {
	if d.failure.why != "" {
		return d.failure
	}
	v := bogus(dns.ExtendedErrorCodeNSECMissing, "the NSEC records of zone %s do not prove that there is no %s", z.name, of)
	if !d.seen {
		v = bogus(dns.ExtendedErrorCodeNSECMissing, "no proof that there is no %s, but zone %s is signed", of, z.name)
	}
	v.zone = z.name
	return v
}

// chooseDS keeps the DS records that we can use. None is as good as an unsigned zone.
//
// RFC 4035, 5.2: "If the validator does not support any of the algorithms listed in an authenticated DS RRset, then [...] the resolver SHOULD treat
// this case as it would the case of an authenticated NSEC RRset proving that no DS RRset exists". RFC 4509, 3: SHA-1 is ignored beside SHA-2.
func (c *checker) chooseDS(set *rrset, v verdict) cut {
	var strong, weak []*dns.DS
	for i, rr := range set.rrs {
		ds, ok := rr.(*dns.DS)
		if !ok || i >= maxDS || !c.rules.supported(ds.Algorithm) {
			continue
		}
		switch ds.DigestType {
		case dns.SHA256, dns.SHA384:
			strong = append(strong, ds)
		case dns.SHA1:
			weak = append(weak, ds)
		}
	}
	if len(strong) == 0 {
		strong = weak
	}
	if len(strong) == 0 {
		v.zone, v.proof = set.name, "algorithm"
		v.status, v.why = Insecure, "zone "+set.name+" has only algorithms or digests that we do not use"
		return cut{verdict: v}
	}
	return cut{verdict: v, ds: strong}
}

// judgeKeys reads the answer to a DNSKEY question for a zone: one of the keys that ds or trusted vouch for must have signed the whole set.
func (c *checker) judgeKeys(name string, msg *dns.Msg, ds []*dns.DS, trusted []*dns.DNSKEY, until time.Time) *zone {
	set := group(msg.Answer).find(name, dns.TypeDNSKEY)
	if set == nil {
		return &zone{name: name, verdict: bogus(dns.ExtendedErrorCodeDNSKEYMissing, "zone %s has no DNSKEY, but its parent vouches for one", name)}
	}
	if len(set.sigs) > fastSetSigs {
		c.work.odd.Store(true) // before its keys are looked at
	}
	all := &zone{name: name, keys: usableKeys(set), verdict: verdict{until: until}}
	entry := &zone{name: name, verdict: verdict{until: until}}
	for _, k := range all.keys {
		if c.rules.supported(k.rr.Algorithm) && (same(k, trusted) || c.vouched(k, ds)) {
			entry.keys = append(entry.keys, k)
		}
	}
	if len(entry.keys) == 0 {
		return &zone{name: name, verdict: bogus(dns.ExtendedErrorCodeDNSKEYMissing, "no key of zone %s is one that DS or a trust anchor names", name)}
	}
	got := c.verify(set, entry)
	if got.status != Secure {
		return &zone{name: name, verdict: got.verdict}
	}
	all.verdict = got.verdict
	return all
}

// usableKeys are the keys that may sign RRsets: zone keys (RFC 4034, 2.1.1) of protocol 3 that are not revoked.
//
// RFC 5011, 2.1: "Once the resolver sees the REVOKE bit, it MUST NOT use this key as a trust anchor or for any other purpose except to validate the
// RRSIG it signed over the DNSKEY RRset specifically for the purpose of validating the revocation."
func usableKeys(set *rrset) []zoneKey {
	var keys []zoneKey
	for _, rr := range set.rrs {
		k, ok := rr.(*dns.DNSKEY)
		if !ok || k.Flags&dns.ZONE == 0 || k.Flags&dns.REVOKE != 0 || k.Protocol != 3 || len(keys) == maxZoneKeys {
			continue
		}
		keys = append(keys, newZoneKey(k))
	}
	return keys
}

// vouched says whether one of the DS records is of this key.
func (c *checker) vouched(k zoneKey, ds []*dns.DS) bool {
	for _, d := range ds {
		if d.KeyTag != k.tag || d.Algorithm != k.rr.Algorithm {
			continue
		}
		if !c.work.digest() {
			return false
		}
		if c.digest(k.rr, d) {
			return true
		}
	}
	return false
}

// digest says whether d is of this key, when it is its turn.
func (c *checker) digest(k *dns.DNSKEY, d *dns.DS) bool {
	defer c.turn()()
	made := k.ToDS(d.DigestType)
	return made != nil && strings.EqualFold(made.Digest, d.Digest)
}

// same says whether the key is one of the trusted ones.
func same(k zoneKey, trusted []*dns.DNSKEY) bool {
	for _, t := range trusted {
		if t.Algorithm == k.rr.Algorithm && t.PublicKey == k.rr.PublicKey {
			return true
		}
	}
	return false
}
