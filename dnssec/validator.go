package dnssec

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

// Validator looks names up through its Exchanger and validates what comes back. It is safe for concurrent use;
// the zone keys it learned are shared by all lookups.
type Validator struct {
	Exchanger Exchanger
	Anchors   *Anchors
	Now       func() time.Time // the clock; set before the first Lookup

	rules     rules
	unsigned  map[string]bool // by zone, canonical: WithUnsigned
	lanes     *lanes
	rollovers map[string]*Rollover // by zone: Follow
	zones     delegations
	proofs    proofs
	routes    routes
	diligence diligence
	walks     singleflight.Group // by zone name: the work of getting its keys
	questions singleflight.Group // by name and type: a question to the upstream
}

// Option changes a Validator at its making.
type Option func(*Validator)

// WithClock sets the clock.
func WithClock(now func() time.Time) Option { return func(v *Validator) { v.Now = now } }

// WithSHA1 believes signatures of algorithms 5 and 7 (RSASHA1), which RFC 9905 makes as good as none.
func WithSHA1() Option { return func(v *Validator) { v.rules.sha1 = true } }

// WithSkew sets how far in the future an inception may lie (5 minutes unless set) and how far in the past an expiration (not at all unless set:
// what has expired may be a replay, TRUST: ).
func WithSkew(early, late time.Duration) Option {
	return func(v *Validator) { v.rules.early, v.rules.late = early, late }
}

// builtFloor is a time before which this code was not written: a clock that says less is wrong.
var builtFloor = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// WithFloor sets a time that is known to have passed, as that of the last run is; the time when this code was written unless set. While the clock says
// less it is wrong, and nothing can be Secure or Insecure (TRUST: A-43): what is not Bogus for another reason than the time is Indeterminate.
func WithFloor(t time.Time) Option { return func(v *Validator) { v.rules.floor = t } }

// WithUnsigned names zones that are Insecure whatever the zones above them say: the negative trust anchors of RFC 7646, for internal zones that the public
// root denies. A trust anchor at or below such a zone goes before it. Names that are no domain names are left out.
func WithUnsigned(zones ...string) Option {
	return func(v *Validator) {
		for _, z := range zones {
			if name, err := canonical(z); err == nil {
				v.unsigned[name] = true
			}
		}
	}
}

// top is the closest zone at or above name of which the configuration says something: trusted if it has an anchor, else unsigned. Empty if there is none.
func (v *Validator) top(name string) (zone string, trusted bool) {
	zone, _ = v.Anchors.closest(name)
	for n := name; n != zone; n = parent(n) {
		if v.unsigned[n] {
			return n, false
		}
		if n == "." {
			break
		}
	}
	return zone, zone != ""
}

// New makes a Validator that trusts anchors and asks ex.
func New(ex Exchanger, anchors *Anchors, opts ...Option) *Validator {
	v := &Validator{Exchanger: ex, Anchors: anchors, Now: time.Now}
	v.rules.early, v.rules.iterations, v.rules.modulus, v.rules.floor = 5*time.Minute, maxIterations, minModulus, builtFloor
	v.zones.zone = make(map[string]known)
	v.proofs.zones = make(map[string]*proven)
	v.unsigned = make(map[string]bool)
	v.lanes = newLanes(runtime.GOMAXPROCS(0))
	v.rollovers = make(map[string]*Rollover)
	for _, o := range opts {
		o(v)
	}
	return v
}

// Flush forgets the zones, proofs and ways that were learned, as after a change of network.
func (v *Validator) Flush() {
	v.zones.flush()
	v.proofs.flush()
	v.routes.flush()
}

// Lookup asks for name and rrtype, follows CNAME and DNAME, and validates everything from an anchor down. The error is
// ctx's where the Answer is Indeterminate because of it, or says that name is no domain name; what the DNS did wrong is in the Answer.
func (v *Validator) Lookup(ctx context.Context, name string, rrtype uint16) (Answer, error) {
	name, err := canonical(name)
	if err != nil {
		return Answer{}, err
	}
	now := v.Now()
	if now.Before(v.rules.floor) {
		return v.unclocked(ctx, name, rrtype, now)
	}
	return v.begin(name, rrtype, User(ctx), now, nil).finish(ctx)
}

