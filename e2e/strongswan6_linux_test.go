package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// swan6 is where strongSwan 6 is unpacked (scripts/packages: unpack_strongswan6). It knows additional key exchanges (RFC 9370).
func swan6(t *testing.T) string {
	t.Helper()
	needSwan(t)
	root := os.Getenv("TACIT_STRONGSWAN6")
	if root == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs TACIT_STRONGSWAN6")
		}
		t.Skip("needs TACIT_STRONGSWAN6, which scripts/test unpacks")
	}
	return root
}

// swan6Load is what it loads. Debian's build has no ML-KEM; the plugin ml, of testdata, gives it OpenSSL's.
const swan6Load = "random nonce drbg pem pkcs1 pkcs8 pubkey openssl kernel-libipsec kernel-netlink socket-default vici"

// swan6World is Alice with tacit and Bob with strongSwan 6.
func swan6World(t *testing.T, top string, c swanConf) (w *world, alice *tacit, bob *swan) {
	t.Helper()
	c.root = swan6(t)
	w = newWorld(t)
	aliceKey, bobKey := newIdentity(t), newIdentity(t)
	dir, anchor := signZones(t, zoneFile{"example.", bindNSEC, append(hostRecords("bob.example.", w.bob, &bobKey),
		hostRecords("alice.example.", w.alice, &aliceKey)...)})
	startNSD(t, w.ns, dir)
	startUnbound(t, w.up, w.ns.Addr4().String())
	c.id, c.peerID, c.key, c.peerKey, c.peer = "bob.example", "alice.example", bobKey, aliceKey, w.alice
	bob = startSwan(t, w.bob, c)
	alice = startTacit(t, w.alice, anchor, options{name: "alice.example", identity: aliceKey.pem, upstream: w.up.Addr4().String(),
		top: "identify = \"all\"\n" + top})
	return w, alice, bob
}

// What charon proposes; the first is what it likes best.
const (
	plainKE  = "aes128gcm16-prfsha256-x25519"
	hybridKE = plainKE + "-ke1_mlkem768"
	plainESP = "aes128gcm16-x25519,aes128gcm16"
)

// TestStrongSwan6: tacit's hybrid does not disturb a strongSwan that knows additional key exchanges, but has no ML-KEM. Either end
// begins, either end rekeys, and data flows.
func TestStrongSwan6(t *testing.T) {
	for _, mode := range []string{"before", "after"} {
		t.Run(mode, func(t *testing.T) {
			w, alice, bob := swan6World(t, "child-lifetime = \"4s\"\nike-lifetime = \"5s\"\npost-quantum = \""+mode+"\"", swanConf{
				ike: plainKE + "-ke1_ecp384," + plainKE, esp: "aes128gcm16-x25519-ke1_ecp384," + plainESP})
			mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
			bob.across(w, [][]string{{"--rekey", "--child", "v4-host"}, {"--rekey", "--ike", "v6"}, {"--rekey", "--ike", "v4"}})
			if algs := bob.ctl("--list-algs"); strings.Contains(algs, "KEM") || !strings.Contains(algs, "CURVE_448") {
				t.Errorf("charon has other algorithms than MATRIX.md says:\n%s", algs)
			}
			// Its own turn comes when charon's rekeys have run out, which gave the IKE SAs half a lifetime more.
			eventually(t, 20*time.Second, "tacit rekeys an IKE SA", func() bool { return rekeyedBy(alice.log(), true) })
			bob.ctl("--terminate", "--ike", "v6")
			bob.ctl("--terminate", "--ike", "v4")
			bob.initiate()
			bob.across(w, [][]string{{"--rekey", "--ike", "v4"}, {"--rekey", "--child", "v6-host"}})
			w.onlyProtected(w.alice, w.bob)
			if log := alice.log(); strings.Contains(log, "mlkem") || !rekeyedBy(log, true) || !rekeyedBy(log, false) {
				t.Errorf("not rekeyed by both ends, or otherwise than they can:\n%s", log)
			}
		})
	}
}

// rekeyedBy reports whether there has been a rekey of an IKE SA that tacit, or the peer, began.
func rekeyedBy(log string, ours bool) bool {
	return slices.ContainsFunc(strings.Split(log, "\n"), func(line string) bool {
		return strings.Contains(line, "msg=ike-rekeyed") && strings.Contains(line, fmt.Sprintf("initiator=%v", ours))
	})
}

// TestStrongSwan6Hybrid: tacit's hybrid with a strongSwan that has ML-KEM: before IKE_AUTH and after it, begun by either end, in the
// rekeys of IKE and of the Child SA. Data flows across all of that.
func TestStrongSwan6Hybrid(t *testing.T) {
	const listed = "CURVE_25519/KE1_ML_KEM_768"
	for _, c := range []struct {
		name, mode, ike string
		first           bool // the first keys are of the hybrid
	}{
		{"before", "before", hybridKE + "," + plainKE, true},
		{"after, charon wants it before", "after", hybridKE + "," + plainKE, true},
		{"after", "after", plainKE + "," + hybridKE, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, alice, bob := swan6World(t, `post-quantum = "`+c.mode+`"`, swanConf{mlkem: true,
				ike: c.ike, esp: "aes128gcm16-x25519-ke1_mlkem768," + plainESP})
			hybrid := func(what string, n int) {
				t.Helper()
				eventually(t, 5*time.Second, what, func() bool {
					sas := bob.ctl("--list-sas")
					return strings.Count(sas, "ESTABLISHED") == 2 && strings.Count(sas, listed) >= n
				})
			}
			mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
			if c.first {
				hybrid("tacit's IKE SAs are of the hybrid", 2)
			} else if log := alice.log(); strings.Contains(log, "mlkem") {
				t.Errorf("alice began with the hybrid:\n%s", log)
			}
			bob.across(w, [][]string{{"--rekey", "--child", "v4-host"}, {"--rekey", "--child", "v6-host"}, {"--rekey", "--ike", "v4"}, {"--rekey", "--ike", "v6"},
				{"--rekey", "--child", "v4-host"}})
			hybrid("all rekeys are of the hybrid", 4) // both IKE SAs and both Child SAs

			bob.ctl("--terminate", "--ike", "v6")
			bob.ctl("--terminate", "--ike", "v4")
			bob.initiate()
			if c.first {
				hybrid("charon's own IKE SAs are of the hybrid", 2)
			}
			bob.across(w, nil)
			w.onlyProtected(w.alice, w.bob)
		})
	}
}

// across gives charon commands while there are pings, of which none is lost.
func (s *swan) across(w *world, commands [][]string) {
	s.t.Helper()
	const each, interval = 800, 5 * time.Millisecond // four seconds
	var wg sync.WaitGroup
	for i, addr := range both(w.bob) {
		wg.Go(func() {
			if p, err := ping(w.alice, both(w.alice)[i], addr, each, interval); err != nil || p.received != each {
				s.t.Errorf("ping %v: %v, %v", addr, p, err)
			}
		})
	}
	for _, c := range commands {
		time.Sleep(each * interval / time.Duration(len(commands)+2))
		s.ctl(c...)
	}
	wg.Wait()
	for _, addr := range both(w.bob) {
		transfer(s.t, w.alice, w.bob, addr, 1_000_000)
	}
}
