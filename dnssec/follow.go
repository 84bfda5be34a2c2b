package dnssec

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Rollover follows the trust anchors of one zone through their roll-overs (RFC 5011), for a Validator. It is safe for concurrent use.
//
// The mutex: lookups that fetch the zone's keys, and probes, run in their callers' goroutines; it is held for the judging of one set and the saving of
// the state, which is rare.
type Rollover struct {
	v    *Validator
	save func(text []byte) error

	mu    sync.Mutex
	point *TrustPoint
	err   error // of the last save
}

// Follow begins to follow the trust point p: from now on it is what the Validator trusts for that zone, in place of the Anchors' word. save
// keeps p's Text whenever it changes; where it fails, the state in memory goes on and Probe says so. Call it before the first Lookup.
func (v *Validator) Follow(p *TrustPoint, save func(text []byte) error) *Rollover {
	r := &Rollover{v: v, save: save, point: p}
	v.rollovers[p.Zone] = r
	if p.LastSuccess.After(v.rules.floor) {
		v.rules.floor = p.LastSuccess // signatures were good then: that time has passed
	}
	v.Anchors.set(p.Zone, p.trusted())
	return r
}

// TrustPoint is the trust point that these anchors are for zone, to be followed from now on. Nil if there is none.
func (a *Anchors) TrustPoint(zone string) *TrustPoint {
	name, found := a.closest(dns.CanonicalName(zone))
	if found == nil || name != dns.CanonicalName(zone) {
		return nil
	}
	p := &TrustPoint{Zone: name, DS: found.ds}
	for _, k := range found.keys {
		p.Keys = append(p.Keys, RollingKey{Key: k})
	}
	return p
}

// Next is when the zone wants to be probed; zero, with false, if it has revoked all its keys.
func (r *Rollover) Next() (time.Time, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.point.Next, !r.point.Revoked()
}

// Text is the state as a file.
func (r *Rollover) Text() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.point.Text()
}

// Probe asks for the zone's keys, whether it is time or not. The error says that no proven set came, or that the state could not be saved.
func (r *Rollover) Probe(ctx context.Context) error {
	s := r.v.session(r.v.Now(), newBudget())
	msg, err := s.wait(ctx, s.ask(question{r.zone(), dns.TypeDNSKEY}))
	r.observe(&s.checker, msg)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil && r.point.Failed > 0 {
		err = fmt.Errorf("%s DNSKEY: no key that is trusted has signed the set", r.point.Zone)
	}
	return errors.Join(err, r.err)
}

func (r *Rollover) zone() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.point.Zone
}

// observe has the trust point judge an answer, and the Validator trust what follows.
func (r *Rollover) observe(c *checker, msg *dns.Msg) {
	r.mu.Lock()
	defer r.mu.Unlock()
	planned := r.point.Next
	changed := r.point.observe(c, msg)
	if until := r.point.Next.Sub(c.now); until > 0 { // not all hosts at once
		r.point.Next = c.now.Add((until - rand.N(until/10)).Truncate(time.Second))
	}
	if planned.After(c.now) && planned.Before(r.point.Next) { // a lookup between two probes puts off none
		r.point.Next = planned
	}
	if !changed && r.err == nil && r.point.Failed > 0 {
		return // an outage is not worth a write for each probe
	}
	r.v.Anchors.set(r.point.Zone, r.point.trusted())
	if changed {
		r.v.Flush()
	}
	r.err = r.save(r.point.Text())
	if r.err != nil {
		r.err = fmt.Errorf("trust anchors of %s: %w", r.point.Zone, r.err)
	}
}

// Run probes when it is time, until ctx ends or the zone has revoked all its keys. report is told how each probe ended.
func (r *Rollover) Run(ctx context.Context, report func(err error)) {
	for {
		next, ok := r.Next()
		if !ok {
			return
		}
		wait := time.NewTimer(next.Sub(r.v.Now()))
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-wait.C:
			report(r.Probe(ctx))
		}
	}
}
