package pad

import (
	"net/netip"
	"slices"
	"strings"
)

// Environment is what this host must never take for a peer (TRUST.md R6). The daemon fills it in and replaces it when the
// network changes.
type Environment struct {
	Own           []netip.Addr   // all of this host's own addresses
	NATs          []netip.Addr   // those of NATs that lead to it
	Gateways      []netip.Addr   // next hops of default routes
	Upstreams     []netip.Addr   // our DNS upstreams
	Networks      []netip.Prefix // the networks we are on: their broadcast addresses are nobody's
	Pools         []netip.Prefix // what this host assigns to clients behind a NAT: no name leads there
	InternalZones []string       // canonical, with the final dot: zones that may claim private addresses
}

// reserved are the addresses that are no single host of the Internet, and why.
var reserved = []struct {
	prefix netip.Prefix
	why    string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "an unspecified address"},
	{netip.MustParsePrefix("127.0.0.0/8"), "a loopback address"},
	{netip.MustParsePrefix("169.254.0.0/16"), "a link-local address"},
	{netip.MustParsePrefix("224.0.0.0/4"), "a multicast address"},
	{netip.MustParsePrefix("255.255.255.255/32"), "a broadcast address"},
	{netip.MustParsePrefix("240.0.0.0/4"), "a reserved address"},
	{netip.MustParsePrefix("::/128"), "an unspecified address"},
	{netip.MustParsePrefix("::1/128"), "a loopback address"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "an IPv4-mapped address"},
	{netip.MustParsePrefix("::/96"), "an IPv4-compatible address"},
	{netip.MustParsePrefix("fe80::/10"), "a link-local address"},
	{netip.MustParsePrefix("ff00::/8"), "a multicast address"},
}

// private are the addresses that mean another host in every network: RFC 1918, RFC 6598, RFC 4193, RFC 3879.
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("fc00::/7"),
	netip.MustParsePrefix("fec0::/10"),
}

// Claimable reports whether a name may claim an address at all (TRUST.md R6, A-08), and if not, why. An address that is not
// claimable gets no IKE and no policy; whether its name is answered is the caller's to decide.
func Claimable(addr netip.Addr, env Environment, name string) (ok bool, why string) {
	if !addr.IsValid() {
		return false, "not an address"
	}
	if addr.Zone() != "" && addr.IsLinkLocalUnicast() { // the administrator's: DNS carries no scope
		return true, ""
	}
	for _, r := range reserved {
		if r.prefix.Contains(addr) {
			return false, r.why
		}
	}
	addr = addr.WithZone("")
	switch {
	case slices.Contains(env.Own, addr), slices.Contains(env.NATs, addr):
		return false, "our own address"
	case slices.Contains(env.Gateways, addr):
		return false, "the default gateway"
	case slices.Contains(env.Upstreams, addr):
		return false, "our DNS upstream"
	}
	if slices.ContainsFunc(env.Pools, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return false, "an address for clients behind a NAT"
	}
	for _, n := range env.Networks {
		if isBroadcast(addr, n) {
			return false, "a broadcast address"
		}
	}
	if isPrivate(addr) && !below(name, env.InternalZones) {
		return false, "a private address, and " + name + " is in no internal zone"
	}
	return true, ""
}

func isPrivate(addr netip.Addr) bool {
	return slices.ContainsFunc(private, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// isBroadcast reports whether addr is the all-ones or all-zeros address of an IPv4 network (RFC 919; RFC 3021 frees /31).
func isBroadcast(addr netip.Addr, network netip.Prefix) bool {
	if !addr.Is4() || network.Bits() > 30 || !network.Contains(addr) {
		return false
	}
	a := addr.As4()
	v := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
	host := uint32(1)<<(32-network.Bits()) - 1
	return v&host == host || v&host == 0
}

// below reports whether the name is one of the zones or lies below one. The comparison is by labels and ignores case.
func below(name string, zones []string) bool {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	for _, z := range zones {
		z = strings.ToLower(strings.TrimSuffix(z, "."))
		if z == "" || name == z || strings.HasSuffix(name, "."+z) && !strings.HasSuffix(name, `\.`+z) {
			return true
		}
	}
	return false
}