// begin is the first half of a Lookup, which waits for nothing; the first question is asked by way of send, unless that is nil.
func (v *Validator) begin(name string, rrtype uint16, user string, now time.Time, send Sender) *Begun {
	b := &Begun{v: v, now: now, work: newBudget(), to: v.routes.of(question{name, rrtype}, now)}
	b.work.user = user
	b.l = v.lookup(name, rrtype, now, b.work, b.to.way)
	b.l.begin(send)
	return b
}

// finish is the second half.
func (b *Begun) finish(outer context.Context) (Answer, error) {
	ctx, cancel := Bounded(outer, lookupTimeout)
	defer cancel()
	v, l := b.v, b.l
	l.run(ctx)
	ans := l.ans
	if b.to.way != 0 {
		ans.Detour = b.to.why
	}
	if r, ok := v.Exchanger.(Rerouter); ok && !v.rules.delegated && ans.Status < Insecure {
		l.leave()
		if v.unproven(ctx, ans, b.to.way, b.now, b.work) {
			ans = v.reroute(ctx, r, ans, b.to.way, b.now, b.work)
		}
	}
	if ans.Status == Indeterminate {
		return ans, outer.Err()
	}
	return v.sentinel(ans), nil
}

// unclocked is a Lookup while the clock is known to be wrong. The answer is what a validator at the floor makes of it, for those who need a name to set
// the clock; it claims nothing.
func (v *Validator) unclocked(ctx context.Context, name string, rrtype uint16, now time.Time) (Answer, error) {
	ans := v.try(ctx, name, rrtype, v.rules.floor, newBudget(), 0)
	timely := ans.EDE != dns.ExtendedErrorCodeSignatureExpired && ans.EDE != dns.ExtendedErrorCodeSignatureNotYetValid
	if ans.Status == Bogus && timely {
		return ans, nil
	}
	ans.Unclocked = true
	ans.Status, ans.EDE, ans.Until = Indeterminate, dns.ExtendedErrorCodeDNSSECIndeterminate, now
	ans.Why = fmt.Sprintf("the clock says %s, which is before %s: %s", now.UTC().Format(time.DateTime), v.rules.floor.UTC().Format(time.DateTime), ans.Why)
	return ans, ctx.Err()
}

// session is a lookup, or what is as good as one, with its work budget.
func (v *Validator) session(now time.Time, work *budget) *session {
	return &session{checker: checker{now: now, rules: &v.rules, work: work, lanes: v.lanes}, v: v, asked: make(map[question]*future)}
}

// try is one round of a lookup, by one way of a Rerouter.
func (v *Validator) try(ctx context.Context, name string, rrtype uint16, now time.Time, work *budget, way int) Answer {
	l := v.lookup(name, rrtype, now, work, way)
	l.begin(nil)
	l.run(ctx)
	return l.ans
}

// lookup is one that has not begun.
func (v *Validator) lookup(name string, rrtype uint16, now time.Time, work *budget, way int) *lookup {
	s := v.session(now, work)
	s.way = way
	s.keep = s.keepProof
	return &lookup{session: s, asked: make(map[string]bool), taken: make(map[question]bool), ans: Answer{Name: name, Type: rrtype, Owner: name, Chain: []string{name},
		Status: Secure, Rcode: dns.RcodeServerFailure, Until: now.Add(maxTTL), EDE: NoEDE}}
}

// prefetch asks for the DS and DNSKEY of the zones that name probably lies in, where nothing is known below the top-level domain: a first contact then takes
// one round trip. Where a zone nearby is known, the signatures in the answer tell what to ask, as they do where a top-level domain has hosts of its own.
func (s *session) prefetch(name string, rrtype uint16) {
	top, trusted := s.v.top(name)
	if !trusted {
		return
	}
	if _, ok := s.known(top); !ok {
		s.ask(question{top, dns.TypeDNSKEY})
	}
	labels := above(name, top)
	if n := len(labels); n > 0 && dns.CountLabel(name) > 2 {
		labels = labels[:n-1] // a host is seldom a zone
	}
	if len(labels) > maxPrefetch {
		return
	}
	for _, zone := range labels {
		if k, ok := s.known(zone); ok {
			if k.zone != nil && (k.zone.status != Secure || dns.CountLabel(zone) > 1 || k.zone.hosts.Load() && zone == parent(name)) {
				return
			}
		}
	}
	for _, zone := range labels {
		if _, ok := s.known(zone); !ok {
			s.ask(question{zone, dns.TypeDS})
			s.ask(question{zone, dns.TypeDNSKEY})
		}
	}
}
