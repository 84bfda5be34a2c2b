package e2e

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tacit/lab"
)

// TestXFRMNeighboursForgotten empties the neighbour caches of both hosts again and again under traffic: they find each other again, since
// neighbour discovery is exempt, and no packet leaves in clear. None that got onto the cable is lost: only what waited for a neighbour that was
// being asked for, when that one was to be forgotten too, goes with it.
func TestXFRMNeighboursForgotten(t *testing.T) {
	needESP(t, "ip")
	w, _, _ := jobWorldWith(t, "bob.example", "", "xfrm", "xfrm", nil)
	mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
	for _, addr := range both(w.bob) {
		datagrams(t, w.alice, w.bob, addr, 1, 1)
	}
	w.sync()
	before := w.tap.BetweenHosts(w.alice, w.bob)[lab.ClassNeighbor].Packets
	esp := w.tap.BetweenHosts(w.alice, w.bob).ESP()
	const times, pings = 5, 500
	var lost atomic.Int64
	var wg sync.WaitGroup
	for i := range both(w.bob) {
		for _, way := range []struct{ from, to *lab.Host }{{w.alice, w.bob}, {w.bob, w.alice}} {
			wg.Go(func() {
				p, err := ping(way.from, both(way.from)[i], both(way.to)[i], pings, 10*time.Millisecond)
				lost.Add(int64(pings - p.received))
				if err != nil || p.received < pings-2*times {
					t.Errorf("%s to %v: %v, %v", way.from.Name, both(way.to)[i], p, err)
				}
			})
		}
	}
	for range times {
		time.Sleep(700 * time.Millisecond)
		for _, h := range []*lab.Host{w.alice, w.bob} {
			output(t, h, "ip", "neigh", "flush", "all")
			output(t, h, "ip", "-6", "neigh", "flush", "all")
		}
	}
	wg.Wait()
	w.onlyProtected(w.alice, w.bob)
	// A request that never left costs the tap two packets, and an answer one.
	missing := int64(4*2*pings - (w.tap.BetweenHosts(w.alice, w.bob).ESP() - esp))
	if n := lost.Load(); missing < n || missing > 2*n {
		t.Errorf("%d pings lost, and %d packets of ESP missing on the cable: one that was there got lost", n, missing)
	}
	if after := w.tap.BetweenHosts(w.alice, w.bob)[lab.ClassNeighbor].Packets; after-before < 2*times {
		t.Errorf("%d packets of neighbour discovery after %d flushes of either host", after-before, times)
	}
}

// TestXFRMForwards: Alice routes for a guest as for a container, first as it is, then masqueraded, to Bob, whom she protects and then holds.
// What is forwarded is the guest's and goes as it went before. Under her own address it is hers: to Bob it goes by her SA, and while
// he is held it is not answered.
func TestXFRMForwards(t *testing.T) {
	needESP(t, "nft")
	var guest *lab.Host
	w, alice, bob := jobWorldWith(t, "bob.example", "", "xfrm", "xfrm", func(w *world) { guest = newGuest(t, w) })
	mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
	for _, addr := range both(w.bob) {
		datagrams(t, w.alice, w.bob, addr, 1, 1)
		datagrams(t, guest, w.bob, addr, 5, 1, 1400)
		transfer(t, guest, w.bob, addr, 100_000)
	}
	if c := w.tap.BetweenHosts(guest, w.bob); c.Clear() == 0 || c.ESP() > 0 {
		t.Errorf("tap between guest and bob: %v", c)
	}
	w.onlyProtected(w.alice, w.bob)

	masquerade(t, w.alice)
	before := w.tap.BetweenHosts(w.alice, w.bob).ESP()
	for _, addr := range both(w.bob) {
		datagrams(t, guest, w.bob, addr, 5, 1, 1400)
		transfer(t, guest, w.bob, addr, 100_000)
	}
	w.onlyProtected(w.alice, w.bob)
	if n := w.tap.BetweenHosts(w.alice, w.bob).ESP() - before; n < 40 {
		t.Errorf("what is masqueraded: %d packets of ESP", n)
	}

	bob.stop()
	eventually(t, 10*time.Second, "bob is held", func() bool {
		for _, p := range alice.peers(w.bob) {
			if p.State != "withheld" {
				return false
			}
		}
		return true
	})
	for i, addr := range both(w.bob) {
		if p, err := ping(guest, both(guest)[i], addr, 3, 10*time.Millisecond); err != nil || p.received > 0 {
			t.Errorf("masqueraded, to %v, who is held: %v, %v", addr, p, err)
		}
	}
	output(t, w.alice, "nft", "delete", "table", "ip", "masq")
	output(t, w.alice, "nft", "delete", "table", "ip6", "masq")
	for _, addr := range both(w.bob) {
		datagrams(t, guest, w.bob, addr, 5, 1, 1400)
		transfer(t, guest, w.bob, addr, 100_000)
	}
}

