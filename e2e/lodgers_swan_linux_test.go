package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"tacit/lab"
)

// TestLodgersOfStrongSwan: Bob is a strongSwan with pools. It assigns an address to a tacit behind a NAT, which translates to it; rekeys of both kinds, by
// either end, leave it as it is.
func TestLodgersOfStrongSwan(t *testing.T) {
	needSwan(t)
	var carolKey identity
	w := newNATWorld(t, func(w *natWorld) []zoneFile {
		carolKey = newIdentity(t)
		return []zoneFile{{"example.", bindNSEC, hostRecords("bob.example.", w.bob, &w.bobKey)}}
	})
	w.routed(w.bob)
	swan := startSwan(t, w.bob, swanConf{id: "bob.example", peerID: "carol.example", key: w.bobKey, peerKey: carolKey, peer: w.nat,
		conn: [2]string{"pools = four", "pools = six"}, pools: "pools {\n	four { addrs = 10.7.0.0/24 }\n	six { addrs = fd07::/120 }\n}\n"})
	o := w.named("carol.example", carolKey)
	o.dataplane = "tun"
	o.top += "\nchild-lifetime = \"3s\"\nike-lifetime = \"5s\""
	carol := startTacit(t, w.carol, w.anchor, o)
	for _, a := range both(w.bob) { // no address of hers is her name's: she tells it whom she has pinned
		if _, err := carol.run("pin", a.String(), w.bobKey.fingerprint(t)); err != nil {
			t.Fatal(err)
		}
	}
	mustAnswer(t, w.carol, "bob.example", both(w.bob)...)
	var wg sync.WaitGroup
	for i, to := range both(w.bob) {
		wg.Go(func() {
			const each = 1200 // six seconds, so at least one rekey of each kind
			p, err := ping(w.carol, both(w.carol)[i], to, each, 5*time.Millisecond)
			if err != nil || p.received != each {
				t.Errorf("ping %v: %v, %v", to, p, err)
			}
			transfer(t, w.carol, w.bob, to, 100_000)
		})
	}
	wg.Wait()
	w.onlyInUDP(w.nat, w.bob)
	sas := swan.ctl("--list-sas")
	for _, want := range []string{"remote 10.7.0.1/32", "remote fd07::1/128", "carol.example"} {
		if !strings.Contains(strings.ReplaceAll(sas, "  ", " "), want) {
			t.Errorf("bob's SAs have no %q:\n%s", want, sas)
		}
	}
	if log := carol.log(); strings.Count(log, "msg=ike-rekeyed") < 2 || strings.Count(log, "msg=ike-established") != 2 {
		t.Error("the IKE SAs were not rekeyed")
	}
}

// TestStrongSwanLodges: a strongSwan behind a NAT asks Bob for an address (`vips`), beside a tacit that has the same address behind another NAT.
func TestStrongSwanLodges(t *testing.T) {
	needSwan(t)
	w := newNATWorld(t, func(w *natWorld) []zoneFile {
		return []zoneFile{{"example.", bindNSEC, hostRecords("bob.example.", w.bob, &w.bobKey)}}
	})
	w.routed(w.bob)
	w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost})
	w.plane = "tun"
	w.client(w.twin, "")
	swan := startSwan(t, w.carol, swanConf{id: "carol.example", peerID: "bob.example", key: newIdentity(t), peerKey: w.bobKey, peer: w.bob,
		conn: [2]string{"vips = 0.0.0.0", "vips = ::"}, child: fmt.Sprintf("remote_ts = %v,%v", w.bob.Addr4(), w.bob.Addr6())})
	swan.initiate()
	mustAnswer(t, w.twin, "bob.example", both(w.bob)...)
	for range 2 {
		for _, to := range both(w.bob) {
			transfer(t, w.carol, w.bob, to, 100_000)
			transfer(t, w.twin, w.bob, to, 100_000)
		}
		for _, what := range [][]string{{"--child", "v4-host"}, {"--ike", "v4"}, {"--ike", "v6"}, {"--child", "v6-host"}} {
			swan.ctl(append([]string{"--rekey"}, what...)...)
		}
	}
	for _, n := range []*lab.Host{w.nat, w.nat2} {
		w.onlyInUDP(n, w.bob)
		for _, a := range both(n) {
			if of := w.lodgersOf()[a]; len(of) != 1 || of[0].Assurance != "anonymous" || len(of[0].Names) > 0 || of[0].BytesIn < 100_000 {
				t.Errorf("at %v: %+v", a, of)
			}
		}
	}
}
