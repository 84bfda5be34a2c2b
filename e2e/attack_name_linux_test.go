package e2e

import (
	"strings"
	"testing"
)

// TestNameIsToldLast (TRUST.md A-52): between two tacits the client's name leaves in a second IKE_AUTH request, after the server has proved
// its key in the answer to the first. Who listens sees the two requests; the server's log has the name.
//
//tacit:attack A-52 the name leaves in the second request, after the proof of the first answer
func TestNameIsToldLast(t *testing.T) {
	needE2E(t, "nsd", "unbound", "dnssec-signzone", "ldns-signzone", "getent")
	w := newWorld(t)
	aliceKey, bobKey := newIdentity(t), newIdentity(t)
	dir, anchor := signZones(t, zoneFile{"example.", bindNSEC, append(hostRecords("bob.example.", w.bob, &bobKey),
		hostRecords("alice.example.", w.alice, &aliceKey)...)})
	startNSD(t, w.ns, dir)
	startUnbound(t, w.up, w.ns.Addr4().String())
	up := w.up.Addr4().String()
	bob := startTacit(t, w.bob, anchor, options{name: "bob.example", identity: bobKey.pem, upstream: up})
	startTacit(t, w.alice, anchor, options{name: "alice.example", identity: aliceKey.pem, upstream: up, top: "identify = \"all\""})
	mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 100_000)
	}
	w.onlyProtected(w.alice, w.bob)
	const ikeAuth = 35
	requests := map[uint64]uint32{} // the last of each IKE SA
	for _, p := range w.tap.Packets() {
		if h, ok := p.IKEHeader(); ok && h.Exchange == ikeAuth && !h.Response {
			requests[h.InitiatorSPI] = max(requests[h.InitiatorSPI], h.MessageID)
		}
	}
	for spi, last := range requests {
		if last != 2 {
			t.Errorf("SA %x: the last IKE_AUTH request has Message ID %d, want 2", spi, last)
		}
	}
	if n := strings.Count(bob.log(), "id=alice.example"); len(requests) != 2 || n < 2 {
		t.Errorf("%d IKE SAs, and bob heard alice's name %d times", len(requests), n)
	}
}
