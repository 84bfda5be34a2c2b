package daemon

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// Our name is told from addresses that it publishes only: a peer believes it from no other (TRUST.md R7), and a temporary address of IPv6 that says whose
// it is would be temporary for nothing. What it publishes that is no address of this host may be a NAT's, from behind which it is told too. So this host finds out what DNS says of itself.

// published are the addresses that the name of this host has in DNS.
type published []netip.Addr

// tells reports whether the name may be told from an address of ours: not where others are published in its place. A name that publishes nothing is
// for peers that know it otherwise.
func (p published) tells(local netip.Addr) bool {
	return len(p) == 0 || slices.Contains(p, local)
}

// followName keeps what our name publishes, at the start, whenever our addresses change, and as its TTL says, until ctx ends.
func (d *Daemon) followName(ctx context.Context) {
	ticker := time.NewTicker(keepEvery)
	defer ticker.Stop()
	var due time.Time
	env := d.host.environment()
	for {
		if now, e := d.now(), d.host.environment(); !now.Before(due) || e != env {
			env, due = e, d.lookUpName(ctx, now)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// lookUpName asks once, and says when to ask again. What cannot be asked now is as it was.
func (d *Daemon) lookUpName(ctx context.Context, now time.Time) (again time.Time) {
	var all published
	again = now.Add(lookAnyway)
	for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA} {
		f := d.resolver.Find(ctx, dns.Fqdn(d.cfg.File.Name), typ)
		if f.AddrStatus < dnssec.Insecure {
			return now.Add(lookAgain)
		}
		for _, a := range f.Addrs {
			all = append(all, a.Unmap())
		}
		if len(f.Addrs) > 0 && f.Until.Before(again) {
			again = f.Until
		}
	}
	if old := d.published.Load(); old == nil || !slices.Equal(*old, all) {
		d.log.Info("our name publishes", "name", d.cfg.File.Name, "addresses", []netip.Addr(all))
	}
	d.published.Store(&all)
	return latest(again, now.Add(lookAgain))
}

// publishesNAT reports whether our name publishes an address of the family of one of ours that may be that of a NAT before us: this host has it not.
func (d *Daemon) publishesNAT(local netip.Addr) bool {
	p, own := d.published.Load(), d.host.environment().Own
	return p != nil && slices.ContainsFunc(*p, func(a netip.Addr) bool { return a.Is4() == local.Is4() && !slices.Contains(own, a) })
}

// publishes reports whether our name may be told from the address.
func (d *Daemon) publishes(local netip.Addr) bool {
	p := d.published.Load()
	return p == nil || p.tells(local)
}
