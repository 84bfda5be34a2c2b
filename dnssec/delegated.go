package dnssec

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// How long it is believed that the trusted resolver validates, and that it does not.
const (
	validatesTTL = 10 * time.Minute
	lazyTTL      = 5 * time.Second
)

// WithDelegation leaves validation to the resolver that the Exchanger asks: what comes with AD is Secure, what comes without is Insecure. The Exchanger must
// clear AD in every answer but those of a resolver that deserves that, over a way that nobody else can write to.
//
// RFC 6840, 5.7: AD in a query asks for AD in the answer. 5.8: "a security-aware resolver MUST NOT [...] treat the AD bit as meaningful, unless [...] the
// communication is over a secure channel".
func WithDelegation() Option { return func(v *Validator) { v.rules.delegated = true } }

// refusal is why the trusted resolver did not give an answer that is there: it is bogus, and given with CD only.
type refusal struct {
	ede uint16
	why string
}

// insist asks with CD what was refused with SERVFAIL: what comes then was refused because it is bogus. r is the refusal.
func (v *Validator) insist(ctx context.Context, q question, asked, r *dns.Msg) (*dns.Msg, *refusal) {
	m := asked.Copy()
	m.CheckingDisabled, m.AuthenticatedData = true, false
	data, err := v.Exchanger.Exchange(ctx, m)
	if err != nil || acceptable(q, data) != nil {
		return nil, nil
	}
	said := &refusal{ede: dns.ExtendedErrorCodeDNSBogus, why: "the resolver that is trusted refuses it"}
	if code, text, ok := validationError(r); ok {
		said.ede = code
		if text != "" {
			said.why += ": " + text
		}
	}
	return data, said
}

// validationError is the extended error of an answer that is about DNSSEC (RFC 8914, 4.2 to 4.13; RFC 9276, 3.2).
func validationError(r *dns.Msg) (code uint16, text string, ok bool) {
	opt := r.IsEdns0()
	if opt == nil {
		return 0, "", false
	}
	for _, o := range opt.Option {
		if e, is := o.(*dns.EDNS0_EDE); is && (e.InfoCode >= dns.ExtendedErrorCodeUnsupportedDNSKEYAlgorithm && e.InfoCode <= dns.ExtendedErrorCodeNSECMissing &&
			e.InfoCode != dns.ExtendedErrorCodeStaleAnswer && e.InfoCode != dns.ExtendedErrorCodeForgedAnswer) {
			return e.InfoCode, e.ExtraText, true
		}
	}
	return 0, "", false
}

// diligence is whether the trusted resolver has been seen to validate.
//
// The mutex: lookups look here in passing; the question is asked without it.
type diligence struct {
	mu    sync.Mutex
	yes   bool
	until time.Time
}

// validates says whether the trusted resolver sets AD on what is surely signed: the topmost zone of the trust anchors. Without that, an answer without AD says
// nothing.
func (s *session) validates(ctx context.Context) bool {
	d := &s.v.diligence
	d.mu.Lock()
	yes, known := d.yes, s.now.Before(d.until)
	d.mu.Unlock()
	if known {
		return yes
	}
	top := "."
	if zones := s.v.Anchors.Zones(); !slices.Contains(zones, top) && len(zones) > 0 {
		top = zones[0]
	}
	msg, err := s.wait(ctx, s.ask(question{top, dns.TypeSOA}))
	yes = err == nil && msg.AuthenticatedData
	d.mu.Lock()
	defer d.mu.Unlock()
	d.yes, d.until = yes, s.now.Add(lazyTTL)
	if yes {
		d.until = s.now.Add(validatesTTL)
	}
	return yes
}

// word is what the trusted resolver says of a message about name.
func (s *session) word(ctx context.Context, name string, f *future, msg *dns.Msg) verdict {
	if top, trusted := s.v.top(name); top != "" && !trusted {
		return s.untrusted(name, top).verdict
	}
	by := "the resolver that is trusted"
	if f.by.via != "" {
		by += ", " + f.by.via + ","
	}
	v := verdict{status: Insecure, until: s.now.Add(maxTTL), ede: NoEDE, why: by + " does not say that it is authentic"}
	switch {
	case f.refused != nil:
		v = bogus(f.refused.ede, "%s", f.refused.why)
	case msg.AuthenticatedData:
		v.status, v.proof, v.why = Secure, "AD", by+" says that it is authentic"
	case !s.validates(ctx):
		v.status, v.ede, v.why = Indeterminate, dns.ExtendedErrorCodeDNSSECIndeterminate, by+" sets AD on nothing: it does not validate"
	}
	return v
}

// takenAtWord is the word on a message applied to an RRset of its answer section.
func (l *lookup) takenAtWord(set *rrset) verdict {
	v := l.said
	for _, rr := range set.rrs {
		if t := l.now.Add(seconds(rr.Header().Ttl)); t.Before(v.until) {
			v.until = t
		}
	}
	v.why = set.String() + ": " + v.why
	return v
}

// deniedAtWord is the word on a message applied to its denial.
func (l *lookup) deniedAtWord(of string, authority rrsets) verdict {
	v := l.said
	d := &denials{until: l.now.Add(maxNegative)}
	for _, set := range authority {
		if set.rrtype == dns.TypeSOA {
			d.dated = true
			d.soa(&l.checker, set)
		}
	}
	if v.until = d.until; !d.dated { // RFC 2308, 5: a denial without SOA is not to be kept
		v.until = l.now
	}
	v.why = "no " + of + ": " + v.why
	return v
}
