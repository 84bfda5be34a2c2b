package config

import (
	"net/netip"
	"slices"

	"tacit/upstream"
)

// UseNameservers takes the servers that this host's programs ask, where the configuration names no upstream, and leaves out our
// own listeners. An unspecified address means this host (resolv.conf(5)).
func (c *Config) UseNameservers(servers []netip.Addr) {
	if len(c.DNS.Upstream) > 0 {
		return
	}
	for _, a := range servers {
		if a.IsUnspecified() {
			a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		ap := netip.AddrPortFrom(a, 53)
		s := upstream.Server{Addr: ap, Port: 53}
		if !a.IsMulticast() && !c.isListener(ap) && !c.hasUpstream(s) {
			c.DNS.Upstream = append(c.DNS.Upstream, s)
		}
	}
}

func (c *Config) hasUpstream(s upstream.Server) bool {
	return slices.ContainsFunc(c.DNS.Upstream, func(old upstream.Server) bool { return old.String() == s.String() })
}

// isListener reports whether a query to that address would come back to us.
func (c *Config) isListener(ap netip.AddrPort) bool {
	return slices.ContainsFunc(c.DNS.Listen, func(l netip.AddrPort) bool {
		return l == ap || l.Addr().IsUnspecified() && l.Port() == ap.Port() && ap.Addr().IsLoopback()
	})
}
