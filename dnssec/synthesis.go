package dnssec

import (
	"context"
	"time"

	"github.com/miekg/dns"
)

// WithoutSynthesis has every denial asked for, also where records that were verified before prove it (RFC 8198).
func WithoutSynthesis() Option { return func(v *Validator) { v.rules.asks = true } }

// keepProof is checker.keep: what verified goes to the proofs that all lookups share. The SOA is no proof, but it goes out beside one: it is verified here.
func (s *session) keepProof(set *rrset, z *zone, until time.Time) {
	if set.rrtype == dns.TypeSOA && (s.v.proofs.soaKnown(z.name, s.now) || set.name != z.name || s.verify(set, z).status != Secure) {
		return
	}
	s.v.proofs.put(z.name, set, until, s.now)
}

// synthesized is an answer to q made from proofs at hand, nil where they do not suffice. It is to be validated like an answer that came.
func (s *session) synthesized(q question) *dns.Msg {
	place := locus(q.name, q.rrtype)
	top, trusted := s.v.top(place)
	if !trusted || q.rrtype == dns.TypeANY || q.rrtype == dns.TypeRRSIG || q.rrtype == dns.TypeNSEC {
		return nil
	}
	for zone := place; ; zone = parent(zone) {
		if m := s.synthesizedIn(q, zone); m != nil {
			return m
		}
		if zone == top || zone == "." {
			return nil
		}
	}
}

// synthesizedIn is synthesized from the proofs of one zone.
func (s *session) synthesizedIn(q question, zone string) *dns.Msg {
	k, known := s.known(zone)
	if !known || k.zone == nil || k.zone.status != Secure {
		return nil
	}
	found, soa := s.v.proofs.gather(&s.checker, zone, q.name)
	if len(found) == 0 || q.rrtype != dns.TypeDS && (soa.set == nil || !s.now.Before(soa.until)) {
		return nil
	}
	d := &denials{zone: zone}
	for _, p := range found {
		d.take(&s.checker, p.set.rrs[0], zone)
	}
	m := message(q, found, soa, s.now)
	got := s.prove(q.name, q.rrtype, true, d)
	if got == noDelegation && s.prove(q.name, dns.TypeNone, true, d) == noName {
		got = noName
	}
	switch got {
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

// message is the answer for the owner that the chain has come to: from the proofs at hand, or from the upstream.
func (l *lookup) message(ctx context.Context, q question) (*dns.Msg, error) {
	if !l.rules.asks && !l.elsewhere {
		if m := l.synthesized(q); m != nil {
			return m, nil
		}
	}
	return l.ask(q).wait(ctx)
}
