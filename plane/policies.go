package plane

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"time"

	"tacit/guard"
	"tacit/ipsec"
	"tacit/wheel"
)

// Flow is all traffic between one of our own addresses and a peer's, as guard is asked to treat it. A data plane embeds it in its own.
type Flow struct {
	Key          guard.Key
	ClearDropped uint64 // packets that came in clear

	asked     bool // there is a policy; else rules decide
	adopted   bool // it is a dead process's
	policy    ipsec.Action
	until     time.Time // of the policy, or when the flow is due without one; zero: never. Policies.end sets it.
	place     wheel.Place
	verdict   guard.Verdict
	lastClear uint64 // the kernel's counter, as it was seen last
}

// Selector names the flow in events.
func (f *Flow) Selector() ipsec.Selector { return ipsec.Host(f.Key.Own, f.Key.Peer) }

// Place is for the wheel that says when the flow's policy ends.
func (f *Flow) Place() *wheel.Place { return &f.place }

func (f *Flow) base() *Flow { return f }

// Traffic is a data plane's flow: it embeds [Flow].
type Traffic interface {
	wheel.Member
	base() *Flow
	// Used reports whether any Pair carries it, armed or not.
	Used() bool
	// Armed reports whether armed Pairs carry it, and, unless that is zero, until when.
	Armed() (bool, time.Time)
	// Settle says what becomes of packets that find no SA, and of those that wait; see [Queue.Settle].
	Settle(f Fate, until time.Time, then Fate)
}

// Policies are the flows of a data plane, by their hosts, and what guard was asked for each. What stands in guard lasts for Linger
// at least after nobody renews it.
type Policies[F Traffic] struct {
	Guard  *guard.Guard
	Linger time.Duration
	Now    func() time.Time
	Made   func(guard.Key) F // makes a flow; if packets find it at once, with the fate that FateOf gives
	Gone   func(F)           // nothing asks for the flow any more; may be nil
	Rules  Rules
	// Gateways are the addresses of the default gateways; nil: no rule spares them.
	Gateways func() []netip.Addr

	renewal   renewal[F]
	flows     map[guard.Key]F
	ends      wheel.Wheel[F]       // those with a policy, and others that are due
	strangers map[guard.Key]uint64 // clear packets that a rule had dropped, as they were counted last
}

// maxStrangers bounds the addresses without a flow that one turn reports for their clear packets (TRUST.md I4).
const maxStrangers = 64

// Interval is how often elements are to be renewed: seldom, since 10,000 of them take a while.
func (p *Policies[F]) Interval() time.Duration { return p.Linger / 5 }

// Lasting is the timeout that elements get: linger, even if the last renewal was late by another interval.
func (p *Policies[F]) Lasting() time.Duration { return p.Linger + 2*p.Interval() }

// Flow finds or makes the flow of a key.
func (p *Policies[F]) Flow(k guard.Key) F {
	f, ok := p.flows[k]
	if !ok {
		if p.flows == nil {
			p.flows = make(map[guard.Key]F)
		}
		f = p.Made(k)
		p.flows[k] = f
		f.Settle(p.FateOf(f.base()))
	}
	return f
}

// Find finds the flow of a key.
func (p *Policies[F]) Find(k guard.Key) (f F, ok bool) {
	f, ok = p.flows[k]
	return f, ok
}

// end sets when the policy of a flow ends.
func (p *Policies[F]) end(f F, t time.Time) {
	if f.base().until = t; !t.IsZero() {
		p.dueAt(f, p.Now(), t)
	}
}

// dueAt has a flow looked at by Due.
func (p *Policies[F]) dueAt(f F, now, t time.Time) {
	p.ends.Tick = tick
	p.ends.Set(f, now, t)
}

// KeepUntil lets a flow without a policy be due at the given time. It returns when the flow is.
func (p *Policies[F]) KeepUntil(f F, t time.Time) time.Time {
	b := f.base()
	if b.until.IsZero() {
		p.end(f, t)
	}
	return b.until
}

