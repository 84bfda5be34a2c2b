package e2e

import (
	"fmt"
	"strings"
	"testing"

	"tacit/lab"
)

// onlyInUDP is onlyProtected, and all the ESP travels in UDP (RFC 3948).
func (w *world) onlyInUDP(a, b *lab.Host) {
	w.t.Helper()
	w.onlyProtected(a, b)
	if c := w.tap.BetweenHosts(a, b); c[lab.ClassESP].Packets > 0 {
		w.t.Errorf("tap between %s and %s: %v, want ESP in UDP alone", a.Name, b.Name, c)
	}
}

// TestXFRMInUDP: strongSwan asks for ESP in UDP. The kernels of both carry it in transport mode, both families, either initiating.
func TestXFRMInUDP(t *testing.T) {
	needESP(t, "charon-systemd", "swanctl")
	for _, initiator := range []string{"tacit", "strongSwan"} {
		t.Run(initiator+" initiates", func(t *testing.T) {
			w, swan := swanWorld(t, true)
			swan.contact(w, initiator)
			for i, addr := range both(w.bob) {
				datagrams(t, w.alice, w.bob, addr, 10, 1, 1472, 9000)
				transfer(t, w.alice, w.bob, addr, 300_000)
				datagrams(t, w.bob, w.alice, both(w.alice)[i], 10, 1, 9000)
			}
			w.onlyInUDP(w.alice, w.bob)
			if states := output(t, w.alice, "ip", "xfrm", "state"); strings.Count(states, "encap type espinudp sport 4500 dport 4500") != 4 {
				t.Errorf("alice's SAs:\n%s", states)
			}
		})
	}
}

// masquerade makes a host a router that puts its own address in the place of those behind it, 198.51.100.0/24 and 2001:db8:1::/64.
func masquerade(t *testing.T, h *lab.Host) {
	t.Helper()
	forward(t, h)
	for family, net := range map[string]string{"ip": "198.51.100.0/24", "ip6": "2001:db8:1::/64"} {
		output(t, h, "nft", fmt.Sprintf("table %s masq { chain post { type nat hook postrouting priority srcnat; %s saddr %s masquerade; }; }", family, family, net))
	}
}

// forward makes a host a router.
func forward(t *testing.T, h *lab.Host) {
	t.Helper()
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		if err := h.Sysctl(key, "1"); err != nil {
			t.Fatal(err)
		}
	}
}
