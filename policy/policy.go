// Package policy holds the administrator's rules: for a name or an address, one of the classes, and the decision
// table of the resolver. It is pure.
package policy

import (
	"net/netip"

	"tacit/ipsec"
)

// Class is what traffic to a peer must be.
type Class uint8

// The classes, strictest first.
const (
	Block Class = iota
	Private
	PrivateOrClear
	ClearOrPrivate
	Clear
)

var classNames = [...]string{"block", "private", "private-or-clear", "clear-or-private", "clear"}

func (c Class) String() string {
	if int(c) >= len(classNames) {
		return "unknown"
	}
	return classNames[c]
}

// MarshalText is String.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// ClassOf returns the class with that name.
func ClassOf(name string) (Class, bool) {
	for i, n := range classNames {
		if n == name {
			return Class(i), true
		}
	}
	return 0, false
}

// Rule is one [[policy]] table.
type Rule struct {
	// Names are patterns, in lower case with the final dot: "host.example." is that name alone, "*.example." is every name
	// below the zone, ".example." is the zone and every name below it, "*." is every name.
	Names           []string
	Prefixes        []netip.Prefix
	Class           Class
	Anonymous       bool // a server that proves no key may satisfy it
	AcceptAnonymous bool // a client that proves no name may come in
	// Of prefixes only, since packets bear no names:
	Packets    bool         // packets without a lookup ask for a key in the reverse zone
	ClearPorts []ipsec.Port // stay in clear
	ProtectDNS bool         // ports 53 and 853 are protected too
	Line       int          // in the configuration; 0: the built-in default
}

// Default is the rule that stands where the configuration says nothing: encrypt to whoever publishes a key, let everybody in.
func Default() Rule {
	return Rule{
		Prefixes:        []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
		Class:           PrivateOrClear,
		AcceptAnonymous: true,
	}
}
