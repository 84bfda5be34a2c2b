package e2e

import (
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tacit/lab"
)

// needSwan skips a test where strongSwan or what serves the zones is missing.
func needSwan(t *testing.T) {
	t.Helper()
	needE2E(t, "charon-systemd", "swanctl", "nsd", "unbound", "dnssec-signzone", "ldns-signzone", "getent")
}

// TestStrongSwanPair lets two strongSwans talk, so that a failure with tacit is not the configuration's.
func TestStrongSwanPair(t *testing.T) {
	needSwan(t)
	w := newWorld(t)
	aliceKey, bobKey := newIdentity(t), newIdentity(t)
	startSwan(t, w.bob, swanConf{id: "bob.example", peerID: "alice.example", key: bobKey, peerKey: aliceKey, peer: w.alice})
	alice := startSwan(t, w.alice, swanConf{id: "alice.example", peerID: "bob.example", key: aliceKey, peerKey: bobKey, peer: w.bob})
	for i, family := range []string{"v4", "v6"} {
		out := alice.ctl("--initiate", "--child", family+"-host")
		if !strings.Contains(out, "initiate completed successfully") {
			t.Fatalf("%s: %s", family, out)
		}
		transfer(t, w.alice, w.bob, both(w.bob)[i], 1_000_000)
	}
	w.onlyProtected(w.alice, w.bob)
}

// TestStrongSwanResponder: Bob is strongSwan with a raw Ed25519 key whose public half is his IPSECKEY; tacit initiates
// and gives its name, and data flows across rekeys of the Child SA and of the IKE SA by either end.
func TestStrongSwanResponder(t *testing.T) {
	needSwan(t)
	w := newWorld(t)
	aliceKey, bobKey := newIdentity(t), newIdentity(t)
	dir, anchor := signZones(t, zoneFile{"example.", bindNSEC, append(hostRecords("bob.example.", w.bob, &bobKey),
		hostRecords("alice.example.", w.alice, &aliceKey)...)})
	startNSD(t, w.ns, dir)
	startUnbound(t, w.up, w.ns.Addr4().String())
	bob := startSwan(t, w.bob, swanConf{id: "bob.example", peerID: "alice.example", key: bobKey, peerKey: aliceKey, peer: w.alice})
	put(t, w.bob, "/etc/resolv.conf", "nameserver "+w.up.Addr4().String()+"\n")
	alice := startTacit(t, w.alice, anchor, options{name: "alice.example", identity: aliceKey.pem, upstream: w.up.Addr4().String(),
		top: "identify = \"all\"\nchild-lifetime = \"4s\"\nike-lifetime = \"7s\""})
	mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 5_000_000)
	}
	const each, interval = 2000, 5 * time.Millisecond // ten seconds, so at least two rekeys
	var wg sync.WaitGroup
	for i, addr := range both(w.bob) {
		wg.Go(func() {
			p, err := ping(w.alice, both(w.alice)[i], addr, each, interval)
			if err != nil || p.received != each {
				t.Errorf("ping %v: %v, %v", addr, p, err)
			}
			if n := len(w.spis(both(w.alice)[i], addr)); n < 3 {
				t.Errorf("%v: %d SPIs towards bob, want 3 or more", addr, n)
			}
		})
	}
	for range 3 {
		for _, what := range [][]string{{"--ike", "v4"}, {"--child", "v4-host"}, {"--child", "v6-host"}, {"--ike", "v6"}} {
			time.Sleep(700 * time.Millisecond)
			bob.ctl(append([]string{"--rekey"}, what...)...)
		}
	}
	wg.Wait()
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 1_000_000)
	}
	w.onlyProtected(w.alice, w.bob)
	if log := alice.log(); strings.Count(log, "initiator=false") < 4 || strings.Count(log, "msg=ike-established") != 2 {
		t.Errorf("the IKE SAs were not rekeyed:\n%s", log)
	}
	if sas := bob.ctl("--list-sas"); strings.Count(sas, "ESTABLISHED") != 2 || !strings.Contains(sas, "alice.example") {
		t.Errorf("bob's SAs:\n%s", sas)
	}
}

// endedByItself counts what Alice, a strongSwan, has answered in clear as she ended an SA: her policies go with it, and an echo request may have come by it
// just before. What Bob sends in clear is never counted.
func endedByItself(w *world) (n int) {
	w.sync()
	var told time.Time // her last request, as DELETE is
	for _, p := range w.tap.Packets() {
		if h, ok := p.IKEHeader(); ok && !h.Response && has(w.alice, p.Src) && lab.ExchangeName(h.Exchange) == "INFORMATIONAL" {
			told = p.Time
		}
		icmp := p.Proto == unix.IPPROTO_ICMP || p.Proto == unix.IPPROTO_ICMPV6
		if p.Class == lab.ClassClear && icmp && has(w.alice, p.Src) && has(w.bob, p.Dst) && p.Time.Sub(told).Abs() < 50*time.Millisecond {
			n++
		}
	}
	return n
}

// TestStrongSwanBreaksBeforeItMakes: Alice is a strongSwan that does not rekey: her IKE SA ends, and she begins another. To Bob she is nobody,
// so that nothing is held for a name; but what they talk about does not go on in clear in between (I1).
func TestStrongSwanBreaksBeforeItMakes(t *testing.T) {
	needSwan(t)
	w := newWorld(t)
	aliceKey, bobKey := newIdentity(t), newIdentity(t)
	dir, anchor := signZones(t, zoneFile{"example.", bindNSEC, hostRecords("bob.example.", w.bob, &bobKey)})
	startNSD(t, w.ns, dir)
	startUnbound(t, w.up, w.ns.Addr4().String())
	bob := startTacit(t, w.bob, anchor, options{name: "bob.example", identity: bobKey.pem, upstream: w.up.Addr4().String()})
	alice := startSwan(t, w.alice, swanConf{id: "alice.example", peerID: "bob.example", key: aliceKey, peerKey: bobKey, peer: w.bob})
	alice.initiate()
	const each, interval = 2000, 3 * time.Millisecond
	var wg sync.WaitGroup
	for i, addr := range both(w.alice) {
		transfer(t, w.alice, w.bob, both(w.bob)[i], 100_000)
		wg.Go(func() {
			if p, err := ping(w.bob, both(w.bob)[i], addr, each, interval); err != nil || p.received < each/2 {
				t.Errorf("ping %v: %v, %v", addr, p, err)
			}
		})
	}
	for range 4 {
		for _, family := range []string{"v4", "v6"} {
			time.Sleep(500 * time.Millisecond)
			alice.ctl("--terminate", "--ike", family)
			if out := alice.ctl("--initiate", "--child", family+"-host"); !strings.Contains(out, "initiate completed successfully") {
				t.Errorf("%s: %s", family, out)
			}
			// Only the peer's first valid ESP has Bob use the SA (R10).
			transfer(t, w.alice, w.bob, both(w.bob)[map[string]int{"v4": 0, "v6": 1}[family]], 10_000)
		}
	}
	wg.Wait()
	w.protectedBut(endedByItself(w), w.alice, w.bob)
	if log := bob.log(); strings.Count(log, "msg=ike-established") < 10 {
		t.Errorf("bob's SAs:\n%s", log)
	}
}
