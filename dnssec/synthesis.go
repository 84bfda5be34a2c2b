package dnssec

import (
	"context"
	"time"

	"github.com/miekg/dns"
)

// WithoutSynthesis has every denial asked for, also where records that were verified before prove it (RFC 8198).
func WithoutSynthesis() Option { return func(v *Validator) { v.rules.asks = true } }

// keepProof is checker.keep: what verified goes to the proofs that all lookups share.
func (s *session) keepProof(set *rrset, z *zone, until time.Time) {
	s.v.proofs.put(z.name, set, until, s.now)
}

// checkSOA verifies the SOA beside a denial, and keeps it for the next one. It proves nothing, but goes out with AD set (RFC 4035, 3.2.3: only where all of
// the authority section is authentic), and its TTL decides for how long others believe the denial.
func (s *session) checkSOA(d *denials, z *zone) verdict {
	if d.apex == nil || z.status != Secure || s.v.proofs.hasSOA(z.name, d.apex, s.now) {
		return verdict{}
	}
	got := s.verify(d.apex, z)
	if got.status != Secure {
		return got.verdict
	}
	d.apex.setTTL(got.ttl)
	if len(d.sets) > 0 {
		s.keepProof(d.apex, z, d.until)
	}
	return verdict{}
}

// synthesized is an answer to q made from proofs at hand, nil where they do not suffice. It is to be validated like an answer that came.
func (s *session) synthesized(q question) *dns.Msg {
	place := locus(q.name, q.rrtype)
	top, trusted := s.v.top(place)
	if !trusted || q.rrtype == dns.TypeANY || q.rrtype == dns.TypeRRSIG || q.rrtype == dns.TypeNSEC {
		return nil
	}
	for zone := place; ; zone = parent(zone) {
		if m := s.synthesizedIn(q, zone); m != nil && m.Ns[0].Header().Rrtype == dns.TypeSOA {
			return m
		}
		if m := s.expandedIn(q, zone); m != nil {
			return m
		}
		if zone == top || zone == "." {
			return nil
		}
	}
}

// synthesizedIn is synthesized from the proofs of one zone. The SOA, where it is known, comes first.
func (s *session) synthesizedIn(q question, zone string) *dns.Msg {
	k, known := s.known(zone)
	if !known || k.zone == nil || k.zone.status != Secure {
		return nil
	}
	found, soa := s.v.proofs.gather(&s.checker, zone, q.name)
	if len(found) == 0 {
		return nil
	}
	if !s.now.Before(soa.until) {
		soa = proof{}
	}
	d := &denials{zone: zone}
	for _, p := range found {
		d.take(&s.checker, p.set.rrs[0], zone)
	}
	m := message(q, found, soa, s.now)
	switch s.proveFully(q.name, q.rrtype, true, d) {
	case noName:
		m.Rcode = dns.RcodeNameError
		return m
	case noData, notNamed, noDelegation, unsignedCut:
		return m
	case optedOut: // RFC 8198, 5.5 leaves opt-out alone; that there is no DS, it does prove
		if q.rrtype == dns.TypeDS {
			return m
		}
	}
	return nil
}

// expandedIn is an answer made from a wildcard of a zone (RFC 8198, 5.3): what stands there is known, and that there is no closer name.
func (s *session) expandedIn(q question, zone string) *dns.Msg {
	for base := parent(q.name); within(base, zone) && q.rrtype != dns.TypeDS; base = parent(base) {
		if set := s.v.proofs.wildcard(zone, wildcardOf(base), q.name, q.rrtype, s.now); set != nil {
			found := s.v.proofs.spans(&s.checker, zone, q.name, ancestor(q.name, dns.CountLabel(base)+1))
			d := &denials{zone: zone}
			for _, p := range found {
				d.take(&s.checker, p.set.rrs[0], zone)
			}
			if s.proveExpansion(q.name, wildcardOf(base), d) != noName {
				return nil
			}
			m := message(q, found, proof{}, s.now)
			m.Answer = set.all()
			return m
		}
		if base == "." {
			break
		}
	}
	return nil
}

// begin asks the first question, and what will surely be asked after it, where no answer is to be made from proofs.
func (l *lookup) begin(send Sender) {
	q := question{l.ans.Name, l.ans.Type}
	if l.made = l.madeOf(q); l.made != nil {
		return
	}
	if send == nil || !l.send(q, send) {
		l.ask(q)
	}
	if !l.rules.delegated {
		l.prefetch(q.name, q.rrtype)
	}
}

// madeOf is synthesized, where that is wanted.
func (l *lookup) madeOf(q question) *dns.Msg {
	if l.rules.asks || l.way != 0 {
		return nil
	}
	return l.synthesized(q)
}

// message is the answer for the owner that the chain has come to: from the proofs at hand, or from the upstream.
func (l *lookup) message(ctx context.Context, q question) (*dns.Msg, error) {
	made := l.made
	if q.name != l.ans.Name { // not the first question
		made = l.madeOf(q)
	}
	if made != nil {
		return made, nil
	}
	f := l.ask(q)
	m, err := l.wait(ctx, f)
	if err == nil {
		l.ans.Via, l.ans.Detour = f.by.via, f.by.why
		if l.rules.delegated {
			l.said = l.word(ctx, q.name, f, m)
		}
	}
	return m, err
}
