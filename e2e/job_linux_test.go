package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"tacit/lab"
)

// jobWorld has a zone of each signer with a Bob in it, NSD, unbound, and a tacit on both hosts; Bob's is called bobName.
func jobWorld(t *testing.T, bobName, top string) (w *world, alice, bob *tacit) {
	t.Helper()
	needE2E(t, "nsd", "unbound", "dnssec-signzone", "ldns-signzone", "getent")
	w = newWorld(t)
	key := newIdentity(t)
	dir, anchor := signZones(t,
		zoneFile{"example.", bindNSEC, append(hostRecords("bob.example.", w.bob, &key), hostRecords("keyless.example.", w.plain, nil)...)},
		zoneFile{"three.", bindNSEC3, append(hostRecords("bob.three.", w.bob, &key), hostRecords("keyless.three.", w.plain, nil)...)},
		zoneFile{"ldns.", ldnsSigned, append(hostRecords("bob.ldns.", w.bob, &key), hostRecords("keyless.ldns.", w.plain, nil)...)},
		zoneFile{"plain.", unsigned, hostRecords("host.plain.", w.plain, nil)})
	w.anchor = anchor
	startNSD(t, w.ns, dir)
	startUnbound(t, w.up, w.ns.Addr4().String())
	up := w.up.Addr4().String()
	bob = startTacit(t, w.bob, anchor, options{name: bobName, identity: key.pem, upstream: up, top: top})
	alice = startTacit(t, w.alice, anchor, options{upstream: up, top: top})
	return w, alice, bob
}

// both are the two families of a host.
func both(h *lab.Host) []netip.Addr { return []netip.Addr{h.Addr4(), h.Addr6()} }

// TestMainJob is the main job on real parts: lookups by getaddrinfo, all kinds of traffic, nothing in clear.
func TestMainJob(t *testing.T) {
	w, _, _ := jobWorld(t, "bob.example", "")
	mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
	for _, addr := range both(w.bob) {
		datagrams(t, w.alice, w.bob, addr, 20, 1, 1472, 9000)
		transfer(t, w.alice, w.bob, addr, 100_000_000)
	}
	for _, addr := range both(w.alice) { // Bob opens the connection
		datagrams(t, w.bob, w.alice, addr, 20, 1, 1472, 9000)
		transfer(t, w.bob, w.alice, addr, 100_000_000)
	}
	w.onlyProtected(w.alice, w.bob)
}

// TestMainJobOfEachSigner looks Bob up in the zone of each signer, each with fresh daemons.
func TestMainJobOfEachSigner(t *testing.T) {
	for _, zone := range []string{"example", "three", "ldns"} {
		t.Run(zone, func(t *testing.T) {
			w, _, _ := jobWorld(t, "bob."+zone, "")
			mustResolve(t, w.alice, "bob."+zone, w.bob.Addr4().String(), w.bob.Addr6().String())
			for _, addr := range both(w.bob) {
				transfer(t, w.alice, w.bob, addr, 100_000)
			}
			w.onlyProtected(w.alice, w.bob)
			mustResolve(t, w.alice, "keyless."+zone, w.plain.Addr4().String(), w.plain.Addr6().String())
			for _, addr := range both(w.plain) {
				transfer(t, w.alice, w.plain, addr, 100_000)
			}
			w.sync()
			if c := w.tap.BetweenHosts(w.alice, w.plain); c.Clear() == 0 || c.ESP() != 0 {
				t.Errorf("with the plain host: got %v, want clear packets only", c)
			}
			if addrs, err := getaddrinfo(t, w.alice, "ahosts", "missing."+zone); err == nil {
				t.Errorf("missing.%s: got %v", zone, addrs)
			}
		})
	}
}

// TestPingsAcrossRekeys loses none of 10,000 pings of each family, half of them from each side, while Child SAs live
// two seconds and IKE SAs eight.
func TestPingsAcrossRekeys(t *testing.T) {
	w, a, b := jobWorld(t, "bob.example", "child-lifetime = \"2s\"\nike-lifetime = \"8s\"")
	mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
	w.pingsAcrossRekeys(5000, 4*time.Millisecond, 6)
	for _, d := range []*tacit{a, b} {
		log := d.log()
		if n := strings.Count(log, "ike-rekeyed"); n < 4 { // both families, twice at least
			t.Errorf("%d IKE SAs rekeyed\n%s", n, log)
		}
		if n := strings.Count(log, "msg=ike-established"); n != 2 {
			t.Errorf("%d IKE SAs established, want one for each family\n%s", n, log)
		}
	}
}

// pingsAcrossRekeys sends each pings from either host, of either family, all at once, and wants them all back, and spis SPIs or more
// on the cable each way.
func (w *world) pingsAcrossRekeys(each int, interval time.Duration, spis int) {
	t := w.t
	t.Helper()
	for _, addr := range both(w.bob) { // Bob, the responder, enforces nothing before Alice's first ESP (TRUST.md, R10)
		datagrams(t, w.alice, w.bob, addr, 1, 1)
	}
	var wg sync.WaitGroup
	for i := range both(w.alice) {
		for _, way := range []struct{ from, to *lab.Host }{{w.alice, w.bob}, {w.bob, w.alice}} {
			wg.Go(func() {
				from, to := both(way.from)[i], both(way.to)[i]
				p, err := ping(way.from, from, to, each, interval)
				name := fmt.Sprintf("%v to %v", from, to)
				switch {
				case err != nil:
					t.Errorf("%s: %v", name, err)
				case p.received != each || p.repeated != 0:
					t.Errorf("%s: %v", name, p)
				default:
					t.Logf("%s: %v", name, p)
				}
			})
		}
	}
	wg.Wait()
	w.onlyProtected(w.alice, w.bob)
	for _, way := range []struct{ from, to *lab.Host }{{w.alice, w.bob}, {w.bob, w.alice}} {
		for i := range both(w.alice) {
			if n := len(w.spis(both(way.from)[i], both(way.to)[i])); n < spis {
				t.Errorf("%s to %s: %d SPIs on the cable, want %d", way.from.Name, way.to.Name, n, spis)
			}
		}
	}
}

// spis are the SPIs of the ESP packets one way.
func (w *world) spis(src, dst netip.Addr) map[uint32]int {
	m := map[uint32]int{}
	for _, p := range w.tap.Packets() {
		if p.Src == src && p.Dst == dst && (p.Class == lab.ClassESP || p.Class == lab.ClassESPUDP) && !p.Fragment && len(p.Payload) >= 4 {
			m[be32(p.Payload)]++
		}
	}
	return m
}

func be32(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}
