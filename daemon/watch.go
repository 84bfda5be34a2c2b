package daemon

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"tacit/dnssec"
	"tacit/pad"
	"tacit/policy"
	"tacit/resolver"
)

// watcher is the Daemon as the resolver sees it.
type watcher Daemon

// Interest says whether a key is asked for.
func (w *watcher) Interest(name string) resolver.Interest {
	switch w.rules.Load().ForName(name).Class {
	case policy.Block:
		return resolver.Refuse
	case policy.Clear, policy.ClearOrPrivate:
		return resolver.SkipKey
	}
	return resolver.AskKey
}

// timeServer says whether the host may set its clock by a name: one that is configured for it, and that no rule wants private.
func (d *Daemon) timeServer(name string) bool {
	return d.rules.Load().ForName(name).Class >= policy.PrivateOrClear &&
		slices.ContainsFunc(d.cfg.File.DNS.TimeServers, func(zone string) bool { return name == zone || strings.HasSuffix(name, "."+zone) })
}

// Known is what Watch would say where all addresses may leave: by grants, or because nothing is to be protected.
func (w *watcher) Known(f resolver.Found) (resolver.Verdict, bool) {
	d := (*Daemon)(w)
	if v, ok := d.granted(&f); ok {
		return v, true
	}
	rules, env := d.rules.Load(), d.host.environment()
	for _, addr := range f.Addrs {
		if Decide(rules, *env, f, addr).Outcome != policy.Answer {
			return resolver.Verdict{}, false
		}
	}
	return resolver.Verdict{}, true
}

// Watch decides over each address of an answer and returns when all that are to be protected are, or when ctx ends.
func (w *watcher) Watch(ctx context.Context, f resolver.Found) resolver.Verdict {
	d := (*Daemon)(w)
	if v, ok := d.granted(&f); ok {
		return v
	}
	env := d.host.environment() // before the address's own route is asked for, so that a later change shows
	outcomes := make([]outcome, len(f.Addrs))
	var wait sync.WaitGroup
	for i, addr := range f.Addrs {
		c, o, protect := d.decide(f, env, addr)
		if !protect || d.shards == nil {
			outcomes[i] = o
			continue
		}
		wait.Go(func() { outcomes[i] = d.protect(ctx, f, env, c) })
	}
	wait.Wait()
	return d.verdict(f, outcomes)
}

// decide judges one address and says so in the log; protect says that the outcome is up to the address.
func (d *Daemon) decide(f resolver.Found, env *pad.Environment, addr netip.Addr) (c pad.Claim, o outcome, protect bool) {
	dec := Decide(d.rules.Load(), *env, f, addr)
	log := d.log.With("name", f.Asked, "owner", f.Owner, "peer", addr)
	switch dec.Outcome {
	case policy.Answer:
		log.Debug("decision", "decision", dec.Outcome, "why", dec.Why)
		if dec.Anonymous && d.shards != nil {
			d.encrypt(dec.Claim.Addr)
		}
		return c, outcome{ok: true}, false
	case policy.Protect:
		log.Info("dns-validated", "status", f.KeyStatus, "keys", len(dec.Claim.Keys), "asked", stamp(f.AskedAt), "t", stamp(f.KeyAt))
		return dec.Claim, outcome{ok: true}, true
	}
	log.Debug("decision", "decision", dec.Outcome, "why", dec.Why)
	return c, outcome{ede: dec.EDE, why: dec.Why}, false
}

// protect is key for a lookup. A claim that is satisfied already gets a grant: lookups of the same answer come here no more.
func (d *Daemon) protect(ctx context.Context, f resolver.Found, env *pad.Environment, c pad.Claim) outcome {
	return d.key(ctx, c, func(now time.Time, l *loop, p *peer) {
		if p.standing != nil && p.pad.Satisfied(now, c) {
			l.grants.put(f, c.Addr, env, p.standing)
		}
	})
}

// key has the loop key an address for a claim, and waits for it; then is called in the loop behind the first step.
func (d *Daemon) key(ctx context.Context, c pad.Claim, then func(now time.Time, l *loop, p *peer)) outcome {
	local, err := source(c.Addr)
	if err != nil {
		return outcome{why: "no route: " + err.Error()}
	}
	w := waiter{claim: c, reply: make(chan outcome, 1)}
	var p *peer
	if err := d.shards.wanted(ctx, local, c.Addr, func(now time.Time, l *loop, of *peer) {
		if p = of; p == nil {
			w.reply <- outcome{why: "too many peers"}
			return
		}
		l.step(now, p, evLookup{w})
		then(now, l, p)
	}); err != nil {
		return outcome{why: "the daemon is busy"}
	}
	select {
	case o := <-w.reply:
		return o
	case <-ctx.Done():
	}
	// The client's time is up. The negotiation goes on, for the next lookup.
	l := d.shards.of(c.Addr)
	go l.post(context.WithoutCancel(ctx), func(now time.Time) {
		if p != nil {
			l.step(now, p, evGone{w})
		}
	})
	select {
	case o := <-w.reply:
		return o
	default:
	}
	if len(c.Keys) == 0 {
		return outcome{why: "no encryption within the hold: " + c.Addr.String() + " has not answered yet"}
	}
	return outcome{why: "no proof of the key of " + strings.TrimSuffix(c.Name, ".") + " within the hold: " + c.Addr.String() + " has not answered yet"}
}

// verdict turns the outcomes into what the resolver withholds.
func (d *Daemon) verdict(f resolver.Found, outcomes []outcome) (v resolver.Verdict) {
	now := d.now()
	protected := f.KeyStatus == dnssec.Secure && len(f.Keys) > 0
	for i, o := range outcomes {
		addr := f.Addrs[i]
		if !o.ok {
			v.Withhold = append(v.Withhold, resolver.Withheld{Addr: addr, EDE: o.ede, Why: o.why})
			d.withheld(now, f.Asked, addr, o)
			continue
		}
		if o.ttl > 0 && (v.TTL == 0 || o.ttl < v.TTL) {
			v.TTL = o.ttl
		}
		if protected {
			d.log.Info("answer-released", "name", f.Asked, "peer", addr, "waited", now.Sub(f.AskedAt), "t", stamp(now))
		}
	}
	return v
}

func stamp(t time.Time) string { return t.Format(time.RFC3339Nano) }
