package dnssec

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// session is one lookup: its questions, its work budget and its clock, which stands still.
type session struct {
	checker
	v *Validator

	mu    sync.Mutex // the questions may be asked by the goroutines that fetch zones for this lookup
	asked map[question]*future

	also int // a file that ends a brief wait; negative: none

	way int // of a Rerouter, for every question; if it is not 0, what was found broken before is looked at again
}

// known is what the cache knows of a zone cut.
func (s *session) known(name string) (known, bool) {
	k, ok := s.v.zones.get(name, s.now)
	if ok && s.way != 0 && k.zone != nil && k.zone.status == Bogus {
		return known{}, false
	}
	return k, ok
}

// enclosing is the zone that holds name, found from the closest anchor down, one label at a time.
func (s *session) enclosing(ctx context.Context, name string) *zone {
	top, trusted := s.v.top(name)
	if !trusted {
		return s.untrusted(name, top)
	}
	z := s.anchored(ctx, top)
	labels := above(name, top)
	for i, child := range labels {
		if z.status != Secure {
			return z
		}
		if k, ok := s.known(child); ok {
			z = k.or(z)
			continue
		}
		s.askAhead(labels[i : len(labels)-1]) // the last is asked when all above it turns out to be signed, which is rare here
		z = s.child(ctx, child, z)
	}
	return z
}

// untrusted is the zone of a name that has no trust anchor above it, or is below zone top, which the configuration calls unsigned.
func (s *session) untrusted(name, top string) *zone {
	if top != "" {
		return &zone{name: top, verdict: verdict{status: Insecure, until: s.now.Add(maxTTL), ede: NoEDE, why: "zone " + top + " is unsigned by configuration"}}
	}
	return &zone{name: name, verdict: verdict{status: Indeterminate, until: s.now, ede: dns.ExtendedErrorCodeDNSSECIndeterminate,
		why: "no trust anchor at or above " + name}}
}

// askAhead asks for the DS of the next labels, so that a walk down waits for one round trip and not for one a label.
func (s *session) askAhead(labels []string) {
	for i, name := range labels {
		if i == maxWalkAtOnce {
			return
		}
		if _, ok := s.known(name); !ok {
			s.ask(question{name, dns.TypeDS})
		}
	}
}

// signer is the zone that holds name, where name is the signer of something and so should be a zone itself. It goes from name up, led by the signers of the
// DS records, to what is known already: one label for each zone, and not one for each label. What it is told on the way is verified on the way back.
func (s *session) signer(ctx context.Context, name string) *zone {
	if k, ok := s.known(name); ok && k.zone != nil {
		return k.zone
	}
	top, trusted := s.v.top(name)
	if !trusted {
		return s.untrusted(name, top)
	}
	if top == name {
		return s.anchored(ctx, name)
	}
	ds := s.ask(question{name, dns.TypeDS})
	s.ask(question{name, dns.TypeDNSKEY})
	above := parent(name)
	z := (*zone)(nil)
	if msg, err := s.wait(ctx, ds); err != nil {
		return s.failed(ctx, name, err)
	} else if hint := hintDS(name, msg, top); hint != "" {
		z = s.signer(ctx, hint)
	} else {
		z = s.enclosing(ctx, above)
	}
	if z.status != Secure {
		return z
	}
	return s.child(ctx, name, z)
}

// hintDS is the zone that claims to have signed the answer to a DS question.
func hintDS(name string, msg *dns.Msg, top string) string {
	sets := group(msg.Answer)
	for _, t := range []uint16{dns.TypeDS, dns.TypeCNAME} {
		if set := sets.find(name, t); set != nil {
			if hint := set.signer(top); hint != name {
				return hint
			}
		}
	}
	return hintDenial(parent(name), group(msg.Ns), top)
}

// hintDenial is the zone that claims to have signed a denial for something that lives at name.
func hintDenial(name string, authority rrsets, top string) string {
	best := ""
	for _, set := range authority {
		if set.rrtype != dns.TypeNSEC && set.rrtype != dns.TypeNSEC3 && set.rrtype != dns.TypeSOA {
			continue
		}
		if hint := set.signer(top); hint != "" && within(name, hint) && (best == "" || below(hint, best)) {
			best = hint
		}
	}
	return best
}

