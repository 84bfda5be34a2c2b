package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"

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

// TestXFRMBehindNAT: a client behind a NAT cannot be keyed in this version, since the selector that it asks for is not the address that is
// seen of it. Names with a key are withheld from it, with the reason, and nothing passes; all others it reaches as before.
func TestXFRMBehindNAT(t *testing.T) {
	needESP(t, "nft", "nsd", "unbound", "dnssec-signzone", "ldns-signzone", "getent")
	w := newWorld(t)
	client, err := w.lab.Host("client", lab.Prefixes("198.51.100.2/24")...)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.alice.AddAddr(lab.Prefixes("198.51.100.1/24")[0]); err != nil { // she is the router, and runs nothing
		t.Fatal(err)
	}
	masquerade(t, w.alice)
	output(t, client, "ip", "route", "add", "default", "via", "198.51.100.1")
	key := newIdentity(t)
	dir, anchor := signZones(t, zoneFile{"example.", bindNSEC, append(hostRecords("bob.example.", w.bob, &key),
		hostRecords("plain.example.", w.plain, nil)...)})
	startNSD(t, w.ns, dir)
	startUnbound(t, w.up, w.ns.Addr4().String())
	up := w.up.Addr4().String()
	bob := startTacit(t, w.bob, anchor, options{name: "bob.example", identity: key.pem, upstream: up, dataplane: "xfrm"})
	startTacit(t, client, anchor, options{upstream: up, dns: "hold = \"4s\"", dataplane: "xfrm"})

	a := ask(t, client, "bob.example", dns.TypeA)
	if _, why := a.ede(); a.Rcode != dns.RcodeServerFailure || !strings.Contains(why, "did not prove the key of bob.example") {
		t.Errorf("bob.example: got\n%v\nwant SERVFAIL, and why", a.Msg)
	} else {
		t.Log(why)
	}
	w.sync()
	for _, h := range []*lab.Host{client, w.alice} {
		if c := w.tap.BetweenHosts(h, w.bob); c.Clear()+c.ESP() > 0 || c[lab.ClassIKE].Packets == 0 {
			t.Errorf("tap between %s and bob: %v, want IKE alone", h.Name, c)
		}
	}
	if states := output(t, w.bob, "ip", "xfrm", "state"); states != "" {
		t.Errorf("bob's SAs:\n%s", states)
	}
	if peers := bob.peers(w.alice); len(peers) > 0 {
		t.Errorf("bob's peers: %+v", peers)
	}
	mustAnswer(t, client, "plain.example", w.plain.Addr4())
	datagrams(t, client, w.plain, w.plain.Addr4(), 5, 1, 1472)
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
