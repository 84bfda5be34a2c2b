package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"tacit/ipsec"
)

// PacketAction is what the rule asks of packets to and from an address of which nothing is known yet.
func (r Rule) PacketAction() ipsec.Action {
	switch {
	case r.Class == Block:
		return ipsec.Block
	case r.Class == Private && (r.Packets || r.Anonymous):
		return ipsec.Hold
	case r.Class == Private: // nobody would ever ask for a key
		return ipsec.Block
	case r.Class == PrivateOrClear && r.Packets:
		return ipsec.Trap
	case r.Class == ClearOrPrivate && r.Packets: // the other end may refuse what comes in clear
		return ipsec.Watch
	}
	return ipsec.Bypass
}

// PacketRules are the rules of prefixes as a data plane obeys them, in the order of the prefixes; none if every packet may pass in clear.
func (t *Table) PacketRules() []ipsec.Rule { return t.compile(Rule.PacketAction) }

// RestingRules are those of private prefixes alone, whose packets are refused: what is left of PacketRules where nobody asks for keys.
func (t *Table) RestingRules() []ipsec.Rule {
	all := t.compile(func(r Rule) ipsec.Action {
		if r.Class == Private {
			return ipsec.Block
		}
		return ipsec.Bypass
	})
	if !slices.ContainsFunc(all, func(r ipsec.Rule) bool { return r.Action == ipsec.Block }) {
		return nil
	}
	return all
}

func (t *Table) compile(action func(Rule) ipsec.Action) []ipsec.Rule {
	var all []ipsec.Rule
	needed := false
	for prefix, i := range t.prefixes {
		r := t.rules[i]
		rule := ipsec.Rule{Remote: prefix, Action: action(r), ClearPorts: r.ClearPorts, ProtectDNS: r.ProtectDNS}
		needed = needed || rule.Action != ipsec.Bypass || len(rule.ClearPorts) > 0 || rule.ProtectDNS
		all = append(all, rule)
	}
	if !needed {
		return nil
	}
	slices.SortFunc(all, func(a, b ipsec.Rule) int {
		return cmp.Or(a.Remote.Addr().Compare(b.Remote.Addr()), a.Remote.Bits()-b.Remote.Bits())
	})
	return all
}

// protocols are those with ports that may be left in clear, by their numbers (RFC 9293, RFC 768).
var protocols = map[string]uint8{"tcp": 6, "udp": 17}

// PortName is a port as ParsePort reads it.
func PortName(p ipsec.Port) string {
	for name, number := range protocols {
		if number == p.Proto {
			return fmt.Sprintf("%s/%d", name, p.Number)
		}
	}
	return fmt.Sprintf("%d/%d", p.Proto, p.Number)
}

// ParsePort reads a port that is left in clear: "tcp/22", "udp/123".
func ParsePort(s string) (p ipsec.Port, err error) {
	proto, number, ok := strings.Cut(s, "/")
	p.Proto = protocols[proto]
	n, err := strconv.ParseUint(number, 10, 16)
	if !ok || p.Proto == 0 || err != nil || n == 0 || strconv.FormatUint(n, 10) != number {
		return ipsec.Port{}, fmt.Errorf("%q: want tcp/PORT or udp/PORT, with a port from 1 to 65535", s)
	}
	p.Number = uint16(n)
	return p, nil
}
