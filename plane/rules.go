package plane

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tacit/guard"
	"tacit/ipsec"
)

// Rules are those of prefixes that stand. The packet path may ask for them.
type Rules struct {
	spans   atomic.Pointer[[]span]
	unknown atomic.Bool // those of a dead process stand: guard knows which

	given    []ipsec.Rule
	gateways []netip.Addr
	looked   time.Time // for gateways
}

// gatewayInterval is how often we look whether the default gateway is another one.
const gatewayInterval = 5 * time.Second

// errRule is returned for rules that make no sense.
var errRule = errors.New("rule")

// never are the addresses that no rule concerns, whatever it says: this host, the links, and what is no unicast address. With them no range
// reaches the end of the address space.
var never = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/3"),
	netip.MustParsePrefix("::/127"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// span is addresses of one family for which one rule counts.
type span struct {
	guard.Range
	rule ipsec.Rule
}

// flatten makes disjoint spans of rules, in their order: of several rules for an address that with the longest prefix counts, but none on
// exempt addresses.
func flatten(rules []ipsec.Rule, exempt []netip.Prefix) []span {
	var all []ipsec.Rule
	inside := func(p netip.Prefix) bool {
		return slices.ContainsFunc(exempt, func(e netip.Prefix) bool { return e != p && e.Bits() <= p.Bits() && e.Contains(p.Addr()) })
	}
	for _, e := range exempt {
		if !inside(e) {
			all = append(all, ipsec.Rule{Remote: e})
		}
	}
	for _, r := range rules {
		if !inside(r.Remote) {
			all = append(all, r)
		}
	}
	slices.SortStableFunc(all, func(a, b ipsec.Rule) int {
		return cmp.Or(a.Remote.Addr().Compare(b.Remote.Addr()), a.Remote.Bits()-b.Remote.Bits())
	})
	// Prefixes are disjoint or nested: those that began and have not ended are a stack, of which the innermost counts.
	var out, open []span
	var at netip.Addr // the first address that no span covers yet; of the outermost's
	emit := func(last netip.Addr) {
		if at.IsValid() && at.Compare(last) <= 0 {
			out = append(out, span{guard.Range{First: at, Last: last}, open[len(open)-1].rule})
		}
		at = last.Next()
	}
	for _, r := range all {
		first, last := r.Remote.Addr(), lastOf(r.Remote)
		for len(open) > 0 && open[len(open)-1].Last.Compare(first) < 0 {
			emit(open[len(open)-1].Last)
			open = open[:len(open)-1]
		}
		if len(open) > 0 {
			if open[len(open)-1].First == first && open[len(open)-1].Last == last {
				continue // the same prefix again
			}
			if at != first {
				emit(first.Prev())
			}
		}
		open, at = append(open, span{guard.Range{First: first, Last: last}, r}), first
	}
	for ; len(open) > 0; open = open[:len(open)-1] {
		emit(open[len(open)-1].Last)
	}
	return out
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		if left := p.Bits() - 8*i; left <= 0 {
			b[i] = 0xff
		} else if left < 8 {
			b[i] |= 0xff >> left
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// guardRules lays spans out as guard wants them.
func guardRules(spans []span) (r guard.Rules) {
	for _, s := range spans {
		switch s.rule.Action {
		case ipsec.Hold:
			r.Hold = extend(r.Hold, s.Range)
		case ipsec.Trap:
			r.Trap = extend(r.Trap, s.Range)
		case ipsec.Block:
			r.Block = extend(r.Block, s.Range)
		case ipsec.Watch:
			r.Watch = extend(r.Watch, s.Range)
		}
		if s.rule.ProtectDNS {
			r.DNS = extend(r.DNS, s.Range)
		}
		if len(s.rule.ClearPorts) > 0 {
			ports := make([]guard.Port, len(s.rule.ClearPorts))
			for i, p := range s.rule.ClearPorts {
				ports[i] = guard.Port(p)
			}
			r.Ports = append(r.Ports, guard.Ports{Range: s.Range, Ports: ports})
		}
	}
	return r
}

// extend appends a range, or makes the last one longer if it follows on that.
func extend(list []guard.Range, r guard.Range) []guard.Range {
	if n := len(list); n > 0 && list[n-1].Last.Next() == r.First {
		list[n-1].Last = r.Last
		return list
	}
	return append(list, r)
}

func checkRule(r ipsec.Rule) error {
	p := r.Remote
	if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || r.Action > ipsec.Watch {
		return fmt.Errorf("%w for %v: %v", errRule, p, r.Action)
	}
	seen := make(map[ipsec.Port]bool)
	for _, port := range r.ClearPorts {
		if port.Proto != unix.IPPROTO_TCP && port.Proto != unix.IPPROTO_UDP || port.Number == 0 || seen[port] {
			return fmt.Errorf("%w for %v: port %d of protocol %d", errRule, p, port.Number, port.Proto)
		}
		seen[port] = true
	}
	return nil
}

// Action is what the rules say of an address.
func (r *Rules) Action(peer netip.Addr) ipsec.Action {
	if r.unknown.Load() {
		return ipsec.Trap // or Hold: to us it is the same
	}
	spans := r.spans.Load()
	if spans == nil {
		return ipsec.Bypass
	}
	i := sort.Search(len(*spans), func(i int) bool { return (*spans)[i].Last.Compare(peer) >= 0 })
	if i == len(*spans) || (*spans)[i].First.Compare(peer) > 0 {
		return ipsec.Bypass
	}
	return (*spans)[i].rule.Action
}

// Waits reports whether packets to an address wait because of a rule.
func (r *Rules) Waits(peer netip.Addr) bool {
	a := r.Action(peer)
	return a == ipsec.Hold || a == ipsec.Trap
}

// Watches reports whether packets to an address leave in clear, and copies of them are kept.
func (r *Rules) Watches(peer netip.Addr) bool { return r.Action(peer) == ipsec.Watch }

// Fate is that of packets to an address that only rules concern.
func (r *Rules) Fate(peer netip.Addr) Fate {
	switch r.Action(peer) {
	case ipsec.Hold, ipsec.Trap:
		return Wait
	case ipsec.Watch:
		return Copy
	case ipsec.Bypass:
		return Release
	}
	return Drop
}

// SetRules replaces the rules of prefixes; see [ipsec.Dataplane]. Packets that wait are judged anew.
func (p *Policies[F]) SetRules(rules []ipsec.Rule) error {
	for _, r := range rules {
		if err := checkRule(r); err != nil {
			return fmt.Errorf("set rules: %w", err)
		}
	}
	given := p.Rules.given
	p.Rules.given, p.Rules.looked = slices.Clone(rules), time.Time{}
	if err := p.putRules(p.Now()); err != nil {
		p.Rules.given = given
		return fmt.Errorf("set rules: %w", err)
	}
	return nil
}

// putRules puts the rules in force, with the gateways of now.
func (p *Policies[F]) putRules(now time.Time) error {
	r := &p.Rules
	if len(r.given) > 0 && p.Gateways != nil {
		r.gateways, r.looked = p.Gateways(), now
	}
	exempt := slices.Clone(never)
	for _, a := range r.gateways {
		exempt = append(exempt, netip.PrefixFrom(a, a.BitLen()))
	}
	var spans []span
	if len(r.given) > 0 {
		spans = flatten(r.given, exempt)
	}
	if err := p.Guard.SetRules(guardRules(spans), p.Lasting()); err != nil {
		return err
	}
	r.spans.Store(&spans)
	r.unknown.Store(false)
	var errs []error
	for _, f := range p.flows {
		b := f.base()
		if action := r.Action(b.Key.Peer); b.adopted && b.policy == ipsec.Bypass && (action == ipsec.Hold || action == ipsec.Block) {
			errs = append(errs, p.Clear(b.Selector())) // it was let go under other rules
			continue
		}
		if !p.stands(b) { // only what waits now is let go
			f.Settle(r.Fate(b.Key.Peer), time.Time{}, Drop)
		}
		f.Settle(p.FateOf(b))
		p.Forget(f)
	}
	return errors.Join(errs...)
}

// RenewRules gives the rules of ours their time anew, and follows the default gateway.
func (p *Policies[F]) RenewRules() error {
	if len(p.Rules.given) == 0 {
		return nil
	}
	return p.Guard.RenewRules(p.Lasting())
}

// FollowGateways puts the rules in force anew if the default gateway is another one than before.
func (p *Policies[F]) FollowGateways(now time.Time) error {
	r := &p.Rules
	if len(r.given) == 0 || p.Gateways == nil || now.Sub(r.looked) < gatewayInterval {
		return nil
	}
	r.looked = now
	if slices.Equal(p.Gateways(), r.gateways) {
		return nil
	}
	return p.putRules(now)
}
