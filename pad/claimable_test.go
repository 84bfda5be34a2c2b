package pad

import (
	"net/netip"
	"strings"
	"testing"
)

func addrs(s ...string) (all []netip.Addr) {
	for _, a := range s {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

// TestClaimable is R6 and A-08.
//
//tacit:attack A-08 every kind of address that is nobody's to claim
func TestClaimable(t *testing.T) {
	env := Environment{
		Own:           addrs("198.51.100.7", "2001:db8::7"),
		NATs:          addrs("203.0.113.9"),
		Gateways:      addrs("198.51.100.1", "2001:db8::1"),
		Upstreams:     addrs("198.51.100.53"),
		Networks:      []netip.Prefix{netip.MustParsePrefix("198.51.100.7/24"), netip.MustParsePrefix("203.0.113.2/31")},
		Pools:         []netip.Prefix{netip.MustParsePrefix("198.19.0.0/16")},
		InternalZones: []string{"corp.example.", "lan."},
	}
	for _, tt := range []struct {
		addr, name, why string // why "": claimable
	}{
		{"192.0.2.1", "bob.example.", ""},
		{"2001:db8::2", "bob.example.", ""},
		{"0.0.0.0", "evil.example.", "unspecified"},
		{"0.1.2.3", "evil.example.", "unspecified"},
		{"127.0.0.1", "evil.example.", "loopback"},
		{"127.255.0.1", "evil.corp.example.", "loopback"},
		{"169.254.1.1", "evil.example.", "link-local"},
		{"224.0.0.251", "evil.example.", "multicast"},
		{"239.255.255.255", "evil.example.", "multicast"},
		{"240.0.0.1", "evil.example.", "reserved"},
		{"255.255.255.255", "evil.example.", "broadcast"},
		{"198.51.100.255", "evil.example.", "broadcast"},
		{"198.51.100.0", "evil.example.", "broadcast"},
		{"203.0.113.3", "bob.example.", ""}, // RFC 3021
		{"198.51.100.7", "evil.example.", "our own"},
		{"203.0.113.9", "evil.example.", "our own"},
		{"198.51.100.1", "evil.example.", "gateway"},
		{"198.51.100.53", "evil.example.", "upstream"},
		{"198.51.100.54", "bob.example.", ""},
		{"198.19.7.7", "evil.example.", "clients behind a NAT"},
		{"198.18.7.7", "bob.example.", ""},
		{"::", "evil.example.", "unspecified"},
		{"::1", "evil.example.", "loopback"},
		{"::ffff:192.0.2.1", "evil.example.", "IPv4-mapped"},
		{"::192.0.2.1", "evil.example.", "IPv4-compatible"},
		{"fe80::1", "evil.example.", "link-local"},
		{"fe80::1%eth0", "bob.example.", ""},
		{"ff02::1", "evil.example.", "multicast"},
		{"2001:db8::7", "evil.example.", "our own"},
		{"2001:db8::7%eth0", "evil.example.", "our own"},
		{"2001:db8::1", "evil.example.", "gateway"},
		{"10.0.0.1", "evil.example.", "private"},
		{"172.16.0.1", "evil.example.", "private"},
		{"172.32.0.1", "bob.example.", ""},
		{"192.168.1.1", "evil.example.", "private"},
		{"100.64.0.1", "evil.example.", "private"},
		{"fd00::1", "evil.example.", "private"},
		{"fec0::1", "evil.example.", "private"},
		{"10.0.0.1", "bob.corp.example.", ""},
		{"10.0.0.1", "corp.example.", ""},
		{"fd00::1", "Bob.LAN.", ""},
		{"10.0.0.1", "evilcorp.example.", "private"},
		{"10.0.0.1", `evil\.corp.example.`, "private"},
		{"10.0.0.1", "corp.example.evil.", "private"},
	} {
		ok, why := Claimable(netip.MustParseAddr(tt.addr), env, tt.name)
		if ok != (tt.why == "") || !strings.Contains(why, tt.why) {
			t.Errorf("%s claims %s: %v %q, want %q", tt.name, tt.addr, ok, why, tt.why)
		}
	}
	if ok, _ := Claimable(netip.Addr{}, env, "evil.example."); ok {
		t.Error("the zero address is claimable")
	}
	if ok, _ := Claimable(netip.MustParseAddr("10.0.0.1"), Environment{InternalZones: []string{"."}}, "bob."); !ok {
		t.Error("the root as internal zone does not hold every name")
	}
}
