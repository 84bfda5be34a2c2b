package dnssec

import (
	"context"
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

// lookup is the making of one Answer.
type lookup struct {
	*session
	ans   Answer
	asked map[string]bool   // owners for which the upstream was asked, against loops
	kept  []dns.RR          // the answer section: the RRsets of the chain only
	taken map[question]bool // what is in kept
	made  *dns.Msg          // the first answer, where it is made from proofs at hand

	said   verdict  // WithDelegation: on the message that is read
	proven []*rrset // the authority section: of each link the proofs that verified, of the denial the SOA
}

// run asks, and asks again where the upstream left a chain of aliases unfinished.
func (l *lookup) run(ctx context.Context) {
	for l.ans.Status != Bogus {
		owner := l.ans.Owner
		if l.asked[owner] {
			l.weaken(owner, verdict{status: Indeterminate, until: l.now, ede: dns.ExtendedErrorCodeOther, why: "the aliases of " + l.ans.Name + " do not end"})
			return
		}
		l.asked[owner] = true
		msg, err := l.message(ctx, question{owner, l.ans.Type})
		if err != nil {
			l.weaken(owner+" "+typeName(l.ans.Type), l.unanswered(err))
			return
		}
		done := l.follow(ctx, owner, msg)
		l.keep(msg)
		if done {
			return
		}
	}
}

// keep makes msg the Answer's, with the whole chain in its answer section.
func (l *lookup) keep(msg *dns.Msg) {
	if first := l.ans.Msg; first != nil {
		msg.Question = first.Question
	}
	if l.ans.Status != Bogus { // what is bogus is shown whole, to those who ask with CD
		msg.Answer = l.kept
		msg.Ns = l.authority(msg.Ns)
	}
	if len(l.ans.RRs) > 0 {
		msg.Rcode = dns.RcodeSuccess
	}
	l.ans.Msg = msg
	l.ans.Rcode = msg.Rcode
}

// authority is the authority section: the proofs of all links, also of those that came in earlier messages. Of what is Secure it holds nothing else, as
// whatever stands there goes out with AD (RFC 4035, 3.2.3).
func (l *lookup) authority(said []dns.RR) []dns.RR {
	var out []dns.RR
	if l.ans.Status != Secure || l.rules.delegated {
		out = said
	}
	have := group(out)
	for _, set := range l.proven {
		if have.find(set.name, set.rrtype) == nil {
			out = append(out, set.all()...)
			have = append(have, set)
		}
	}
	return out
}

// weaken joins a link's verdict to the whole: the weakest status, the earliest end, and the reason of the weakest.
func (l *lookup) weaken(of string, v verdict) {
	l.ans.Links = append(l.ans.Links, v.link(of))
	if v.until.Before(l.ans.Until) {
		l.ans.Until = v.until
	}
	if l.ans.Why == "" || v.status < l.ans.Status {
		l.ans.Why = v.why
	} else if v.status == l.ans.Status && v.status == Secure {
		l.ans.Why += "; " + v.why
	}
	if v.status < l.ans.Status {
		l.ans.Status, l.ans.EDE = v.status, v.ede
		if v.status >= Insecure {
			l.ans.EDE = NoEDE
		}
	}
}

// follow reads an answer from the name that was asked to where its aliases end. False: the end is not in it, and must be asked for.
func (l *lookup) follow(ctx context.Context, asked string, msg *dns.Msg) (done bool) {
	answer, authority := group(msg.Answer), group(msg.Ns)
	for {
		if l.data(ctx, answer, authority) || l.ans.Status == Bogus {
			return true
		}
		alias := answer.dname(l.ans.Owner)
		if alias == nil {
			alias = answer.find(l.ans.Owner, dns.TypeCNAME)
		}
		if alias == nil {
			break
		}
		target, v := l.alias(ctx, alias, answer, authority)
		l.weaken(alias.String(), v)
		if l.ans.Status == Bogus || target == "" {
			l.ans.Denied = l.ans.Status != Bogus // YXDOMAIN
			return true
		}
		if why := l.loops(target); why != "" {
			l.weaken(target, verdict{status: Indeterminate, until: l.now, ede: dns.ExtendedErrorCodeOther, why: why})
			return true
		}
		l.ans.Owner = target
		l.ans.Chain = append(l.ans.Chain, target)
	}
	if l.ans.Owner != asked && !ends(authority, l.ans.Owner) {
		return false
	}
	v := l.denied(ctx, l.ans.Owner, l.ans.Type, msg, authority)
	if v.status < Insecure && l.ans.Owner != asked {
		return false // asked for by itself, the end of the chain may be proven
	}
	l.ans.Denied = true
	l.weaken("no "+l.ans.Owner+" "+typeName(l.ans.Type), v)
	return true
}

// ends says whether an authority section speaks about name: it holds a SOA of a zone above it.
func ends(authority rrsets, name string) bool {
	for _, set := range authority {
		if set.rrtype == dns.TypeSOA && len(set.rrs) > 0 && within(name, set.name) {
			return true
		}
	}
	return false
}

// loops says why a chain must not go on to target.
func (l *lookup) loops(target string) string {
	if len(l.ans.Chain) > maxChain {
		return fmt.Sprintf("more than %d aliases from %s", maxChain, l.ans.Name)
	}
	for _, name := range l.ans.Chain {
		if name == target {
			return "the aliases of " + l.ans.Name + " go in a circle at " + target
		}
	}
	return ""
}

// data takes the RRset that was asked for, if it is there.
func (l *lookup) data(ctx context.Context, answer, authority rrsets) bool {
	if l.ans.Type == dns.TypeRRSIG {
		return l.signatures(answer)
	}
	found := false
	for _, set := range answer {
		if set.name != l.ans.Owner || len(set.rrs) == 0 || (set.rrtype != l.ans.Type && l.ans.Type != dns.TypeANY) {
			continue
		}
		if len(l.taken) >= maxAnySets && l.ans.Type == dns.TypeANY {
			break
		}
		found = true
		if d := answer.dname(l.ans.Owner); d != nil && set.rrtype == dns.TypeCNAME && len(set.sigs) == 0 {
			_, v := l.alias(ctx, d, answer, authority) // made from a DNAME: that is what is signed
			l.weaken(d.String(), v)
		} else {
			l.weaken(set.String(), l.positive(ctx, set, authority))
		}
		l.take(set)
		l.ans.RRs = append(l.ans.RRs, set.rrs...)
	}
	return found
}

// signatures takes the RRSIGs of the owner. They are not signed themselves (RFC 4035, 2.2), so nothing says that they are genuine, or all.
func (l *lookup) signatures(answer rrsets) bool {
	v := verdict{status: Insecure, until: l.now, ede: NoEDE, why: "signatures are not signed (RFC 4035, 2.2)"}
	for _, set := range answer {
		if set.name != l.ans.Owner {
			continue
		}
		for _, sig := range set.sigs {
			l.ans.RRs, l.kept = append(l.ans.RRs, sig), append(l.kept, sig)
		}
	}
	if len(l.ans.RRs) > 0 {
		l.weaken(l.ans.Owner+" RRSIG", v)
	}
	return len(l.ans.RRs) > 0
}

// take keeps an RRset and its signatures for the answer section.
func (l *lookup) take(set *rrset) {
	q := question{set.name, set.rrtype}
	if l.taken[q] {
		return // a DNAME that the chain passed twice
	}
	l.taken[q] = true
	l.kept = append(l.kept, set.all()...)
}

// alias validates a CNAME, or a DNAME above the owner, and returns where it leads: empty if nowhere.
func (l *lookup) alias(ctx context.Context, set *rrset, answer, authority rrsets) (string, verdict) {
	v := l.positive(ctx, set, authority)
	l.take(set)
	if v.status == Bogus {
		return "", v
	}
	if len(set.rrs) > 1 {
		return "", bogus(dns.ExtendedErrorCodeInvalidData, "%s is not one record (RFC 2181, 10.1)", set)
	}
	switch rr := set.rrs[0].(type) {
	case *dns.CNAME:
		return dns.CanonicalName(rr.Target), v
	case *dns.DNAME:
		return l.substitute(rr, set, answer, v)
	}
	return "", bogus(dns.ExtendedErrorCodeInvalidData, "%s is no alias", set)
}

// substitute applies a DNAME to the owner (RFC 6672, 2.2). The CNAME that comes with it is made by a server and not signed: it must say the same.
func (l *lookup) substitute(rr *dns.DNAME, set *rrset, answer rrsets, v verdict) (string, verdict) {
	prefix := strings.TrimSuffix(l.ans.Owner, set.name)
	if set.name == "." {
		prefix = l.ans.Owner
	}
	target, err := canonical(prefix + strings.TrimPrefix(dns.CanonicalName(rr.Target), "."))
	if err != nil {
		return "", verdict{status: min(v.status, Insecure), until: v.until, ede: NoEDE,
			why: set.String() + " makes a name that is too long of " + l.ans.Owner}
	}
	if c := answer.find(l.ans.Owner, dns.TypeCNAME); c != nil {
		if cn, ok := c.rrs[0].(*dns.CNAME); !ok || len(c.rrs) > 1 || dns.CanonicalName(cn.Target) != target {
			return "", bogus(dns.ExtendedErrorCodeDNSBogus, "%s contradicts %s", c, set)
		}
		c.setTTL(set.rrs[0].Header().Ttl)
		l.take(c)
	} else { // RFC 6672, 3.4: what the upstream left out, we make
		l.take(&rrset{name: l.ans.Owner, rrtype: dns.TypeCNAME, rrs: []dns.RR{&dns.CNAME{
			Hdr: dns.RR_Header{Name: l.ans.Owner, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: set.rrs[0].Header().Ttl}, Target: target}}})
	}
	return target, v
}

// positive validates an RRset of the answer section.
func (l *lookup) positive(ctx context.Context, set *rrset, authority rrsets) verdict {
	if l.rules.delegated {
		return l.takenAtWord(set)
	}
	side := set.rrtype
	if l.ans.Type == dns.TypeDS && side == dns.TypeCNAME {
		side = dns.TypeDS // an alias in place of DS is the parent's to say: its child may neither sign it nor be unsigned
	}
	z := l.zoneOf(ctx, set.name, side, func(top string) string {
		if signer := set.signer(top); within(locus(set.name, side), signer) {
			return signer
		}
		return ""
	})
	v := l.positiveIn(set, authority, z)
	if v.status == Bogus {
		if z := l.otherZone(ctx, set.name, side, z); z != nil {
			return l.positiveIn(set, authority, z)
		}
	}
	return v
}

// otherZone is the zone that really holds an RRset, where that is another than the one whose signature did not hold: what is below an unsigned delegation
// may carry any signature. Nil if it is the same, or not known.
func (l *lookup) otherZone(ctx context.Context, name string, rrtype uint16, tried *zone) *zone {
	if tried.status != Secure || l.work.spent() {
		return nil
	}
	z := l.enclosing(ctx, locus(name, rrtype))
	if z.status < Insecure || z.name == tried.name {
		return nil
	}
	return z
}

// positiveIn validates an RRset as one of zone z.
func (l *lookup) positiveIn(set *rrset, authority rrsets, z *zone) verdict {
	if z.status != Secure {
		return l.unsigned(set, z)
	}
	got := l.verify(set, z)
	if got.status != Secure {
		return got.verdict
	}
	set.setTTL(got.ttl)
	if z.name == parent(set.name) {
		z.hosts.Store(true)
	}
	d := l.collect(authority, z) // proofs beside what needs none are good for the next question, as for the zone that an alias leads to
	if got.wildcard == "" {
		return got.verdict
	}
	if d.until.Before(got.until) {
		got.until = d.until
	}
	got.why += ", made from " + got.wildcard
	l.proven = append(l.proven, d.sets...)
	switch l.proveExpansion(set.name, got.wildcard, d) {
	case noName:
		l.v.proofs.putWild(z.name, got.wildcard, set, got.until, l.now)
		return got.verdict
	case optedOut, tooCostly: // RFC 5155, 9.2: what opt-out leaves open is not secure
		got.status, got.why = Insecure, got.why+", and the proof that there is no closer name does not hold (opt-out or too many iterations)"
		return got.verdict
	}
	return d.fail(set.name+" itself", z)
}

// unsigned is the verdict on data of a zone without keys: the zone's, for as long as the data lives too.
func (l *lookup) unsigned(set *rrset, z *zone) verdict {
	v := z.verdict
	for _, rr := range set.rrs {
		if t := l.now.Add(seconds(rr.Header().Ttl)); v.status == Insecure && t.Before(v.until) {
			v.until = t
		}
	}
	v.why = set.String() + ": " + v.why
	return v
}

// zoneOf is the zone that should have signed something at name. hint names the signer that is claimed, below the anchor that it is given.
func (l *lookup) zoneOf(ctx context.Context, name string, rrtype uint16, hint func(top string) string) *zone {
	place := locus(name, rrtype)
	if top, trusted := l.v.top(place); trusted {
		if signer := hint(top); signer != "" {
			return l.signer(ctx, signer)
		}
	}
	return l.enclosing(ctx, place)
}

// denied validates the denial of an RRset.
func (l *lookup) denied(ctx context.Context, name string, rrtype uint16, msg *dns.Msg, authority rrsets) verdict {
	if l.rules.delegated {
		return l.deniedAtWord(name+" "+typeName(rrtype), authority)
	}
	place := locus(name, rrtype)
	z := l.zoneOf(ctx, name, rrtype, func(top string) string { return hintDenial(place, authority, top) })
	v := l.deniedIn(name, rrtype, msg, authority, z)
	if v.status == Bogus {
		if z := l.otherZone(ctx, name, rrtype, z); z != nil {
			return l.deniedIn(name, rrtype, msg, authority, z)
		}
	}
	return v
}

// deniedIn validates a denial as one of zone z.
func (l *lookup) deniedIn(name string, rrtype uint16, msg *dns.Msg, authority rrsets, z *zone) verdict {
	of := name + " " + typeName(rrtype)
	d := l.collect(authority, z)
	v := z.verdict
	v.until = d.until
	if z.status != Secure {
		if !d.dated {
			v.until = l.now // RFC 2308, 5: a denial without SOA is not to be kept
		}
		v.why = "no " + of + ": " + z.why
		return v
	}
	v.ede, v.zone, v.tag, v.alg, v.proof = NoEDE, z.name, d.first.tag, d.first.alg, d.first.proof
	if fault := l.checkSOA(d, z); fault.status == Bogus {
		return fault
	}
	if d.apex != nil {
		l.proven = append(l.proven, d.apex)
	}
	l.proven = append(l.proven, d.sets...)
	// Nobody signs the rcode: it is what the proof says. Some servers say NXDOMAIN for an empty non-terminal, too.
	switch l.proveFully(name, rrtype, msg.Rcode == dns.RcodeNameError, d) {
	case noName:
		v.why, msg.Rcode = "zone "+z.name+" proves that there is no name "+name, dns.RcodeNameError
	case notNamed: // with NOERROR or, to those who asked for it so, NXDOMAIN (RFC 9824, 5)
		v.why = "zone " + z.name + " says that there is no name " + name + " (RFC 9824)"
		if msg.Rcode != dns.RcodeNameError {
			msg.Rcode = dns.RcodeSuccess
		}
	case noData, noDelegation, unsignedCut:
		v.why, msg.Rcode = "zone "+z.name+" proves that there is no "+of, dns.RcodeSuccess
	case optedOut:
		v.proof = "opt-out"
		v.status, v.why = Insecure, "no "+of+": "+name+" lies in an opt-out span of zone "+z.name
	case tooCostly:
		v.status, v.why = Insecure, "no "+of+": NSEC3 of zone "+z.name+" has more iterations than we compute"
	default:
		return d.fail(of, z)
	}
	return v
}