// All are all flows.
func (p *Policies[F]) All() iter.Seq[F] { return maps.Values(p.flows) }

// Len is how many flows there are.
func (p *Policies[F]) Len() int { return len(p.flows) }

// Inherited reports whether anything stands that a dead process left: addresses, or rules that nobody has set anew.
func (p *Policies[F]) Inherited() bool { return p.Len() > 0 || p.Rules.unknown.Load() }

// Forget removes a flow that nothing asks for.
func (p *Policies[F]) Forget(f F) {
	if b := f.base(); f.Used() || !b.until.IsZero() || b.verdict != guard.Pass {
		return
	}
	delete(p.flows, f.base().Key)
	if p.Gone != nil {
		p.Gone(f)
	}
}

// want is the verdict that a flow's Pairs and policy ask for, and for how long. Pairs go before policies.
func (p *Policies[F]) want(f *Flow, armed bool, ends, now time.Time) (guard.Verdict, time.Duration) {
	left := min(f.until.Sub(now), p.Lasting())
	switch {
	case armed && ends.IsZero():
		return guard.Divert, p.Lasting()
	case armed && ends.After(now):
		return guard.Divert, min(ends.Sub(now), p.Lasting())
	case left <= 0 || !f.asked:
		return guard.Pass, 0
	case f.policy == ipsec.Bypass: // nothing is lost if it outlives us
		return guard.Clear, f.until.Sub(now)
	case f.policy == ipsec.Block:
		return guard.Block, left
	}
	return guard.Divert, left
}

// Enforce puts in force what a flow asks for that has armed Pairs, or none. On an error the old verdict stands.
func (p *Policies[F]) Enforce(f F, armed bool) error {
	b := f.base()
	v, timeout := p.want(b, armed, time.Time{}, p.Now())
	if v == guard.Pass && b.verdict == guard.Pass {
		return nil
	}
	if err := p.Guard.Apply([]guard.Change{{Key: b.Key, Verdict: v, Timeout: timeout}}); err != nil {
		return err
	}
	b.verdict = v
	return nil
}

// Set sets what becomes of clear traffic between two hosts; see [ipsec.Dataplane]. A policy on more than one local and one
// remote host is refused.
func (p *Policies[F]) Set(s ipsec.Selector, a ipsec.Action, until time.Time) error {
	key, err := Hosts(s)
	if a > ipsec.Block {
		err = errors.Join(err, fmt.Errorf("%v is of rules only", a))
	}
	if err != nil {
		return fmt.Errorf("set policy: %w", err)
	}
	if !until.After(p.Now()) {
		return p.Clear(s)
	}
	f := p.Flow(key)
	if err := p.change(f, a, until); err != nil {
		p.Forget(f)
		return fmt.Errorf("set policy %v: %w", s, err)
	}
	return nil
}

// Clear ends the policy between two hosts. It is no error if there is none.
func (p *Policies[F]) Clear(s ipsec.Selector) error {
	key, err := Hosts(s)
	if err != nil {
		return fmt.Errorf("clear policy: %w", err)
	}
	f, ok := p.flows[key]
	if !ok {
		return nil
	}
	if err := p.change(f, ipsec.Bypass, time.Time{}); err != nil {
		return fmt.Errorf("clear policy %v: %w", s, err)
	}
	p.Forget(f)
	return nil
}

// stands reports whether a flow has a policy that has not ended: one that has may not have been looked at yet.
func (p *Policies[F]) stands(b *Flow) bool { return b.asked && b.until.After(p.Now()) }

// FateOf is the fate of packets of a flow that find no SA: by its policy until that ends, to the moment, and then by the rules.
func (p *Policies[F]) FateOf(b *Flow) (f Fate, until time.Time, then Fate) {
	then = p.Rules.Fate(b.Key.Peer)
	if then == Release { // what nothing concerns does not come to us
		then = Drop
	}
	switch {
	case !p.stands(b):
		return then, time.Time{}, Drop
	case b.policy == ipsec.Hold:
		return Wait, b.until, then
	case b.policy == ipsec.Bypass:
		return Release, b.until, then
	}
	return Drop, b.until, then
}

