package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"tacit/lab"
)

// TestNameOfPublishedAddresses (libreswan's newoe-28, two local addresses): Alice authenticates herself from the addresses that her name publishes. From others,
// as the temporary ones of IPv6, she is nobody, in SAs of their own, and nothing passes in clear.
func TestNameOfPublishedAddresses(t *testing.T) {
	w, aliceKey := mutualWorld(t)
	others := []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")}
	for i, bits := range []int{24, 64} {
		if err := w.alice.AddAddr(netip.PrefixFrom(others[i], bits)); err != nil {
			t.Fatal(err)
		}
	}
	w.bobTac = startTacit(t, w.bob, w.anchor, w.named("bob.example", w.bobKey))
	w.aliceTac = startTacit(t, w.alice, w.anchor, w.named("alice.example", aliceKey))
	eventually(t, 5*time.Second, "alice knows what her name publishes", func() bool { return strings.Contains(w.aliceTac.log(), "our name publishes") })
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	for i, from := range append(both(w.alice), others...) {
		to, first := both(w.bob)[i%2], i
		if p, err := ping(w.alice, from, to, 5, 50*time.Millisecond); err != nil || p.received != p.sent {
			t.Errorf("from %v: %v, %v", from, p, err)
		}
		w.sync()
		clear := w.tap.Select(func(p lab.Packet) bool {
			return p.Class == lab.ClassClear && (p.Src == from && p.Dst == to || p.Src == to && p.Dst == from)
		})
		if len(clear) > 0 {
			t.Errorf("%d packets between %v and %v in clear", len(clear), from, to)
		}
		want := map[bool]string{true: "authenticated alice.example", false: "anonymous "}[first < 2]
		eventually(t, 5*time.Second, from.String()+" is "+want, func() bool {
			for _, r := range w.bobTac.peers(w.alice) {
				if r.Address == from {
					return r.Assurance+" "+strings.Join(r.Names, " ") == want
				}
			}
			return false
		})
	}
	for line := range strings.Lines(w.bobTac.log()) {
		for _, o := range others {
			if strings.Contains(line, o.String()) && strings.Contains(line, "alice.example") {
				t.Errorf("bob has heard a name from %v: %s", o, line)
			}
		}
	}
}
