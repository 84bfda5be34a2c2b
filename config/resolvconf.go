package config

import (
	"bufio"
	"bytes"
	"net/netip"
	"slices"
	"strings"
)

// maxUpstreams bounds the servers taken from resolv.conf; resolv.conf(5) itself stops at three.
const maxUpstreams = 8

// UseNameservers takes the upstreams from the content of a resolv.conf(5), leaving out our own listeners. Without any there it
// leaves the configuration as it is.
func (c *Config) UseNameservers(conf []byte) {
	var found []netip.AddrPort
	for _, a := range nameservers(conf) {
		ap := netip.AddrPortFrom(a, 53)
		if !c.isListener(ap) && !slices.Contains(found, ap) && len(found) < maxUpstreams {
			found = append(found, ap)
		}
	}
	if len(found) > 0 {
		c.DNS.Upstream = found
	}
}

// isListener reports whether a query to that address would come back to us.
func (c *Config) isListener(ap netip.AddrPort) bool {
	return slices.ContainsFunc(c.DNS.Listen, func(l netip.AddrPort) bool {
		return l == ap || l.Addr().IsUnspecified() && l.Port() == ap.Port() && ap.Addr().IsLoopback()
	})
}

// nameservers returns the nameserver addresses of a resolv.conf(5), in order. What it does not understand it skips, as the C
// library does.
func nameservers(conf []byte) []netip.Addr {
	var addrs []netip.Addr
	for s := bufio.NewScanner(bytes.NewReader(conf)); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(fields[1])
		if err != nil || a.IsMulticast() {
			continue
		}
		if a.IsUnspecified() { // resolv.conf(5) means this host
			a = netip.MustParseAddr("127.0.0.1")
		}
		addrs = append(addrs, a)
	}
	return addrs
}
