package daemon

import (
	"net/netip"
	"slices"
	"time"

	"tacit/dnssec"
	"tacit/pad"
	"tacit/policy"
	"tacit/resolver"
)

// transaction is how long a lookup counts for itself whatever its TTL, which a cache upstream lets run down to 0: "the RR can only be
// used for the transaction in progress" (RFC 1035, 3.2.1). It is the longest hold.
const transaction = 10 * time.Second

// Decision is what becomes of one address of an answer, before the address itself is asked.
type Decision struct {
	policy.Decision
	Rule  policy.Rule
	Claim pad.Claim // for Protect: what the address must prove
	Local bool      // the address is this host's own: packets to it leave on no wire
}

// Decide is the table of TRUST.md 1 and the rules R5 and R6 for one address that was found. It has no effect.
func Decide(rules *policy.Table, env pad.Environment, f resolver.Found, addr netip.Addr) Decision {
	d := Decision{Rule: rules.ForChain(f.Asked, f.Owner, addr)}
	keys, unusable := pad.UsableKeys(f.Keys, addr)
	if pins, pinned := rules.Pins(f.Asked, f.Owner, addr); pinned && f.AddrStatus >= dnssec.Insecure {
		return d.pinned(env, f, addr, pad.Pinned(pins, f.Keys))
	}
	d.Decision = policy.Decide(d.Rule.Class, policy.Facts{Addr: f.AddrStatus, Key: f.KeyStatus, Usable: len(keys) > 0, Denied: f.Denied,
		Anonymous: d.Rule.Anonymous})
	switch {
	case d.Outcome == policy.Protect:
		d.claim(env, f, addr, keys)
	case d.Anonymous:
		d.beside(env, f, addr)
	case d.Outcome == policy.Withhold && f.KeyWhy != "":
		d.Why += ": " + f.KeyWhy
	case len(f.Keys) > 0 && len(keys) == 0 && d.Rule.Class < policy.ClearOrPrivate:
		d.Why += ": " + unusable
	}
	return d
}

// pinned decides about an address whose keys, or those of its name, the administrator has named: it proves one of them, wherever the address
// came from and whatever the name publishes (R3).
func (d Decision) pinned(env pad.Environment, f resolver.Found, addr netip.Addr, keys []pad.Key) Decision {
	f.AddrStatus, f.KeyStatus, f.Denied = dnssec.Secure, dnssec.Secure, false
	d.Decision = policy.Decide(d.Rule.Class, policy.Facts{Addr: f.AddrStatus, Key: f.KeyStatus, Usable: true})
	switch {
	case d.Outcome == policy.Protect && len(keys) == 0:
		d.Decision = policy.Decision{Outcome: policy.Withhold, EDE: policy.EDEOther, ReportedAs: "not protected",
			Why: "no key is pinned to both the name and its address"}
	case d.Outcome == policy.Protect:
		d.Why = "its key is pinned"
		d.claim(env, f, addr, keys)
		d.Claim.Source = pad.Administrator
	}
	return d
}

// beside is for an address that is answered while encryption with whoever is there is tried, if it may be at all.
func (d *Decision) beside(env pad.Environment, f resolver.Found, addr netip.Addr) {
	ok, _ := pad.Claimable(addr, env, f.Owner)
	if d.Anonymous = ok && !addr.IsLoopback(); d.Anonymous {
		d.Claim = pad.Claim{Name: f.Owner, Addr: addr}
		d.Why += "; an anonymous attempt goes beside it"
	}
}

// claim is for an address that the table would protect: if it may not be claimed at all (R6), its proven key still forbids
// clear packets, so that it is withheld.
func (d *Decision) claim(env pad.Environment, f resolver.Found, addr netip.Addr, keys []pad.Key) {
	if addr.IsLoopback() || slices.Contains(env.Own, addr) {
		d.Local = true
		d.Decision = policy.Decision{Outcome: policy.Answer, EDE: policy.EDENone, Why: "this host's own address", ReportedAs: "local"}
		return
	}
	if ok, why := pad.Claimable(addr, env, f.Owner); !ok {
		d.Decision = policy.Decision{Outcome: policy.Withhold, EDE: policy.EDEOther, ReportedAs: "not protected",
			Why: "a key is proven, but the address cannot be protected: " + why}
		return
	}
	d.Claim = pad.Claim{Name: f.Owner, Addr: addr, Keys: keys, Until: latest(f.Until, f.AskedAt.Add(transaction))}
}
