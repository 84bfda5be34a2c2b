package daemon

import (
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"

	"tacit/config"
	"tacit/dnssec"
	"tacit/ipsec/ipsectest"
	"tacit/policy"
)

// A daemon that cannot start has changed nothing: the rules for packets are those that there were, and what it opened is closed.
func TestNewChangesNothingWhereItFails(t *testing.T) {
	taken, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	f := config.Default()
	f.DNS.Listen = []netip.AddrPort{taken.LocalAddr().(*net.UDPAddr).AddrPort()}
	f.DNS.Iterate = true
	f.Policy = []policy.Rule{{Prefixes: policy.Default().Prefixes, Class: policy.Private}}
	start := func() (*ipsectest.Fake, error) {
		dp := ipsectest.NewFake()
		d, err := New(Config{File: f, Anchors: dnssec.RootAnchors(), Dataplane: dp, Log: slog.New(slog.DiscardHandler)})
		if err == nil {
			d.resolver.Close()
			d.shards.close()
		}
		return dp, err
	}
	if dp, err := start(); err == nil || len(dp.Calls("SetRules")) > 0 {
		t.Errorf("its address is another's: %v, calls %v", err, dp.Calls())
	}
	f.DNS.Listen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	if dp, err := start(); err != nil || !slices.ContainsFunc(dp.Calls("SetRules"), func(c ipsectest.Call) bool { return len(c.Rules) > 0 }) {
		t.Errorf("it can start: %v, calls %v", err, dp.Calls())
	}
}
