package dnssec

import "github.com/miekg/dns"

// proveNSEC is prove for the NSEC records of d.
func proveNSEC(name string, rrtype uint16, d *denials) what {
	for _, n := range d.nsecs {
		if dns.CanonicalName(n.Hdr.Name) == name {
			return absent(name, rrtype, n.TypeBitMap)
		}
	}
	for _, n := range d.nsecs {
		if !covers(n, name, d.zone) {
			continue
		}
		// An empty non-terminal: the next name is below it (RFC 4035, 5.4 by way of RFC 4592, 2.2.2).
		if below(dns.CanonicalName(n.NextDomain), name) {
			return noCutOr(noData, rrtype)
		}
		if got := wildcardNSEC(encloser(n, name), rrtype, d); got != unproven {
			return got
		}
	}
	return unproven
}

// noCutOr is got, and noDelegation for DS: where there is no name there is no cut.
func noCutOr(got what, rrtype uint16) what {
	if rrtype == dns.TypeDS {
		return noDelegation
	}
	return got
}

// wildcardNSEC proves that no wildcard at the closest encloser answers: it is absent, or lacks the type.
func wildcardNSEC(encloser string, rrtype uint16, d *denials) what {
	wild := wildcardOf(encloser)
	for _, n := range d.nsecs {
		if dns.CanonicalName(n.Hdr.Name) == wild {
			if answers(n.TypeBitMap, rrtype) {
				return unproven
			}
			return noCutOr(noData, rrtype)
		}
	}
	for _, n := range d.nsecs {
		if !covers(n, wild, d.zone) {
			continue
		}
		if below(dns.CanonicalName(n.NextDomain), wild) {
			return noCutOr(noData, rrtype) // the wildcard is an empty non-terminal
		}
		return noCutOr(noName, rrtype)
	}
	return unproven
}

// covers says whether name lies between the owner and the next name of n, and n may speak about it.
//
// RFC 6840, 4.1: "Ancestor delegation NSEC or NSEC3 RRs MUST NOT be used to assume nonexistence of any RRs below that zone cut"; the same for one with
// the DNAME bit and the names below it.
func covers(n *dns.NSEC, name, zone string) bool {
	owner, next := dns.CanonicalName(n.Hdr.Name), dns.CanonicalName(n.NextDomain)
	if !within(next, zone) || !within(name, zone) {
		return false
	}
	if below(name, owner) && (delegation(n.TypeBitMap) || has(n.TypeBitMap, dns.TypeDNAME)) {
		return false
	}
	if compare(owner, name) >= 0 {
		return false
	}
	if next == zone { // the last one of the zone points back to the apex
		return true
	}
	return compare(name, next) < 0
}

// encloser is the closest encloser of name that n, which covers it, shows to exist: its owner and its next name do, and so do all above them.
func encloser(n *dns.NSEC, name string) string {
	a := common(dns.CanonicalName(n.Hdr.Name), name)
	b := common(dns.CanonicalName(n.NextDomain), name)
	if dns.CountLabel(b) > dns.CountLabel(a) {
		return b
	}
	return a
}
