package plane

import (
	"errors"
	"maps"
	"slices"
	"time"

	"tacit/guard"
)

// renewedAtOnce bounds the flows that one transaction renews: what it takes of memory is garbage a moment later, and clear packets that come
// meanwhile wait for it.
const renewedAtOnce = 400

// renewal is a round in which every element gets its time anew.
type renewal[F Traffic] struct {
	begun   time.Time
	left    []F            // those that are yet to come
	changes []guard.Change // room for a transaction
}

// RenewDue is called at every turn: once in an [Policies.Interval] it begins a round, which takes as many turns as it needs, up to half an interval.
// Where nothing is left to renew, what guard has in the way of packets goes after a while.
func (p *Policies[F]) RenewDue(now time.Time) error {
	r := &p.renewal
	switch {
	case r.begun.IsZero():
		r.begun = now
	case len(r.left) == 0 && now.Sub(r.begun) >= p.Interval():
		p.beginRenewal(now)
	}
	turns := max(int(p.Interval()/2/tick), 1)
	return errors.Join(p.renew(now, max(renewedAtOnce, len(p.flows)/turns+1)), p.Guard.Rest(now))
}

// Renew gives every element its time anew, at once.
func (p *Policies[F]) Renew(now time.Time) error {
	p.beginRenewal(now)
	return p.renew(now, len(p.flows))
}

func (p *Policies[F]) beginRenewal(now time.Time) {
	p.renewal.begun, p.renewal.left = now, slices.AppendSeq(make([]F, 0, len(p.flows)), maps.Values(p.flows))
}

// renew renews up to n flows of the round, in a transaction for every few. What could not be renewed is in the next round: elements last for longer than that.
func (p *Policies[F]) renew(now time.Time, n int) error {
	r := &p.renewal
	var errs []error
	n = min(n, len(r.left))
	for some := range slices.Chunk(r.left[:n], renewedAtOnce) {
		errs = append(errs, p.renewSome(now, some))
	}
	clear(r.left[:n])
	if r.left = r.left[n:]; len(r.left) == 0 {
		r.left = nil
	}
	return errors.Join(errs...)
}

func (p *Policies[F]) renewSome(now time.Time, some []F) error {
	changes := p.renewal.changes[:0]
	for _, f := range some {
		b := f.base()
		if f, ok := p.flows[b.Key]; !ok || f.base() != b { // forgotten since the round began
			continue
		}
		armed, ends := f.Armed()
		v, timeout := p.want(b, armed, ends, now)
		if v == guard.Pass || v == guard.Clear && b.verdict == v { // what is let go has its whole time from the beginning
			continue
		}
		changes = append(changes, guard.Change{Key: b.Key, Verdict: v, Timeout: timeout})
	}
	p.renewal.changes = changes
	if err := p.Guard.Apply(changes); err != nil {
		return err
	}
	for _, c := range changes {
		p.flows[c.Key].base().verdict = c.Verdict
	}
	return nil
}
