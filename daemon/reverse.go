package daemon

import (
	"context"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
	"tacit/pad"
	"tacit/policy"
	"tacit/resolver"
)

// What the signed reverse zone of an address says of it (RFC 4025, 1.2): which key it must prove, or which other host must in its place. It is the address's
// own word, so that it may put policy on it (TRUST.md R5).

// reversed is what a reverse zone says.
type reversed struct {
	claims []pad.Claim // the ways to protect the address, in order; none: there is no key, or it cannot be known
	shut   bool        // without claims: a key may have been kept from us, or cannot be used, and nothing leaves in clear
	until  time.Time   // without claims: how long that counts
	why    string
}

// reversed looks the reverse name of an address up. It may take the whole hold, and as much again where gateways are told by their names.
func (d *Daemon) reversed(remote netip.Addr) reversed {
	env := d.host.environment()
	name, err := dns.ReverseAddr(remote.String())
	if err != nil {
		return reversed{shut: true, why: err.Error()}
	}
	ctx := context.Background()
	f := d.resolver.FindKey(ctx, name)
	r, ways := judgeReverse(f, *env, remote)
	ctx, cancel := context.WithTimeout(ctx, d.cfg.File.DNS.Hold) // for all of them: other addresses wait for this one's turn to end
	defer cancel()
	for _, w := range ways {
		for _, g := range d.gateways(ctx, w, remote) {
			if ok, why := pad.Claimable(g, *env, w.Name); g.IsValid() && !ok {
				r.why = join("its gateway "+g.String()+" is "+why, r.why)
				continue
			}
			r.claims = append(r.claims, pad.Claim{Name: f.Owner, Addr: remote, Keys: w.Keys, Source: pad.Reverse, Gateway: g,
				Until: latest(f.Until, f.AskedAt.Add(transaction))})
		}
	}
	r.claims = r.claims[:min(len(r.claims), pad.MaxWays)]
	if len(ways) > 0 && len(r.claims) == 0 {
		r.shut, r.why = true, join("a key is proven, and there is no way to it", r.why)
	}
	return r
}

// judgeReverse is the row of TRUST.md 1 for the answer at a reverse name, and the ways that a proven one tells. There is no name that was looked up, and so no
// address record: an unsigned reverse zone is as good as a denial.
func judgeReverse(f resolver.Found, env pad.Environment, remote netip.Addr) (r reversed, ways []pad.Way) {
	facts := policy.Facts{Addr: dnssec.Secure, Key: f.KeyStatus, Denied: f.Denied}
	if f.KeyStatus == dnssec.Insecure {
		facts.Key, facts.Denied = dnssec.Secure, true
	} else if f.KeyStatus == dnssec.Secure && !f.Denied {
		ways, r.why = pad.Ways(f.Keys, remote)
		facts.Usable = len(ways) > 0
	}
	dec := policy.Decide(policy.PrivateOrClear, facts)
	switch r.why = join(dec.Why, join(f.KeyWhy, r.why)); dec.Outcome {
	case policy.Protect:
		if ok, why := pad.Claimable(remote, env, f.Owner); !ok {
			return reversed{shut: true, why: "a key is proven, but the address cannot be protected: " + why}, nil
		}
	case policy.Answer:
		r.until = f.Until
	default:
		r.shut = true
	}
	return r, ways
}

// gateways are the addresses of a way: the zero one stands for the address itself. Where a name tells a gateway, its addresses must be as proven as its key.
func (d *Daemon) gateways(ctx context.Context, w pad.Way, remote netip.Addr) []netip.Addr {
	if w.Name == "" {
		return []netip.Addr{w.Gateway}
	}
	types := []uint16{dns.TypeA, dns.TypeAAAA}
	if remote.Is6() {
		types = []uint16{dns.TypeAAAA, dns.TypeA}
	}
	var all []netip.Addr
	for _, typ := range types {
		if f := d.resolver.Find(ctx, w.Name, typ); f.AddrStatus == dnssec.Secure {
			for _, g := range f.Addrs {
				if g = g.Unmap(); g == remote {
					g = netip.Addr{}
				}
				all = append(all, g)
			}
		}
	}
	return all
}