// newGuest is a host behind Alice, who routes for it.
func newGuest(t *testing.T, w *world) *lab.Host {
	t.Helper()
	guest, err := w.lab.Host("guest", lab.Prefixes("198.51.100.7/24", "2001:db8:1::7/64")...)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range lab.Prefixes("198.51.100.1/24", "2001:db8:1::1/64") {
		if err := w.alice.AddAddr(p); err != nil {
			t.Fatal(err)
		}
	}
	forward(t, w.alice)
	for _, h := range []*lab.Host{guest, w.bob} { // all are on one cable, but the way is by Alice
		if err := h.Sysctl("net.ipv6.conf.eth0.accept_redirects", "0"); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range []string{"-4 192.0.2.0/24 198.51.100.1", "-6 2001:db8::/64 2001:db8:1::1"} {
		f := strings.Fields(line)
		output(t, guest, "ip", f[0], "route", "add", f[1], "via", f[2])
	}
	for _, line := range []string{"-4 198.51.100.0/24 192.0.2.1", "-6 2001:db8:1::/64 2001:db8::1"} {
		f := strings.Fields(line)
		output(t, w.bob, "ip", f[0], "route", "add", f[1], "via", f[2])
	}
	return guest
}

// TestXFRMRekeyUnderLoad loses none of 10,000 pings, both families, either way, while Child SAs live three seconds.
func TestXFRMRekeyUnderLoad(t *testing.T) {
	needESP(t)
	w, _, _ := jobWorldWith(t, "bob.example", `child-lifetime = "3s"`, "xfrm", "xfrm", nil)
	mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
	w.pingsAcrossRekeys(2500, 8*time.Millisecond, 4)
}

// TestXFRMSecondDaemon: strongSwan on Alice's host, on other ports, keys another host. Its SAs and policies stand and carry before, while
// and after tacit runs there.
func TestXFRMSecondDaemon(t *testing.T) {
	needESP(t, "charon-systemd", "swanctl")
	const port = 5500
	var foreign string
	w, alice, bob := jobWorldWith(t, "bob.example", "", "xfrm", "xfrm", func(w *world) {
		own, peer := newIdentity(t), newIdentity(t)
		startSwan(t, w.plain, swanConf{id: "plain.example", peerID: "alice.example", key: peer, peerKey: own, peer: w.alice, kernel: true, port: port})
		s := startSwan(t, w.alice, swanConf{id: "alice.example", peerID: "plain.example", key: own, peerKey: peer, peer: w.plain, kernel: true, port: port})
		s.initiate()
		foreign = withoutSequence(ipsecState(t, w.alice))
	})
	mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
	carry := func() {
		for i, addr := range both(w.plain) {
			datagrams(t, w.alice, w.plain, addr, 5, 1, 1400)
			datagrams(t, w.plain, w.alice, both(w.alice)[i], 5, 1, 1400)
		}
	}
	carry()
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 100_000)
	}
	w.onlyProtected(w.alice, w.bob)
	alice.stop()
	bob.stop()
	carry()
	if after := withoutSequence(ipsecState(t, w.alice)); after != foreign {
		t.Errorf("after tacit: got\n%s\nwant\n%s", after, foreign)
	}
	w.sync()
	for _, p := range w.tap.Packets() {
		if p.Class == lab.ClassClear && has(w.plain, p.Src) != has(w.plain, p.Dst) && p.SrcPort != port && p.DstPort != port {
			t.Fatalf("in clear: %v -> %v protocol %d ports %d %d", p.Src, p.Dst, p.Proto, p.SrcPort, p.DstPort)
		}
	}
}

// withoutSequence takes the sequence numbers out of what ip prints of SAs.
func withoutSequence(s string) string {
	var kept strings.Builder
	for line := range strings.Lines(s) {
		if !strings.HasPrefix(strings.TrimSpace(line), "anti-replay context") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}