// anchored is the zone of a trust anchor.
func (s *session) anchored(ctx context.Context, name string) *zone {
	return s.shared(ctx, name, func(ctx context.Context) known {
		if r := s.v.rollovers[name]; r != nil { // a key that was revoked, or has ripened, is so from this lookup on
			if msg, err := s.wait(ctx, s.ask(question{name, dns.TypeDNSKEY})); err == nil {
				r.observe(&s.checker, msg)
			}
		}
		top, a := s.v.Anchors.closest(name)
		if top != name {
			return known{zone: s.untrusted(name, "")}
		}
		set := &rrset{name: name, rrtype: dns.TypeDS}
		for _, d := range a.ds {
			set.rrs = append(set.rrs, d)
		}
		var trusted []*dns.DNSKEY
		for _, k := range a.keys {
			if s.rules.supported(k.Algorithm) {
				trusted = append(trusted, k)
			}
		}
		until := s.now.Add(maxTTL)
		c := s.chooseDS(set, verdict{status: Secure, until: until, ede: NoEDE})
		if c.status != Secure && len(trusted) == 0 {
			return known{&zone{name: name, verdict: c.verdict}, until}
		}
		return s.keysOf(ctx, name, c.ds, trusted, until)
	}, nil)
}

// child is the zone that holds name, given that z holds its parent, or a name above it without a known cut between.
func (s *session) child(ctx context.Context, name string, z *zone) *zone {
	return s.shared(ctx, name, func(ctx context.Context) known {
		msg := s.synthesizedIn(question{name, dns.TypeDS}, z.name)
		if msg == nil {
			var err error
			if msg, err = s.wait(ctx, s.ask(question{name, dns.TypeDS})); err != nil {
				return known{zone: s.failed(ctx, name, err)}
			}
		}
		c := s.judgeDS(name, msg, z)
		switch {
		case c.status == Bogus:
			return known{&zone{name: name, verdict: c.verdict}, s.now.Add(bogusTTL)}
		case c.none:
			return known{nil, c.until}
		case c.status != Secure:
			return known{&zone{name: name, verdict: c.verdict}, c.until}
		}
		return s.keysOf(ctx, name, c.ds, nil, c.until)
	}, z)
}

// keysOf fetches and judges the DNSKEY RRset of a zone.
func (s *session) keysOf(ctx context.Context, name string, ds []*dns.DS, trusted []*dns.DNSKEY, until time.Time) known {
	msg, err := s.wait(ctx, s.ask(question{name, dns.TypeDNSKEY}))
	if err != nil {
		return known{zone: s.failed(ctx, name, err)}
	}
	z := s.judgeKeys(name, msg, ds, trusted, until)
	if z.status == Bogus {
		return known{z, s.now.Add(bogusTTL)}
	}
	return known{z, z.until}
}

// failed is a zone about which the DNS did not answer.
func (s *session) failed(ctx context.Context, name string, err error) *zone {
	return &zone{name: name, verdict: s.unanswered(err)}
}

// unanswered is the verdict where a question got no answer.
func (s *session) unanswered(err error) verdict {
	v := verdict{status: Indeterminate, until: s.now, ede: dns.ExtendedErrorCodeNetworkError, why: err.Error()}
	var ne *netError
	switch {
	case errors.As(err, &ne):
		v.ede = ne.ede
	case errors.Is(err, errBudget):
		v.status, v.ede = Bogus, dns.ExtendedErrorCodeDNSBogus
	}
	return v
}

// shared finds a delegation in the cache, or makes it with get, once for all lookups that want it at this time. The work goes on when the lookup that began
// it leaves. Where there is no cut the answer is z.
func (s *session) shared(ctx context.Context, name string, get func(context.Context) known, z *zone) *zone {
	for try := 0; ; try++ {
		if k, ok := s.known(name); ok {
			return k.or(z)
		}
		mine := false
		s.leave()
		ch := s.v.walks.DoChan(s.work.key(byWay(name, s.way)), func() (any, error) {
			mine = true
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), walkTimeout)
			defer cancel()
			k := get(ctx)
			if k.zone == nil || k.zone.status != Bogus || !s.work.spent() {
				s.v.zones.put(name, k, s.now)
			}
			return k, nil
		})
		select {
		case <-ctx.Done():
			return s.failed(ctx, name, ctx.Err())
		case r := <-ch:
			k := r.Val.(known)
			// Another lookup's work budget, not ours, may have ended there: then we try with ours.
			if !mine && try == 0 && k.zone != nil && k.zone.status <= Indeterminate && !s.work.spent() {
				continue
			}
			return k.or(z)
		}
	}
}

// or is the entry's zone, or z where there is no cut.
func (k known) or(z *zone) *zone {
	if k.zone == nil {
		return z
	}
	return k.zone
}
