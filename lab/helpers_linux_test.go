package lab

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

var mustAddr = netip.MustParseAddr
var mustAddrPort = netip.MustParseAddrPort

func defaultRoute(h *Host) *netlink.Route {
	return &netlink.Route{LinkIndex: h.link.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}}
}
