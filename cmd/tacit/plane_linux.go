package main

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"tacit/config"
	"tacit/daemon"
	"tacit/guard"
	"tacit/tun"
	"tacit/xfrm"
)

// openPlane opens the data plane that the configuration asks for: the only place that knows which there are. "auto" is the kernel's
// ESP, and ours in user space where the kernel has none, or a NAT is before us: the kernel's does not translate.
func openPlane(cfg *daemon.Config, file *config.Config) error {
	cfg.DNSMark = int(guard.MarkOwn)
	cfg.DataplaneWhy = "the configuration says so"
	nat := ""
	if file.Dataplane == "auto" {
		nat = natBefore(file, speaksFrom())
	}
	switch {
	case file.Dataplane == "tun":
	case nat != "":
		cfg.DataplaneWhy = "auto: the kernel's ESP does not translate, and " + nat
	default:
		plane, err := xfrm.Open(xfrm.Config{Linger: file.Linger, SALife: saLife(file), Log: cfg.Log})
		if err == nil {
			cfg.Dataplane, cfg.DataplaneName = plane, "xfrm"
			if file.Dataplane == "auto" {
				cfg.DataplaneWhy = "auto: the kernel has ESP"
			}
			return nil
		}
		if file.Dataplane == "xfrm" || !errors.Is(err, xfrm.ErrUnavailable) {
			return err
		}
		cfg.DataplaneWhy = "auto: " + err.Error()
	}
	plane, err := tun.Open(tun.Config{Linger: file.Linger, Log: cfg.Log})
	if err != nil {
		return err
	}
	cfg.Dataplane, cfg.DataplaneName, cfg.Encapsulate, cfg.Inner = plane, "tun", true, true
	return nil
}

// natBefore says why a NAT is before this host, or likely to be, which speaks to the world from that address; "": none is.
func natBefore(file *config.Config, from netip.Addr) string {
	switch {
	case len(file.NATAddresses) > 0:
		return "nat-addresses has the address of a NAT"
	case len(file.DNS.InternalZones) > 0: // those with such addresses are reached as they are
		return ""
	case from.Is4() && (from.IsPrivate() || carrierNAT.Contains(from)):
		return "a NAT is likely to be before " + from.String()
	}
	return ""
}

// carrierNAT is what providers give to those who share an address (RFC 6598).
var carrierNAT = netip.MustParsePrefix("100.64.0.0/10")

// speaksFrom is the IPv4 address that this host has to the world; the zero one: there is no way there. No packet is sent.
func speaksFrom() netip.Addr {
	c, err := net.Dial("udp4", "192.0.2.1:9") // nobody's (RFC 5737), so it goes by the default route
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
}

// saLife is when the kernel ends an SA that nobody rekeyed: a responder's lasts half as long again.
func saLife(file *config.Config) time.Duration {
	return max(xfrm.DefaultSALife, 2*file.ChildLifetime)
}
