package policy

import (
	"net/netip"
	"reflect"
	"testing"

	"tacit/ipsec"
)

func TestPacketAction(t *testing.T) {
	for _, tt := range []struct {
		class              Class
		packets, anonymous bool
		want               ipsec.Action
	}{
		{Block, false, false, ipsec.Block}, {Block, true, true, ipsec.Block},
		{Private, false, false, ipsec.Block}, {Private, true, false, ipsec.Hold}, {Private, false, true, ipsec.Hold},
		{PrivateOrClear, false, false, ipsec.Bypass}, {PrivateOrClear, false, true, ipsec.Bypass}, {PrivateOrClear, true, false, ipsec.Trap},
		{ClearOrPrivate, false, true, ipsec.Bypass}, {ClearOrPrivate, true, true, ipsec.Watch}, {ClearOrPrivate, true, false, ipsec.Watch},
		{Clear, true, true, ipsec.Bypass},
	} {
		if got := (Rule{Class: tt.class, Packets: tt.packets, Anonymous: tt.anonymous}).PacketAction(); got != tt.want {
			t.Errorf("%v, packets %v, anonymous %v: %v, want %v", tt.class, tt.packets, tt.anonymous, got, tt.want)
		}
	}
}

// The rules come in the order of their prefixes, the earlier of two for the same prefix counts, and names have no packets.
func TestPacketRules(t *testing.T) {
	ten, narrow, all4, all6 := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")
	ssh := []ipsec.Port{{Proto: 6, Number: 22}}
	got := NewTable([]Rule{
		{Names: []string{"*."}, Class: Block},
		{Prefixes: []netip.Prefix{narrow}, Class: Clear, ClearPorts: ssh},
		{Prefixes: []netip.Prefix{ten, narrow}, Class: Private, Packets: true, ProtectDNS: true},
	}).PacketRules()
	want := []ipsec.Rule{{Remote: all4}, {Remote: ten, Action: ipsec.Hold, ProtectDNS: true}, {Remote: narrow, ClearPorts: ssh}, {Remote: all6}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, rules := range [][]Rule{nil, {{Prefixes: []netip.Prefix{ten}, Class: Clear}}, {{Names: []string{"a."}, Class: Private}}} {
		if got := NewTable(rules).PacketRules(); got != nil {
			t.Errorf("%+v: got %+v, want none", rules, got)
		}
	}
}

// What is left where nobody asks for keys: what is private is refused, and a prefix inside it that is not is not.
func TestRestingRules(t *testing.T) {
	ten, inside := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/24")
	got := NewTable([]Rule{{Prefixes: []netip.Prefix{ten}, Class: Private, Packets: true}, {Prefixes: []netip.Prefix{inside}, Class: PrivateOrClear, Packets: true}}).RestingRules()
	want := []ipsec.Rule{{Remote: netip.MustParsePrefix("0.0.0.0/0")}, {Remote: ten, Action: ipsec.Block}, {Remote: inside}, {Remote: netip.MustParsePrefix("::/0")}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := NewTable([]Rule{{Prefixes: []netip.Prefix{ten}, Class: Block, ClearPorts: []ipsec.Port{{Proto: 6, Number: 22}}}}).RestingRules(); got != nil {
		t.Errorf("got %+v, want none", got)
	}
}

func TestParsePort(t *testing.T) {
	for _, s := range []string{"tcp/22", "udp/65535", "tcp/1"} {
		if p, err := ParsePort(s); err != nil || p.Number == 0 || p.Proto == 0 {
			t.Errorf("%q: %v, %v", s, p, err)
		}
		for i := range len(s) - 1 {
			if p, err := ParsePort(s[:i]); err == nil && i <= len("tcp/") {
				t.Errorf("%q: %v", s[:i], p)
			}
		}
	}
	for _, s := range []string{"", "22", "tcp", "tcp/", "tcp/0", "tcp/65536", "tcp/022", "tcp/+22", "sctp/22", "TCP/22", "tcp/22 ", "tcp/ssh", "tcp/22/22"} {
		if p, err := ParsePort(s); err == nil {
			t.Errorf("%q: %v", s, p)
		}
	}
}

func FuzzParsePort(f *testing.F) {
	f.Add("tcp/22")
	f.Add("udp/0053")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePort(s)
		if err != nil {
			return
		}
		if again := PortName(p); again != s {
			t.Errorf("%q is read as %q", s, again)
		}
	})
}
