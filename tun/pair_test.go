package tun

import (
	"net/netip"
	"testing"

	"tacit/ipsec"
)

func TestHosts(t *testing.T) {
	good := ipsec.Host(alice4, bob4)
	if k, err := hosts(good); err != nil || k.Own != alice4 || k.Peer != bob4 {
		t.Errorf("got %v, %v", k, err)
	}
	for name, s := range map[string]ipsec.Selector{
		"nothing":      {},
		"wide":         {Local: good.Local, Remote: netip.MustParsePrefix("192.0.2.0/24")},
		"two families": {Local: good.Local, Remote: netip.PrefixFrom(bob6, 128)},
		"mapped":       {Local: good.Local, Remote: netip.PrefixFrom(netip.MustParseAddr("::ffff:192.0.2.2"), 128)},
		"protocol":     {Local: good.Local, Remote: good.Remote, Proto: 6},
		"itself":       {Local: good.Local, Remote: good.Local},
	} {
		if _, err := hosts(s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Of the armed Pairs between the same hosts one whose peer proved a key is used, of several the one armed last: nobody displaces
// somebody (TRUST.md A-19).
func TestCurrent(t *testing.T) {
	anonymous := func() *pair { return &pair{out: &outbound{}} }
	somebody := func() *pair { return &pair{out: &outbound{}, spec: ipsec.Pair{Authenticated: true}} }
	a, b, c, d := anonymous(), somebody(), somebody(), anonymous()
	for i, tt := range []struct {
		armed []*pair
		want  *pair
	}{
		{[]*pair{a}, a}, {[]*pair{a, d}, d}, {[]*pair{a, b}, b}, {[]*pair{b, a}, b}, {[]*pair{a, b, d}, b}, {[]*pair{a, b, d, c}, c},
		{[]*pair{b, c, a, d}, c},
	} {
		f := flow{armed: tt.armed}
		if f.current() != tt.want.out {
			t.Errorf("row %d: not the right Pair", i)
		}
	}
	if (&flow{}).current() != nil {
		t.Error("an SA without a Pair")
	}
}

// When the inbound half of the SA in use is retired, the newest that is left is used; when another's is, nothing changes.
func TestReplace(t *testing.T) {
	older, newer := &outbound{order: 1}, &outbound{order: 2}
	pr := &pair{out: older, ins: map[ipsec.SPI]*inbound{2: {next: newer}}}
	pr.replace(older) // the old one is gone before anything came on the new one
	if pr.out != newer {
		t.Error("the SA that the peer has deleted is still used")
	}
	pr = &pair{out: older, ins: map[ipsec.SPI]*inbound{1: {next: older}}}
	pr.replace(newer) // the peer could not install the new one
	if pr.out != older {
		t.Error("the old SA is not used any more")
	}
	pr = &pair{out: newer, ins: map[ipsec.SPI]*inbound{1: {next: older}}}
	pr.replace(newer) // the same, and we used it already
	if pr.out != older {
		t.Error("an SA without an inbound half is used")
	}
}
