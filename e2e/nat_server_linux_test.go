package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"tacit/lab"
)

// Servers behind a NAT that leads to them.

// leads has a NAT send on to a host behind it whatever comes to its addresses.
func (w *natWorld) leads(nat, to *lab.Host) {
	w.t.Helper()
	for i, family := range []string{"ip", "ip6"} {
		output(w.t, nat, "nft", fmt.Sprintf("table %[1]s leads { chain pre { type nat hook prerouting priority dstnat; %[1]s daddr %[2]v dnat to %[3]v; }; }", family, both(nat)[i], both(to)[i]))
	}
}

// ledWorld has a NAT that leads to Carol, whose name has its addresses; her tacit runs, with more of a configuration.
func ledWorld(t *testing.T, top func(w *natWorld) string) *natWorld {
	t.Helper()
	var key identity
	w := newNATWorld(t, func(w *natWorld) []zoneFile {
		key = newIdentity(t)
		return []zoneFile{{"example.", bindNSEC, append(hostRecords("carol.example.", w.nat, &key), hostRecords("bob.example.", w.bob, &w.bobKey)...)},
			{"plain.", unsigned, hostRecords("carol.plain.", w.nat, nil)}}
	})
	w.leads(w.nat, w.carol)
	startTacit(t, w.carol, w.anchor, options{name: "carol.example", identity: key.pem, upstream: w.upstreamOfTheHost, dataplane: "tun", top: top(w)})
	return w
}

// knowsNAT is the `nat-addresses` of who is led to.
func (w *natWorld) knowsNAT() string {
	return fmt.Sprintf("identify = \"all\"\nnat-addresses = [%q, %q]", w.nat.Addr4(), w.nat.Addr6())
}

// TestServerBehindNATUntold (certoe-12): the name of a server has the address of a NAT that leads to it, and the server's key, but its configuration does not say so. What the server can
// be asked for is not what it has: the name is withheld from everybody, with the reason; by a name without a key it is reached in clear.
func TestServerBehindNATUntold(t *testing.T) {
	t.Parallel()
	w := ledWorld(t, func(*natWorld) string { return "" })
	w.aliceTac = w.client(w.alice, "")
	w.refused("carol.example", w.nat, w.alice)
	mustAnswer(t, w.alice, "carol.plain", both(w.nat)...)
	echo(t, w.carol, both(w.carol)...)
	for _, to := range both(w.nat) {
		c, err := w.alice.Dial(t.Context(), "udp", netip.AddrPortFrom(to, 7000).String())
		if err != nil {
			t.Fatal(err)
		}
		if !sendNumber(c, 1, 3*time.Second) {
			t.Errorf("%v: in clear nothing comes back", to)
		}
		c.Close()
	}
	wantNoElements(t, w.alice, w.carol)
}

// TestServerBehindNAT (certoe-12): the configuration of the server says that the NAT leads to it. Alice, and a host behind another NAT, reach it by its name; so does Bob, whom it has
// looked up itself, and who knows it by its name. On either side of the NAT nothing passes but ESP in UDP.
func TestServerBehindNAT(t *testing.T) {
	t.Parallel()
	w := newLedPeers(t, "")
	w.plane = "tun"
	w.client(w.twin, "")
	w.meetCarol(w.twin)
	for _, to := range both(w.nat) {
		refused(t, w.alice, to)
	}
	for _, to := range both(w.alice) {
		transfer(t, w.carol, w.alice, to, 100_000)
	}
	mustAnswer(t, w.carol, "bob.example", both(w.bob)...)
	for i, to := range both(w.bob) {
		transfer(t, w.carol, w.bob, to, 100_000)
		transfer(t, w.bob, w.carol, both(w.nat)[i], 100_000)
	}
	eventually(t, 5*time.Second, "bob knows carol", func() bool { return w.bobTac.knows(w.nat, "authenticated", "carol.example") })
	for _, h := range []*lab.Host{w.alice, w.bob} {
		w.onlyInUDP(h, w.nat)
		w.onlyInUDP(h, w.carol)
	}
	w.onlyInUDP(w.nat2, w.nat)       // Carol has twin's address, with which its NAT may speak otherwise
	for _, to := range both(w.nat) { // the tap does not know fragments that a NAT has put together
		datagrams(t, w.alice, w.carol, to, 3, 1472, 9000)
	}
}

// TestXFRMServerBehindNAT: the client has the kernel's ESP.
func TestXFRMServerBehindNAT(t *testing.T) {
	needESP(t, "nft", "nsd", "unbound", "dnssec-signzone", "ldns-signzone", "getent")
	w := newLedPeers(t, "xfrm")
	w.onlyInUDP(w.alice, w.nat)
}

// newLedPeers starts Carol, Bob, and Alice, on a data plane, who speaks with Carol.
func newLedPeers(t *testing.T, plane string) *natWorld {
	t.Helper()
	w := ledWorld(t, (*natWorld).knowsNAT)
	w.bobTac = startTacit(t, w.bob, w.anchor, w.named("bob.example", w.bobKey))
	w.plane = plane
	w.aliceTac = w.client(w.alice, "")
	w.meetCarol(w.alice)
	if !w.aliceTac.knows(w.nat, "authenticated", "carol.example") {
		t.Errorf("alice's status: %+v", w.aliceTac.peers(w.nat))
	}
	return w
}

// meetCarol has a host look Carol up and speak with her.
func (w *natWorld) meetCarol(h *lab.Host) {
	w.t.Helper()
	mustAnswer(w.t, h, "carol.example", both(w.nat)...)
	for _, to := range both(w.nat) {
		datagrams(w.t, h, w.carol, to, 3, 1, 1300)
		transfer(w.t, h, w.carol, to, 100_000)
	}
}
