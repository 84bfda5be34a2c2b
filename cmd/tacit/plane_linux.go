package main

import (
	"errors"
	"time"

	"tacit/config"
	"tacit/daemon"
	"tacit/guard"
	"tacit/tun"
	"tacit/xfrm"
)

// openPlane opens the data plane that the configuration asks for: the only place that knows which there are. "auto" is the kernel's
// ESP, and ours in user space where the kernel has none, or a NAT leads to us, whose address the kernel's does not translate.
func openPlane(cfg *daemon.Config, file *config.Config) error {
	cfg.DNSMark = int(guard.MarkOwn)
	cfg.DataplaneWhy = "the configuration says so"
	switch {
	case file.Dataplane == "tun":
	case file.Dataplane == "auto" && len(file.NATAddresses) > 0:
		cfg.DataplaneWhy = "auto: the kernel's ESP does not translate nat-addresses"
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

// saLife is when the kernel ends an SA that nobody rekeyed: a responder's lasts half as long again.
func saLife(file *config.Config) time.Duration {
	return max(xfrm.DefaultSALife, 2*file.ChildLifetime)
}
