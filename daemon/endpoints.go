package daemon

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"tacit/config"
	"tacit/pad"
	"tacit/policy"
)

// Endpoints known by name ([[peer]]) that are kept up: keyed at the start without a lookup of anybody's, keyed again whenever their SA has gone, and
// followed where DNS says that they have moved to.

const (
	keepEvery  = 2 * time.Second  // an endpoint without an SA is keyed again
	lookAgain  = 10 * time.Second // at the earliest, whatever the TTL
	lookAnyway = 5 * time.Minute  // at the latest
)

// keep keeps an endpoint up until ctx ends.
func (d *Daemon) keep(ctx context.Context, p config.Peer) {
	name := strings.TrimSuffix(p.Name, ".")
	var claims []pad.Claim
	var due time.Time
	said := map[netip.Addr]string{}
	ticker := time.NewTicker(keepEvery)
	defer ticker.Stop()
	for {
		if now := d.now(); !now.Before(due) {
			found, why := []pad.Claim(nil), "an internal error"
			_ = d.shards.beside("endpoint", p.Address, func() { found, why = d.endpoint(ctx, now, p) })
			due = now.Add(lookAgain)
			if len(found) > 0 {
				claims = found
				due = latest(due, earliest(claims, now.Add(lookAnyway)))
			} else {
				d.log.Warn("endpoint without a place", "name", name, "why", why)
			}
		}
		for _, c := range claims {
			if p.Address.IsValid() {
				d.require(ctx, c)
			}
			o := d.keyed(ctx, c)
			if !o.ok && said[c.Addr] != o.why {
				d.log.Warn("endpoint not protected", "name", name, "peer", c.Addr, "why", o.why)
			}
			said[c.Addr] = o.why
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// require holds the address of an endpoint for as long as we keep it up: its address is the administrator's word, and not only a name's.
func (d *Daemon) require(ctx context.Context, c pad.Claim) {
	local, err := source(c.Addr)
	if err != nil {
		return
	}
	_ = d.shards.wanted(ctx, local, c.Addr, func(now time.Time, l *loop, p *peer) {
		if p != nil {
			l.step(now, p, evRequired{c})
		}
	})
}

// evRequired: the administrator says who is at the address.
type evRequired struct{ claim pad.Claim }

func (p *peer) required(now time.Time, c pad.Claim) {
	p.pad.Require(now.Add(p.linger))
	if p.last.Name == "" {
		p.claimed(c)
	}
}

// keyed is key, for as long as a lookup would wait.
func (d *Daemon) keyed(ctx context.Context, c pad.Claim) outcome {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.File.DNS.Hold)
	defer cancel()
	return d.key(ctx, c, func(time.Time, *loop, *peer) {})
}

// endpoint is where the endpoint is, and whom it must prove to be; why says what is wrong where there is nothing.
func (d *Daemon) endpoint(ctx context.Context, now time.Time, p config.Peer) (claims []pad.Claim, why string) {
	if p.Address.IsValid() {
		return []pad.Claim{{Name: p.Name, Addr: p.Address, Keys: pad.Pinned(p.Pin, nil), Until: now.Add(2 * lookAnyway), Source: pad.Administrator}}, ""
	}
	env := d.host.environment()
	for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA} {
		f := d.resolver.Find(ctx, p.Name, typ)
		if len(f.Addrs) == 0 && why == "" {
			why = join("no address: "+f.AddrStatus.String(), f.KeyWhy)
		}
		for _, addr := range f.Addrs {
			dec := Decide(d.rules.Load(), *env, f, addr)
			if dec.Outcome != policy.Protect {
				why = addr.String() + ": " + dec.Why
				continue
			}
			claims = append(claims, dec.Claim)
		}
	}
	return claims, why
}

// earliest is the first end of the claims, or most.
func earliest(claims []pad.Claim, most time.Time) time.Time {
	for _, c := range claims {
		if c.Until.Before(most) {
			most = c.Until
		}
	}
	return most
}
