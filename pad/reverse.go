package pad

import (
	"net/netip"
	"strings"
	"time"

	"tacit/ipseckey"
)

// Source says on whose word a claim stands. Of two that contradict each other the higher one's holds (TRUST.md R3): the address's own zone knows better
// who may speak for it than a name that points to it.
type Source uint8

// The sources, the least first.
const (
	Forward       Source = iota // a name in a signed zone, which points to the address
	Reverse                     // the signed reverse zone of the address
	Administrator               // a pin, or a peer of the configuration
)

func (s Source) String() string {
	if s > Administrator {
		return "unknown"
	}
	return [...]string{"a name", "the reverse zone", "the administrator"}[s]
}

// Outranks reports whether a claim, which the live key does not satisfy, goes before all that the live key does satisfy: then the incumbent
// loses the address, though it may still be there (R3).
func (a *Address) Outranks(now time.Time, c Claim) bool {
	if !a.live || c.Has(a.key.ID) {
		return false
	}
	for _, x := range a.claims {
		if now.Before(x.Until) && x.Has(a.key.ID) && x.Source >= c.Source {
			return false
		}
	}
	return c.Source > Forward
}

// MaxWays bounds the gateways of an address that are tried.
const MaxWays = 4

// Way is a gateway of an address, by the word of its reverse zone, and the keys that it may prove (RFC 4025, 2.5).
type Way struct {
	Gateway netip.Addr // zero: the address itself, or a name
	Name    string     // the gateway's, with the final dot, whose address is to be looked up; "": none
	Keys    []Key
}

// Ways are the ways to an address that its own reverse zone tells, in the order in which they are to be tried (TRUST.md R5: there, and only there, another
// gateway counts). why tells what was wrong with the records if there is none. A gateway that no address can be is none.
func Ways(records []ipseckey.Record, addr netip.Addr) (ways []Way, why string) {
	var rs reasons
	for _, r := range byPrecedence(records) {
		reason := unfit(r)
		w := Way{}
		switch r.GatewayType {
		case ipseckey.GatewayName:
			if w.Name = strings.ToLower(r.GatewayName); w.Name == "." {
				reason = "its gateway has no name"
			}
		case ipseckey.GatewayIPv4, ipseckey.GatewayIPv6:
			if g := r.GatewayAddr.Unmap(); g != addr.Unmap() {
				w.Gateway = g
			}
		}
		if reason != "" {
			rs.add(reason)
			continue
		}
		ways = addWay(ways, w, r)
	}
	if len(ways) > 0 {
		return ways, ""
	}
	return nil, rs.String()
}

// addWay adds a record's key to those of its gateway.
func addWay(ways []Way, w Way, r ipseckey.Record) []Way {
	for i := range ways {
		if ways[i].Gateway == w.Gateway && ways[i].Name == w.Name {
			ways[i].Keys = addKey(ways[i].Keys, r)
			return ways
		}
	}
	if len(ways) < MaxWays {
		w.Keys = addKey(nil, r)
		ways = append(ways, w)
	}
	return ways
}
