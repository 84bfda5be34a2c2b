package plane

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"tacit/ipsec"
)

var (
	alice = netip.MustParseAddr("192.0.2.1")
	bob   = netip.MustParseAddr("192.0.2.2")
)

func TestHosts(t *testing.T) {
	good := ipsec.Host(alice, bob)
	if k, err := Hosts(good); err != nil || k.Own != alice || k.Peer != bob {
		t.Errorf("got %v, %v", k, err)
	}
	for name, s := range map[string]ipsec.Selector{
		"nothing":      {},
		"wide":         {Local: good.Local, Remote: netip.MustParsePrefix("192.0.2.0/24")},
		"two families": {Local: good.Local, Remote: netip.PrefixFrom(netip.MustParseAddr("2001:db8::2"), 128)},
		"mapped":       {Local: good.Local, Remote: netip.PrefixFrom(netip.MustParseAddr("::ffff:192.0.2.2"), 128)},
		"protocol":     {Local: good.Local, Remote: good.Remote, Proto: 6},
		"itself":       {Local: good.Local, Remote: good.Local},
	} {
		if _, err := Hosts(s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCheckSpec(t *testing.T) {
	good := ipsec.Pair{Selector: ipsec.Host(alice, bob), Local: netip.AddrPortFrom(alice, 0), Remote: netip.AddrPortFrom(bob, 0)}
	good.In = ipsec.SA{SPI: 256, Cipher: ipsec.AESGCM16, Key: make([]byte, 16), Salt: make([]byte, 4)}
	good.Out = good.In
	if _, err := CheckSpec(good); err != nil {
		t.Errorf("good: %v", err)
	}
	for name, tt := range map[string]struct {
		change func(*ipsec.Pair)
		want   string
	}{
		"no selector":          {func(p *ipsec.Pair) { p.Selector = ipsec.Selector{} }, ErrSelector.Error()},
		"reserved inbound":     {func(p *ipsec.Pair) { p.In.SPI = 255 }, "inbound SA: SPI is reserved"},
		"reserved outbound":    {func(p *ipsec.Pair) { p.Out.SPI = 0 }, "outbound SA: SPI is reserved"},
		"no remote":            {func(p *ipsec.Pair) { p.Remote = netip.AddrPort{} }, ErrOuter.Error()},
		"two families":         {func(p *ipsec.Pair) { p.Local = netip.MustParseAddrPort("[2001:db8::1]:0") }, ErrOuter.Error()},
		"inner, not a tunnel":  {func(p *ipsec.Pair) { p.Inner = netip.MustParseAddr("198.19.0.1") }, ErrInner.Error()},
		"inner of IPv6":        {func(p *ipsec.Pair) { p.Mode, p.Inner = ipsec.Tunnel, netip.MustParseAddr("2001:db8::7") }, ErrInner.Error()},
		"inner of the peer":    {func(p *ipsec.Pair) { p.Mode, p.Inner = ipsec.Tunnel, bob }, ErrInner.Error()},
		"UDP from other ports": {func(p *ipsec.Pair) { p.Remote = netip.AddrPortFrom(bob, 4500) }, ErrOuter.Error()},
	} {
		p := good
		tt.change(&p)
		if _, err := CheckSpec(p); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %v", name, err, tt.want)
		}
	}
	moved := good
	moved.Local, moved.Remote = netip.AddrPortFrom(alice, 4500), netip.AddrPortFrom(bob, 4500)
	if err := CheckRedirect(good, moved); !errors.Is(err, ErrOuter) {
		t.Errorf("encapsulation changed: got %v", err)
	}
	tunnel := good
	tunnel.Mode = ipsec.Tunnel
	inner := tunnel
	inner.Inner = netip.MustParseAddr("198.19.0.1")
	if _, err := CheckSpec(inner); err != nil {
		t.Errorf("an inner address: %v", err)
	}
	if CheckRekey(good, good) != nil || CheckRekey(good, tunnel) == nil || CheckRekey(tunnel, inner) == nil {
		t.Error("a rekey may not change the mode or the inner address, and nothing else")
	}
}

// Of the armed Pairs between the same hosts one whose peer proved a key is used, of several the one armed last: nobody displaces
// somebody (TRUST.md A-19).
func TestPrefer(t *testing.T) {
	// Somebody's names are in upper case.
	for armed, want := range map[string]string{"a": "a", "ad": "d", "aB": "B", "Ba": "B", "aBd": "B", "aBdC": "C", "BCad": "C"} {
		got, ok := Prefer([]rune(armed), func(r rune) bool { return r < 'a' })
		if !ok || string(got) != want {
			t.Errorf("%s: got %c, want %s", armed, got, want)
		}
	}
	if _, ok := Prefer(nil, func(rune) bool { return true }); ok {
		t.Error("one of none")
	}
}

func TestLimits(t *testing.T) {
	for _, tt := range []struct {
		sa              ipsec.SA
		packets, octets uint64
	}{
		{ipsec.SA{Cipher: ipsec.AESGCM16}, 3 << 30, 1 << 62},
		{ipsec.SA{Cipher: ipsec.AESGCM16, ESN: true}, 1 << 62, 1 << 62},
		{ipsec.SA{Cipher: ipsec.AESCBC, ESN: true}, 1 << 62, 1 << 52},
	} {
		if packets, octets := Limits(tt.sa); packets != tt.packets || octets != tt.octets {
			t.Errorf("%v, ESN %v: got %d packets, %d octets", tt.sa.Cipher, tt.sa.ESN, packets, octets)
		}
	}
}
