package dnssec

import (
	"fmt"
	"slices"

	"github.com/miekg/dns"
)

// rrset is the RRs of one owner, class IN and type, with the signatures that claim to cover them.
type rrset struct {
	name   string // canonical
	rrtype uint16
	rrs    []dns.RR
	sigs   []*dns.RRSIG
	rdata  [][]byte // see canonical; the records are not changed once they are in the set, but for their TTLs
}

func (s *rrset) String() string { return s.name + " " + typeName(s.rrtype) }

// rrsets are the RRsets of a section in their order.
type rrsets []*rrset

// group sorts a section into RRsets by owner, class and type. Signatures go to the RRset of their owner and the type they cover, and to no other:
// a signature over one RRset must never speak for another. What is not class IN is left out.
func group(section []dns.RR) rrsets {
	type key struct {
		name   string
		rrtype uint16
	}
	index := make(map[key]*rrset, len(section))
	var out rrsets
	for _, rr := range section {
		h := rr.Header()
		if h.Class != dns.ClassINET || h.Rrtype == dns.TypeOPT {
			continue
		}
		sig, signed := rr.(*dns.RRSIG)
		k := key{dns.CanonicalName(h.Name), h.Rrtype}
		if signed {
			k.rrtype = sig.TypeCovered
		}
		set := index[k]
		if set == nil {
			set = &rrset{name: k.name, rrtype: k.rrtype}
			index[k] = set
			out = append(out, set)
		}
		if signed {
			set.sigs = append(set.sigs, sig)
		} else if !set.holds(rr) {
			set.rrs = append(set.rrs, rr)
		}
	}
	return out
}

// holds says whether rr is there already (RFC 2181, 5). Of long sets only the head is looked at; verifying counts repeats once anyway.
func (s *rrset) holds(rr dns.RR) bool {
	for _, old := range s.rrs[:min(len(s.rrs), 32)] {
		if dns.IsDuplicate(old, rr) {
			return true
		}
	}
	return false
}

// find is the RRset of name and type, nil where there is no RR (signatures alone are nothing).
func (ss rrsets) find(name string, rrtype uint16) *rrset {
	for _, s := range ss {
		if s.name == name && s.rrtype == rrtype && len(s.rrs) > 0 {
			return s
		}
	}
	return nil
}

// dname is the DNAME RRset at the closest ancestor of name.
func (ss rrsets) dname(name string) *rrset {
	var best *rrset
	for _, s := range ss {
		if s.rrtype == dns.TypeDNAME && len(s.rrs) > 0 && below(name, s.name) && (best == nil || below(s.name, best.name)) {
			best = s
		}
	}
	return best
}

// signer is the deepest zone that claims to have signed the RRset and may have: at or above the place of the RRset, and at or below top.
// It is a hint only: nothing follows from it but which keys to fetch. Empty if there is none.
func (s *rrset) signer(top string) string {
	best := ""
	for i, sig := range s.sigs {
		if i == maxSetSigs {
			break
		}
		name := dns.CanonicalName(sig.SignerName)
		if within(locus(s.name, s.rrtype), name) && within(name, top) && (best == "" || below(name, best)) {
			best = name
		}
	}
	return best
}

// all are the RRs of a set and its signatures.
func (s *rrset) all() []dns.RR {
	out := slices.Clone(s.rrs)
	for _, sig := range s.sigs {
		out = append(out, sig)
	}
	return out
}

// setTTL lowers the TTLs of an RRset and its signatures to ttl seconds.
func (s *rrset) setTTL(ttl uint32) {
	for _, rr := range s.rrs {
		rr.Header().Ttl = min(rr.Header().Ttl, ttl)
	}
	for _, sig := range s.sigs {
		sig.Hdr.Ttl = min(sig.Hdr.Ttl, ttl)
	}
}

// RDATA is the RDATA of rr in wire form without compression, for parsers that are stricter than the dns package's
// (ipseckey.Parse).
func RDATA(rr dns.RR) ([]byte, error) {
	buf := make([]byte, dns.Len(rr)+1)
	n, err := dns.PackRR(rr, buf, 0, nil, false)
	if err != nil {
		return nil, fmt.Errorf("rdata of %s: %w", typeName(rr.Header().Rrtype), err)
	}
	_, skip, err := dns.UnpackDomainName(buf[:n], 0)
	if err != nil || skip+10 > n {
		return nil, fmt.Errorf("rdata of %s: record of %d octets", typeName(rr.Header().Rrtype), n)
	}
	return buf[skip+10 : n], nil
}
