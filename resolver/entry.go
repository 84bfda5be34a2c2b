package resolver

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
	"tacit/ipseckey"
)

// maxKeys is how many keys of an RRset the Watcher is given, usable ones first, by precedence.
const maxKeys = 8

// entryOverhead is the memory of an entry beside its records, roughly, in octets.
const entryOverhead = 512

// group is the addresses of one owner in an answer: of the final owner for A and AAAA, of each TargetName for hints.
type group struct {
	owner string
	addrs []netip.Addr
	hint  bool
}

// newEntry filters a validated answer to what may be released, and reads its addresses or keys.
func newEntry(q question, a dnssec.Answer, now time.Time) *entry {
	if a.Owner == "" {
		a.Owner = q.name
	}
	e := &entry{ans: a, at: now, size: entryOverhead}
	if a.Msg != nil {
		e.answer, e.ns = answerSection(q.typ, &a), authoritySection(&a)
		e.size += 2 * a.Msg.Len()
	}
	e.groups = groups(a.Owner, e.answer)
	if q.typ == dns.TypeIPSECKEY && a.Status >= dnssec.Insecure {
		e.keys, e.keyWhy = Keys(a.RRs)
	}
	e.until = lifetime(&a, e.answer, now)
	return e
}

// answerSection keeps the alias chain and the RRset asked for. Of a secure answer the RRset is the one that was verified;
// whatever else stands in the upstream's message was not asked for and leaves nobody's hands here.
func answerSection(typ uint16, a *dnssec.Answer) []dns.RR {
	var keep []dns.RR
	placed := false
	// Where the RRset stands in the message does not matter, and its order is kept: clients take the first address, and servers
	// turn the order on purpose.
	for _, rr := range a.Msg.Answer {
		h, t := rr.Header(), rr.Header().Rrtype
		if sig, ok := rr.(*dns.RRSIG); ok {
			t = sig.TypeCovered
		}
		switch {
		case typ == dns.TypeANY && a.Owner == dns.CanonicalName(h.Name):
		case t == typ && a.Owner == dns.CanonicalName(h.Name):
			if a.Status == dnssec.Secure && h.Rrtype == typ {
				if !placed {
					keep, placed = append(keep, a.RRs...), true
				}
				continue
			}
		case t == dns.TypeCNAME && onChain(a, dns.CanonicalName(h.Name)):
		case t == dns.TypeDNAME && aboveChain(a, dns.CanonicalName(h.Name)):
		default:
			continue
		}
		keep = append(keep, rr)
	}
	return keep
}

func onChain(a *dnssec.Answer, name string) bool {
	return name == a.Name || slices.Contains(a.Chain, name)
}

func aboveChain(a *dnssec.Answer, name string) bool {
	return dns.IsSubDomain(name, a.Name) || slices.ContainsFunc(a.Chain, func(n string) bool { return dns.IsSubDomain(name, n) })
}

// authoritySection keeps proofs, and the SOA of a denial. Name servers and the additional section are left out: their addresses
// are nobody's answer, and AD would vouch for them (RFC 4035, 3.2.3).
func authoritySection(a *dnssec.Answer) []dns.RR {
	var keep []dns.RR
	for _, rr := range a.Msg.Ns {
		t := rr.Header().Rrtype
		if sig, ok := rr.(*dns.RRSIG); ok {
			t = sig.TypeCovered
		}
		if t == dns.TypeNSEC || t == dns.TypeNSEC3 || t == dns.TypeSOA && len(a.RRs) == 0 {
			keep = append(keep, rr)
		}
	}
	return keep
}

// groups collects addresses and hints by owner, in order of appearance, without repeats. A and AAAA make one group, at the final
// owner; service records one for each TargetName, whose key may be another's.
func groups(owner string, rrs []dns.RR) []group {
	var gs []group
	seen := map[string]int{}
	for _, rr := range rrs {
		addrs, hint := addresses(rr)
		if len(addrs) == 0 {
			continue
		}
		o := owner
		if hint {
			o = target(rr, owner)
		}
		i, ok := seen[o]
		if !ok {
			i, seen[o] = len(gs), len(gs)
			gs = append(gs, group{owner: o, hint: hint})
		}
		gs[i].addrs = append(gs[i].addrs, addrs...)
	}
	for i := range gs {
		gs[i].addrs = unique(gs[i].addrs)
	}
	return gs
}

func unique(as []netip.Addr) []netip.Addr {
	seen := make(map[netip.Addr]bool, len(as))
	return slices.DeleteFunc(as, func(a netip.Addr) bool {
		was := seen[a]
		seen[a] = true
		return was
	})
}

// carriesAddresses says whether records of a type hold addresses that applications connect to.
func carriesAddresses(typ uint16) bool {
	return typ == dns.TypeA || typ == dns.TypeAAAA || typ == dns.TypeHTTPS || typ == dns.TypeSVCB
}

// addresses returns the addresses in a record, and whether they are hints (RFC 9460, 7.3).
func addresses(rr dns.RR) (as []netip.Addr, hint bool) {
	switch r := rr.(type) {
	case *dns.A:
		return appendIP(nil, r.A), false
	case *dns.AAAA:
		return appendIP(nil, r.AAAA), false
	case *dns.HTTPS:
		return hints(&r.SVCB), true
	case *dns.SVCB:
		return hints(r), true
	}
	return nil, false
}

func hints(r *dns.SVCB) (as []netip.Addr) {
	for _, kv := range r.Value {
		switch h := kv.(type) {
		case *dns.SVCBIPv4Hint:
			for _, ip := range h.Hint {
				as = appendIP(as, ip)
			}
		case *dns.SVCBIPv6Hint:
			for _, ip := range h.Hint {
				as = appendIP(as, ip)
			}
		}
	}
	return as
}

// appendIP takes ::ffff:0:0/96 for what a connection to it is: IPv4.
func appendIP(as []netip.Addr, ip net.IP) []netip.Addr {
	if a, ok := netip.AddrFromSlice(ip); ok {
		as = append(as, a.Unmap())
	}
	return as
}

// target is a service record's TargetName: "." is the owner of the record (RFC 9460, 2.5.2).
func target(rr dns.RR, owner string) string {
	t := "."
	switch r := rr.(type) {
	case *dns.HTTPS:
		t = r.Target
	case *dns.SVCB:
		t = r.Target
	}
	if t == "." || t == "" {
		return owner
	}
	return dns.CanonicalName(t)
}

// Keys reads IPSECKEY records, by precedence, usable ones first, at most eight. One that does not parse is kept as unusable, so that a
// set of broken records is not taken for a denial.
func Keys(rrs []dns.RR) (keys []ipseckey.Record, why string) {
	for _, rr := range rrs {
		k, err := parseKey(rr)
		if err != nil {
			k.Unusable = err.Error()
		}
		if k.Unusable != "" {
			why = k.Unusable
		}
		keys = append(keys, k)
	}
	slices.SortStableFunc(keys, func(a, b ipseckey.Record) int {
		if (a.Unusable == "") != (b.Unusable == "") {
			if a.Unusable == "" {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Precedence, b.Precedence)
	})
	return keys[:min(len(keys), maxKeys)], why
}

func parseKey(rr dns.RR) (ipseckey.Record, error) {
	rdata, err := dnssec.RDATA(rr)
	if err != nil {
		return ipseckey.Record{}, err
	}
	return ipseckey.Parse(rdata)
}
