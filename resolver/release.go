package resolver

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// release applies what the Watcher said to an answer with addresses (TRUST.md 1): withheld ones are left out while others
// remain; for a query with DO, or when none remains in either family, SERVFAIL; when only the other family has some, an
// empty NOERROR. A service record with a withheld hint is left out whole: its hints cannot be edited.
func (s *Server) release(ctx context.Context, q *query, e *entry, v verdicts) *dns.Msg {
	if len(v.withheld) == 0 {
		return s.reply(q, e, nil, v.ttl)
	}
	// Leaving an address out breaks no promise to a client without DO: it verifies nothing, and AD is cleared. One with DO would
	// find that the signature does not fit the set that is left, and cannot tell us from an attacker.
	keep := func(rr dns.RR) bool { return released(rr, v.withheld) }
	left, lost := 0, false
	answer, _ := e.sections()
	for _, rr := range answer {
		switch {
		case !keep(rr):
			lost = true
		case rr.Header().Rrtype == q.typ:
			left++
		}
	}
	if !lost { // the Watcher named addresses that are not in the answer
		return s.reply(q, e, nil, v.ttl)
	}
	s.stats.withheld.Add(1)
	reasons := slices.SortedFunc(maps.Values(v.withheld), func(a, b Withheld) int { return a.Addr.Compare(b.Addr) })
	s.log.Debug("withheld", "name", q.name, "type", dns.Type(q.typ), "owner", e.owner, "addr", reasons[0].Addr,
		"why", reasons[0].Why, "left", left)
	var r *dns.Msg
	switch {
	case q.do:
		r = failure(q.req, dns.RcodeServerFailure, 0, "")
	case left > 0:
		r = s.reply(q, e, keep, v.ttl)
	case s.elsewhere(ctx, q, e, v):
		// SERVFAIL for one family alone makes musl fail the whole name after 5 s; an empty answer is fine with every stub.
		r = failure(q.req, dns.RcodeSuccess, 0, "")
	default:
		r = failure(q.req, dns.RcodeServerFailure, 0, "")
	}
	r.AuthenticatedData = false
	clearEDE(r)
	for i, w := range reasons {
		if i == 0 || i < maxEDE && (w.EDE != reasons[i-1].EDE || w.Why != reasons[i-1].Why) {
			addEDE(r, w.EDE, w.Why)
		}
	}
	return r
}

// released says whether no address in rr is withheld.
func released(rr dns.RR, withheld map[netip.Addr]Withheld) bool {
	as, _ := addresses(rr)
	return !slices.ContainsFunc(as, func(a netip.Addr) bool { _, bad := withheld[a]; return bad })
}

// elsewhere says whether the name has an address that would be released when asked for in another way: in the other family, or,
// for service records, one of the hints that were not withheld. After the hold only what is known already counts.
func (s *Server) elsewhere(ctx context.Context, q *query, e *entry, v verdicts) bool {
	if q.typ != dns.TypeA && q.typ != dns.TypeAAAA {
		return slices.ContainsFunc(e.groups(), func(g group) bool { return remains(g, v) })
	}
	if ctx.Err() != nil {
		// The Watcher answers at once then, from its claims.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(s.base, slack)
		defer cancel()
	}
	other := *q
	other.typ = otherFamily(q.typ)
	o := s.lookup(ctx, q.by, q.name, other.typ)
	if !o.good() || len(o.groups()) == 0 {
		return false
	}
	ov := s.watch(ctx, &other, o, s.start(q.by, q.name, dns.TypeIPSECKEY))
	return slices.ContainsFunc(o.groups(), func(g group) bool { return remains(g, ov) })
}

func remains(g group, v verdicts) bool {
	return slices.ContainsFunc(g.addrs, func(a netip.Addr) bool { _, bad := v.withheld[a]; return !bad })
}

// slack is how long after the hold an answer may still leave.
const slack = 50 * time.Millisecond

// whole answers ANY and RRSIG. ANY is validated set by set; signatures are not signed, so that RRSIG is passed through unvalidated.
// Records with addresses are left out for a name that deserves a key: they are given to those who ask for them (RFC 8482, 4.1 lets
// a server choose what ANY gets).
func (s *Server) whole(ctx context.Context, q *query, guard bool) *dns.Msg {
	e := s.signatures(ctx, q)
	if q.typ == dns.TypeANY {
		e = s.lookup(ctx, q.by, q.name, q.typ)
	}
	if !e.answered || e.status != dnssec.Unchecked && !e.good() && !q.cd {
		return s.unproven(q, e)
	}
	r := s.reply(q, e, func(rr dns.RR) bool { return !guard || !carriesAddresses(covered(rr)) }, 0)
	if answer, _ := e.sections(); guard && slices.ContainsFunc(answer, func(rr dns.RR) bool { return carriesAddresses(covered(rr)) }) {
		r.AuthenticatedData = false
		addEDE(r, dns.ExtendedErrorCodeFiltered, "addresses are given to queries for their own type")
	}
	return r
}

// signatures asks the upstream for RRSIG; nothing is cached and nothing vouched for.
func (s *Server) signatures(ctx context.Context, q *query) *entry {
	ask := question{q.name, q.typ}
	if q.typ != dns.TypeRRSIG || s.cfg.Upstream == nil {
		return failed(ask, s.now(), dns.ExtendedErrorCodeInvalidQueryType, "signatures are not signed")
	}
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.typ)
	m.SetEdns0(udpSize, true)
	m.CheckingDisabled = true
	a, err := s.cfg.Upstream.Exchange(ctx, m)
	if err != nil {
		return failed(ask, s.now(), dns.ExtendedErrorCodeNetworkError, err.Error())
	}
	a.Answer = slices.DeleteFunc(a.Answer, func(rr dns.RR) bool {
		return rr.Header().Rrtype != dns.TypeRRSIG && rr.Header().Rrtype != dns.TypeCNAME
	})
	e := &entry{q: ask, owner: q.name, at: s.now().Sub(epoch), rcode: uint8(a.Rcode & 0xf), answered: true, more: &details{ede: dnssec.NoEDE, given: given(a)}}
	if err := e.pack(a.Answer, nil); err != nil {
		return failed(ask, s.now(), dns.ExtendedErrorCodeInvalidData, err.Error())
	}
	return e
}
