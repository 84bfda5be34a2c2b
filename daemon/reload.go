package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"tacit/config"
	"tacit/ipseckey"
	"tacit/pad"
	"tacit/policy"
)

// ReloadFile is Reload with what the file says now.
func (d *Daemon) ReloadFile(ctx context.Context) error {
	f, err := d.cfg.Load()
	if err != nil {
		return err
	}
	return d.Reload(ctx, f)
}

// Reload puts the rules of another configuration in force, all at once. SAs whose rule says the same as before are not touched. What only
// a restart can change must not differ: then nothing changes, and the error names the keys.
func (d *Daemon) Reload(ctx context.Context, f *config.Config) error {
	if keys := d.cfg.File.NeedRestart(f); len(keys) > 0 {
		return fmt.Errorf("only a restart changes %s; nothing was changed", strings.Join(keys, ", "))
	}
	d.changing.Lock()
	defer d.changing.Unlock()
	old := d.rules.Load()
	if err := d.obey(f); err != nil {
		return fmt.Errorf("%w; nothing was changed", err)
	}
	d.host.renew() // no grant outlives the rules that it was given under
	d.log.Info("reloaded", "rules", len(f.Policy))
	if d.shards == nil {
		return nil
	}
	told := context.WithoutCancel(ctx) // all loops hear of rules that are in force, whether somebody still waits for that or not
	for _, l := range d.shards.loops {
		if err := l.ask(told, func(now time.Time) { l.reconsider(now, old, d.rules.Load()) }); err != nil {
			return err
		}
	}
	if err := d.acknowledged(ctx); err != nil {
		return fmt.Errorf("the rules are in force, and not everything has ended yet that they do not allow: %w", err)
	}
	return nil
}

// reconsider ends what the new rules do not allow.
func (l *loop) reconsider(now time.Time, old, rules *policy.Table) {
	l.ruled = at(now)
	l.forgetDenials(old, rules)
	for _, p := range l.peers {
		allowed := func(a *association) bool {
			if a.key != nil && !a.pinned(p, rules) {
				return false
			}
			was, is := a.rule(p, old), a.rule(p, rules)
			if was.Class == is.Class && was.AcceptAnonymous == is.AcceptAnonymous && was.Anonymous == is.Anonymous {
				return true
			}
			return !closed(is.Class) && (a.key != nil || a.initiator && is.Anonymous || !a.initiator && is.AcceptAnonymous)
		}
		clear := closed(rules.ForAddr(p.place()).Class)
		if p.last.Name != "" {
			clear = closed(rules.For(p.last.Name, p.place()).Class)
		}
		l.step(now, p, evRules{allowed, clear})
		l.repin(now, p, rules)
	}
}

// pinned reports whether the association's key is one that the administrator has named for its name and address, if he has.
func (a *association) pinned(p *peer, rules *policy.Table) bool {
	name := cmp.Or(a.claim.Name, p.last.Name)
	pins, pinned := rules.Pins(name, name, p.place())
	return !pinned || slices.Contains(pins, ipseckey.Fingerprint(a.key))
}

// repin has an address that is held for a key which its pins do not allow wait for one of these.
func (l *loop) repin(now time.Time, p *peer, rules *policy.Table) {
	pins, pinned := rules.Pins(p.last.Name, p.last.Name, p.remote)
	k, _, ok := p.pad.Key()
	if !pinned || !ok || slices.Contains(pins, k.ID) || p.outer.IsValid() {
		return
	}
	c := *p.last
	if len(rules.PinsAt(p.remote)) > 0 && l.d.pins[calling{c.Name, p.remote}] == nil {
		c = atAddress(p.remote, pins, p.pad.HoldUntil())
	}
	c.Keys = pad.Pinned(pins, nil)
	l.step(now, p, evPinned{c})
}

// evPinned: what the address proved does not count any more; the claim does.
type evPinned struct{ claim pad.Claim }

func (p *peer) repinned(e evPinned) {
	until := p.pad.HoldUntil()
	p.pad, p.last = pad.NewAddress(p.linger), &e.claim
	p.pad.Require(until)
}

// rule is the rule that an association stands under: of the name that it proved, or else of the address.
func (a *association) rule(p *peer, rules *policy.Table) policy.Rule {
	switch {
	case a.claim.Name != "":
		return rules.For(a.claim.Name, p.place())
	case a.key != nil && p.last.Name != "":
		return rules.For(p.last.Name, p.place())
	}
	return rules.ForAddr(p.place())
}

// evRules: the rules are others. clear says that the address need not be protected any more, whatever it proved.
type evRules struct {
	allowed func(*association) bool
	clear   bool
}

// reconsider ends the associations that are not allowed, and the hold on an address that may be spoken to in clear.
func (p *peer) reconsider(now time.Time, e evRules) (do []action) {
	left := 0
	for _, a := range p.sas {
		if e.allowed(a) {
			left++
			continue
		}
		p.ending = "the new rules do not allow it"
		do = append(do, p.dismiss(a)...)
	}
	if !e.clear || left > 0 || p.attempt != nil {
		return do
	}
	p.pad, p.last, p.broken = pad.NewAddress(p.linger), noClaim, time.Time{}
	return append(do, p.rest(now, "clear by policy")...)
}
