package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tacit/lab"
)

// plutoNobody is libreswan's configuration of a host that is nobody to anybody, and of one that proves its key to nobody in particular.
const plutoNobody = `config setup

conn %%default
	ikev2=insist
	type=transport
	left=%[1]v
	leftupdown=%%disabled
	right=%[2]v
	rightid=%%null
	rightauth=null
	ike=aes_gcm128-sha2_256-dh31
	esp=aes_gcm128
	auto=ignore

conn nobody
	leftid=%%null
	leftauth=null

conn bob
	leftid=@bob.example
	leftauth=rsasig
	leftrsasigkey=0s%[3]s
`

// TestXFRMLibreswanNobody goes through libreswan's scenarios of opportunistic encryption (PEERS.md 2: newoe-09, -10, -27, crossing-streams, certoe-17) with
// libreswan itself as Bob, who is nobody: keying by the next packet, idle expiry, both ends at once, a crash, and nobody against somebody.
func TestXFRMLibreswanNobody(t *testing.T) {
	needLibreswan(t, "certutil", "nsd", "unbound", "dnssec-signzone", "ldns-signzone", "ip")
	w := newWorld(t)
	bobKey := newPlutoKey(t, w.bob)
	dir, anchor := signZones(t, zoneFile{"example.", bindNSEC, append(hostRecords("plain.example.", w.plain, nil), "bob.example. 60 IN A "+w.bob.Addr4().String(), "bob.example. 60 IN IPSECKEY 10 0 2 . "+bobKey)})
	startNSD(t, w.ns, dir)
	startUnbound(t, w.up, w.ns.Addr4().String())
	b := runPluto(t, w.bob, fmt.Sprintf(plutoNobody, w.bob.Addr4(), w.alice.Addr4(), bobKey), "nobody")
	alice := startTacit(t, w.alice, anchor, options{upstream: w.up.Addr4().String(), dns: "hold = \"8s\"", dataplane: "xfrm", top: "linger = \"10s\"",
		policy: fmt.Sprintf("[[policy]]\nmatch = [\"%v\"]\nclass = \"private\"\nanonymous = true\npackets = true\n", w.bob.Addr4())})
	run := &matrixRun{matrix: &matrix{world: w}, tacit: alice}
	pings := func(what string, n int) {
		t.Helper()
		began := time.Now()
		p, err := growingPing(w.alice, w.alice.Addr4(), w.bob.Addr4(), n, 100*time.Millisecond, flowStep)
		t.Logf("%s: %v, %v", what, p, err)
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		w.onlyProtected(w.alice, w.bob)
		var lost []lostPing
		for _, seq := range p.lost {
			lost = append(lost, lostPing{seq, p.at[seq]})
		}
		run.judge(t, 0, began, lost)
	}
	is := func(assurance string) func() bool {
		return func() bool {
			for _, r := range alice.peers(w.bob) {
				if r.Address == w.bob.Addr4() {
					return r.Assurance == assurance
				}
			}
			return assurance == "none"
		}
	}
	mustResolve(t, w.alice, "plain.example", w.plain.Addr4().String(), w.plain.Addr6().String()) // the first lookup of all takes its time here
	w.tap.Reset()
	pings("the first packet keys", 5)
	eventually(t, 30*time.Second, "the idle SA ends", is("none"))
	pings("the next packet keys again", 3)

	b.whack("--terminate", "--name", "nobody")
	eventually(t, 10*time.Second, "it is ended", is("none"))
	w.tap.Reset()
	output(t, w.bob, libreswanTool("addconn"), "--config", "/run/ipsec.conf", "--ctlsocket", "/run/pluto/pluto.ctl", "nobody") // which ends what SAs it has
	began := make(chan error, 1)
	go func() {
		_, err := b.host.Command(t.Context(), libreswanTool("whack"), "--rundir", "/run/pluto", "--initiate", "--name", "nobody").Output()
		began <- err
	}()
	pings("both ends begin", 20)
	t.Logf("pluto's own beginning: %v", <-began)
	pings("both ends have begun", 3)

	if err := b.cmd.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-b.cmd.Done()
	for _, what := range []string{"state", "policy"} { // as if the host had come back, too
		output(t, w.bob, "ip", "xfrm", what, "flush")
	}
	b.start("nobody", "bob")
	b.whack("--initiate", "--name", "nobody")
	w.tap.Reset()
	datagrams(t, w.bob, w.alice, w.alice.Addr4(), 5, 1) // the first ESP arms alice
	pings("after the crash", 5)

	b.whack("--delete", "--name", "nobody") // it would answer for the other, too
	eventually(t, 10*time.Second, "it is ended", is("none"))
	mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String())
	eventually(t, 5*time.Second, "somebody", is("authenticated"))
	_, err := b.host.Command(t.Context(), libreswanTool("whack"), "--rundir", "/run/pluto", "--initiate", "--name", "nobody").Output()
	pings("nobody came beside somebody", 5)
	if !is("authenticated")() || err == nil && !strings.Contains(alice.log(), "client refused") {
		t.Errorf("nobody (%v) has displaced somebody: %+v", err, alice.peers(w.bob))
	}
	if c := w.tap.BetweenHosts(w.alice, w.bob); c[lab.ClassClear].Packets > 0 {
		t.Errorf("tap: %v", c)
	}
}