// change replaces the policy of a flow; with a zero time it ends it. Packets may wait before they are diverted, and are diverted no more
// before they may no longer wait: so none is lost on the way in, and none passes in clear. Those that are let go leave before any later one.
func (p *Policies[F]) change(f F, a ipsec.Action, until time.Time) error {
	b := f.base()
	before := *b
	b.asked, b.adopted, b.policy = !until.IsZero(), false, a
	p.end(f, until)
	fate, ends, then := p.FateOf(b)
	if fate != Drop {
		f.Settle(fate, ends, then)
	}
	armed, _ := f.Armed()
	if err := p.Enforce(f, armed); err != nil {
		b.asked, b.adopted, b.policy = before.asked, before.adopted, before.policy
		p.end(f, before.until)
		f.Settle(p.FateOf(b))
		return err
	}
	if fate == Drop {
		f.Settle(Drop, ends, then)
	}
	return nil
}

// Adopt takes over what a dead process left: what it held or protected is held on, what it refused refused, and what it let go let go, for as
// long as it would have been. So do its rules, until others are set.
func (p *Policies[F]) Adopt(left []guard.Element) {
	now := p.Now()
	p.Rules.unknown.Store(p.Guard != nil && p.Guard.RulesLeft())
	for _, e := range left {
		f := p.Flow(e.Key)
		b := f.base()
		b.asked, b.adopted, b.verdict = true, true, e.Verdict
		p.end(f, now.Add(e.Left))
		b.policy = map[guard.Verdict]ipsec.Action{guard.Divert: ipsec.Hold, guard.Block: ipsec.Block, guard.Clear: ipsec.Bypass}[e.Verdict]
		f.Settle(p.FateOf(b))
	}
}

// Left is what a dead process left and adopted Pairs do not carry: Pairs with nothing but a Selector and their end.
func (p *Policies[F]) Left(left []guard.Element) (held []ipsec.Pair) {
	for _, e := range left {
		if f, ok := p.flows[e.Key]; ok && e.Verdict == guard.Divert {
			if armed, _ := f.Armed(); !armed {
				held = append(held, ipsec.Pair{Selector: f.base().Selector(), Until: f.base().until})
			}
		}
	}
	return held
}

// Due are the flows whose policy has come to its end, also those that were so before and whose policy still stands. The kernel's elements end by
// themselves at the same time.
func (p *Policies[F]) Due(now time.Time) (due []F) {
	p.ends.Tick = tick
	for _, f := range p.ends.Due(now) {
		b := f.base()
		if b.until.IsZero() {
			continue
		}
		p.dueAt(f, now, b.until)
		if !now.Before(b.until) {
			due = append(due, f)
		}
	}
	return due
}

// WatchClear counts the clear packets that were dropped, and returns between which hosts some were since it was called before. Of those that only a rule of
// prefixes concerns, which anybody can make up, it returns no more than maxStrangers.
func (p *Policies[F]) WatchClear() (fresh []ipsec.Selector, err error) {
	seen, err := p.Guard.Seen()
	if err != nil {
		return nil, err
	}
	strangers, told := p.strangers, 0
	p.strangers = make(map[guard.Key]uint64)
	for _, s := range seen {
		f, ok := p.flows[s.Key]
		if !ok {
			p.strangers[s.Key] = s.Packets
			if s.Packets != strangers[s.Key] && p.Rules.Action(s.Key.Peer) == ipsec.Hold && told < maxStrangers {
				told++
				fresh = append(fresh, ipsec.Host(s.Key.Own, s.Key.Peer))
			}
			continue
		}
		b := f.base()
		last := b.lastClear
		b.lastClear = s.Packets
		if s.Packets < last {
			last = 0 // the kernel's counter began anew
		}
		if s.Packets > last {
			b.ClearDropped += s.Packets - last
			fresh = append(fresh, b.Selector())
		}
	}
	return fresh, nil
}
