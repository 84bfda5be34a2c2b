package main

import (
	"net/netip"
	"testing"

	"tacit/config"
)

// Behind a NAT "auto" is not the kernel's ESP, with which all names that have a key would be withheld.
func TestNATBefore(t *testing.T) {
	nats := &config.Config{NATAddresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")}}
	inside := &config.Config{DNS: config.DNS{InternalZones: []string{"corp.example."}}}
	for _, x := range []struct {
		file *config.Config
		from string
		want bool
	}{
		{&config.Config{}, "192.168.1.2", true},
		{&config.Config{}, "10.9.8.7", true},
		{&config.Config{}, "172.31.0.1", true},
		{&config.Config{}, "100.127.0.1", true},
		{&config.Config{}, "100.128.0.1", false},
		{&config.Config{}, "172.32.0.1", false},
		{&config.Config{}, "192.0.2.1", false},
		{&config.Config{}, "", false},
		{inside, "10.9.8.7", false},
		{nats, "192.0.2.1", true},
	} {
		var from netip.Addr
		if x.from != "" {
			from = netip.MustParseAddr(x.from)
		}
		if why := natBefore(x.file, from); (why != "") != x.want {
			t.Errorf("%+v, from %q: %q, want a reason: %v", x.file.NATAddresses, x.from, why, x.want)
		}
	}
}
