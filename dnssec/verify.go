package dnssec

import (
	"fmt"
	"math"
	"time"

	"github.com/miekg/dns"
)

// NoEDE is the Answer.EDE of an answer that has no Extended DNS Error.
const NoEDE = 0xffff

// verdict is what the core made of something: a status with its reason, and how long it holds.
type verdict struct {
	status Status
	until  time.Time
	why    string
	ede    uint16

	zone  string // who stands for it: see Link
	tag   uint16
	alg   uint8
	proof string
}

// link is the verdict on something as a Link.
func (v verdict) link(of string) Link {
	return Link{Of: of, Status: v.status, Zone: v.zone, KeyTag: v.tag, Algorithm: v.alg, Proof: v.proof, Why: v.why}
}

func bogus(ede uint16, format string, args ...any) verdict {
	return verdict{status: Bogus, why: fmt.Sprintf(format, args...), ede: ede}
}

// checker is the pure core: the time, the policy and the work that is left. Everything else comes in as arguments.
type checker struct {
	now   time.Time
	rules *rules
	work  *budget
	lanes *lanes // nil: nobody else computes
	// leaves is told before the first wait or work that may be long; nil: nobody minds. See Begun.Answer.
	leaves func()
	// keep is told of every NSEC and NSEC3 RRset that verified, and of the SOA beside them; nil: nobody cares.
	keep func(set *rrset, z *zone, until time.Time)
}

// rules are the choices that a Validator makes once.
type rules struct {
	iterations uint16        // of NSEC3, at most
	sha1       bool          // believe algorithms 5 and 7
	modulus    int           // bits that an RSA key has, at least
	early      time.Duration // how far in the future an inception may lie
	late       time.Duration // how far in the past an expiration may lie
	floor      time.Time     // the clock is right if it says no less
	delegated  bool          // the upstream validates: WithDelegation
	asks       bool          // no denial is made from proofs at hand
	// legacy verifies DSA, which nothing else here does: for replays of old scenarios only.
	legacy func(*dns.RRSIG, zoneKey, *rrset) error
}

// supported says whether signatures of an algorithm are checked.
//
// RFC 9905, 2: "Operators of validating resolvers MUST treat DNSSEC signing algorithms RSASHA1 and RSASHA1-NSEC3-SHA1 as unsupported, rendering
// responses insecure if they cannot be validated by other supported signing algorithms."
func (r *rules) supported(alg uint8) bool {
	switch alg {
	case dns.RSASHA256, dns.RSASHA512, dns.ECDSAP256SHA256, dns.ECDSAP384SHA384, dns.ED25519:
		return true
	case dns.RSASHA1, dns.RSASHA1NSEC3SHA1:
		return r.sha1
	case dns.DSA, dns.DSANSEC3SHA1:
		return r.legacy != nil
	}
	return false
}

// check is the arithmetic of one signature, when it is its turn.
func (c *checker) check(sig *dns.RRSIG, k zoneKey, set *rrset) bool {
	defer c.turn()()
	verify := arithmetic
	switch {
	case c.rules.legacy != nil && (sig.Algorithm == dns.DSA || sig.Algorithm == dns.DSANSEC3SHA1):
		verify = c.rules.legacy
	case k.shorter(c.rules.modulus):
		return false
	}
	if verify(sig, k, set) != nil {
		c.work.odd.Store(true)
		return false
	}
	return true
}

// signed is what a verified signature says about its RRset.
type signed struct {
	verdict
	ttl      uint32 // seconds: never above the TTL that was signed, nor beyond the expiration
	wildcard string // the wildcard that the RRset was expanded from, else empty
}

// verify checks an RRset against the keys of the zone that must have signed it (RFC 4035, 5.3). One good signature is enough (RFC 6840, 5.11).
func (c *checker) verify(set *rrset, z *zone) signed {
	if len(set.sigs) == 0 {
		v := bogus(dns.ExtendedErrorCodeRRSIGsMissing, "%s is not signed, but zone %s is", set, z.name)
		v.zone = z.name
		return signed{verdict: v}
	}
	if len(set.sigs) > fastSetSigs {
		c.work.odd.Store(true)
	}
	fail := bogus(dns.ExtendedErrorCodeRRSIGsMissing, "%s has no signature by zone %s", set, z.name)
	for i, sig := range set.sigs {
		if i == maxSetSigs {
			break
		}
		if dns.CanonicalName(sig.SignerName) != z.name || !c.rules.supported(sig.Algorithm) {
			continue
		}
		got := c.verifyOne(set, sig, z)
		if got.status == Secure {
			return got
		}
		fail = got.verdict
		if c.work.spent() {
			break
		}
	}
	fail.zone = z.name
	return signed{verdict: fail}
}

