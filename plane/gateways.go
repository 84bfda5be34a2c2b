package plane

import (
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// elsewhere are addresses that no host has and no network routes by itself: the way there is the default one (RFC 7600, RFC 5180).
var elsewhere = []netip.Addr{netip.MustParseAddr("192.0.0.8"), netip.MustParseAddr("2001:2::1")}

// Routes asks the kernel for routes, in the network namespace of the thread that opened it.
type Routes struct{ nl *netlink.Handle }

// OpenRoutes opens it.
func OpenRoutes() (*Routes, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	return &Routes{nl}, nil
}

// Gateways are the next hops of the default routes. There may be none.
func (r *Routes) Gateways() (all []netip.Addr) {
	for _, to := range elsewhere {
		routes, err := r.nl.RouteGet(to.AsSlice())
		if err != nil {
			continue // no route there, or no such family
		}
		for _, route := range routes {
			gw := route.Gw
			if gw == nil && route.Via != nil {
				if via, ok := route.Via.(*netlink.Via); ok {
					gw = via.Addr
				}
			}
			if a, ok := netip.AddrFromSlice(gw); ok && !slices.Contains(all, a.Unmap()) {
				all = append(all, a.Unmap())
			}
		}
	}
	return all
}

// Close ends it. It may be nil.
func (r *Routes) Close() {
	if r != nil {
		r.nl.Close()
	}
}
