package daemon

import (
	"context"
	"fmt"
	"slices"

	"tacit/config"
	"tacit/ipsec"
	"tacit/policy"
)

// The rules: a table, which lookups and loops read, and what of it packets obey, which the data plane has. They change together.

// obey puts in force what a file says that may change while we run. On an error nothing has changed.
func (d *Daemon) obey(f *config.Config) error {
	t := f.Table()
	if err := d.instruct(t); err != nil {
		return err
	}
	d.rules.Store(t)
	d.identify.Store(&f.Identify)
	return nil
}

// instruct gives the data plane the rules of a table, if there is one.
func (d *Daemon) instruct(t *policy.Table) error {
	if d.cfg.Observe || d.cfg.Dataplane == nil {
		return nil
	}
	rules := t.PacketRules()
	if d.lodging.Load() { // whoever was at such an address: nothing that was for him leaves in clear when his SA is gone
		for _, p := range d.host.environment().Pools {
			if slices.ContainsFunc(rules, func(r ipsec.Rule) bool { return r.Remote == p }) {
				continue
			}
			rules = append(rules, ipsec.Rule{Remote: p, Action: ipsec.Block, ProtectDNS: true})
		}
	}
	if err := d.cfg.Dataplane.SetRules(rules); err != nil {
		return fmt.Errorf("rules for packets: %w", err)
	}
	return nil
}

// resting are the rules that a stop leaves in force, for `linger`: private prefixes, unless `on-failure` opens them.
func (d *Daemon) resting() []ipsec.Rule {
	t := d.rules.Load()
	if d.cfg.Observe || t == nil || d.cfg.File.DNS.OnFailure == "open" {
		return nil
	}
	return t.RestingRules()
}

// moved is what a change of the host's addresses or gateways asks for: what is held is so at the new ones, and rules spare those.
func (d *Daemon) moved() {
	if d.shards != nil {
		for _, l := range d.shards.loops {
			l.report(l.readdress)
		}
	}
	d.upstream.Renew()
	_ = d.reinstruct()
}

// reinstruct gives the data plane the rules anew, after something else than the table has changed. An error is logged.
func (d *Daemon) reinstruct() error {
	d.changing.Lock()
	defer d.changing.Unlock()
	err := d.instruct(d.rules.Load())
	if err != nil {
		d.log.Error("the rules for packets are as they were before", "err", err)
	}
	return err
}

// acknowledged waits until the data plane has done what the loops have asked for so far.
func (d *Daemon) acknowledged(ctx context.Context) error {
	for _, l := range d.shards.loops {
		if err := l.acknowledged(ctx); err != nil {
			return err
		}
	}
	return nil
}