// verifyOne checks one signature whose signer is z.
func (c *checker) verifyOne(set *rrset, sig *dns.RRSIG, z *zone) signed {
	if !within(locus(set.name, set.rrtype), z.name) {
		return signed{verdict: bogus(dns.ExtendedErrorCodeDNSBogus, "%s is not in zone %s, which signed it", set, z.name)}
	}
	wildcard, err := expansion(set, sig, z.name)
	if err != nil {
		return signed{verdict: bogus(dns.ExtendedErrorCodeDNSBogus, "%v", err)}
	}
	if v, ok := c.timely(set, sig, z); !ok {
		return signed{verdict: v}
	}
	tried := 0
	for _, k := range z.keys {
		if k.tag != sig.KeyTag || k.rr.Algorithm != sig.Algorithm {
			continue
		}
		if tried++; tried > maxTagKeys {
			break
		}
		if !c.work.signature() {
			return signed{verdict: bogus(dns.ExtendedErrorCodeDNSBogus, "%s: more than %d signatures to check", set, maxSignatures)}
		}
		if c.check(sig, k, set) {
			return c.sound(set, sig, z, wildcard)
		}
	}
	if tried == 0 {
		return signed{verdict: bogus(dns.ExtendedErrorCodeDNSKEYMissing, "%s is signed by key %d of zone %s, which has no such key", set, sig.KeyTag, z.name)}
	}
	return signed{verdict: bogus(dns.ExtendedErrorCodeDNSBogus, "the signature of %s by key %d of zone %s is wrong", set, sig.KeyTag, z.name)}
}

// sound is the result of a good signature.
//
// RFC 4035, 5.3.3: the TTL must not be greater than the one received, the RRSIG's, the Original TTL, and what is left until the expiration.
func (c *checker) sound(set *rrset, sig *dns.RRSIG, z *zone, wildcard string) signed {
	ttl := min(sig.OrigTtl, sig.Hdr.Ttl, math.MaxInt32)
	for _, rr := range set.rrs {
		ttl = min(ttl, rr.Header().Ttl)
	}
	left := int64(int32(sig.Expiration-uint32(c.now.Unix()))) + int64(c.rules.late/time.Second)
	ttl = uint32(min(int64(ttl), max(left, 0)))
	until := c.now.Add(seconds(ttl))
	if z.until.Before(until) {
		until = z.until
	}
	why := fmt.Sprintf("%s signed by key %d of zone %s", set, sig.KeyTag, z.name)
	proof := "signature"
	if wildcard != "" {
		proof = "wildcard"
	}
	return signed{verdict: verdict{status: Secure, until: until, why: why, ede: NoEDE, zone: z.name, tag: sig.KeyTag, alg: sig.Algorithm, proof: proof},
		ttl: ttl, wildcard: wildcard}
}

// expansion checks the Labels field (RFC 4035, 5.3.1) and returns the wildcard that the RRset was made from, if it was.
func expansion(set *rrset, sig *dns.RRSIG, zone string) (wildcard string, err error) {
	n := dns.CountLabel(set.name)
	if isWildcard(set.name) {
		n-- // RFC 4034, 3.1.3: neither the root nor the asterisk counts
	}
	labels := int(sig.Labels)
	switch {
	case labels > n:
		return "", fmt.Errorf("the signature of %s is for a name of %d labels", set, labels)
	case labels == n:
		return "", nil
	case labels < dns.CountLabel(zone):
		return "", fmt.Errorf("the signature of %s is for a wildcard outside of zone %s", set, zone)
	}
	switch set.rrtype {
	case dns.TypeNSEC, dns.TypeNSEC3, dns.TypeDS, dns.TypeDNSKEY, dns.TypeSOA, dns.TypeDNAME:
		// These speak about their owner alone; expanded they would speak about any name (RFC 4592, 4).
		return "", fmt.Errorf("%s is made from a wildcard", set)
	}
	return wildcardOf(ancestor(set.name, labels)), nil
}

// timely checks the validity period in serial number arithmetic (RFC 4034, 3.1.5).
func (c *checker) timely(set *rrset, sig *dns.RRSIG, z *zone) (verdict, bool) {
	now := uint32(c.now.Unix())
	if int32(sig.Expiration-sig.Inception) < 0 {
		return bogus(dns.ExtendedErrorCodeDNSBogus, "the signature of %s by zone %s expires before it begins", set, z.name), false
	}
	if int64(int32(sig.Expiration-now))+int64(c.rules.late/time.Second) < 0 {
		return bogus(dns.ExtendedErrorCodeSignatureExpired, "the signature of %s by key %d of zone %s expired at %s",
			set, sig.KeyTag, z.name, dns.TimeToString(sig.Expiration)), false
	}
	if int64(int32(sig.Inception-now)) > int64(c.rules.early/time.Second) {
		return bogus(dns.ExtendedErrorCodeSignatureNotYetValid, "the signature of %s by key %d of zone %s is valid from %s",
			set, sig.KeyTag, z.name, dns.TimeToString(sig.Inception)), false
	}
	return verdict{}, true
}

// seconds is a TTL as a duration.
func seconds(ttl uint32) time.Duration { return time.Duration(ttl) * time.Second }
