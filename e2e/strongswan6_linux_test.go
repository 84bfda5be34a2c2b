package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tacit/lab"
)

// swan6 is where strongSwan 6 is unpacked (scripts/packages: unpack_strongswan6). It knows additional key exchanges (RFC 9370).
func swan6(t *testing.T) string {
	t.Helper()
	needSwan(t)
	return needTree(t, "TACIT_STRONGSWAN6")
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

// TestStrongSwan6Collision: tacit and a strongSwan that has ML-KEM rekey the same SA at once (RFC 7296, 2.8.1; RFC 9370, 2.2.4). One SA is left, and
// data flows across all of that.
func TestStrongSwan6Collision(t *testing.T) {
	rounds, long := 1, os.Getenv("TACIT_LONG") != ""
	if long {
		rounds = 3
	}
	t.Run("child", func(t *testing.T) {
		collide(t, rounds, "child-lifetime = \"9s\"\nike-lifetime = \"1h\"", 9*time.Second, "--child v4-host")
	})
	t.Run("IKE", func(t *testing.T) {
		if !long { // it has to outlive what it waits for
			t.Skip("with -long")
		}
		collide(t, 1, "ike-lifetime = \"30s\"\nchild-lifetime = \"1h\"", 30*time.Second, "--ike v4")
	})
}

func collide(t *testing.T, rounds int, top string, lifetime time.Duration, rekey string) {
	w, _, bob := swan6World(t, top, swanConf{mlkem: true, ike: hybridKE + "," + plainKE, esp: "aes128gcm16-x25519-ke1_mlkem768," + plainESP})
	mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
	settled := func() bool {
		sas := bob.ctl("--list-sas", "--ike", "v4")
		return strings.Count(sas, "ESTABLISHED") == 1 && strings.Count(sas, "INSTALLED") == 1 && !strings.Contains(sas, "REKEY") &&
			!strings.Contains(sas, "DELET") && strings.Contains(sas, "CURVE_25519/KE1_ML_KEM_768")
	}
	eventually(t, 10*time.Second, "the IKE SA is of the hybrid", settled)
	const interval = 10 * time.Millisecond
	each := rounds * int((lifetime+5*time.Second)/interval)
	var wg sync.WaitGroup
	wg.Go(func() {
		if p, err := ping(w.alice, w.alice.Addr4(), w.bob.Addr4(), each, interval); err != nil || p.received != each {
			t.Errorf("ping: %v, %v", p, err)
		}
	})
	defer wg.Wait()
	for range rounds {
		bob.cross(w.alice, rekey)
		eventually(t, 15*time.Second, "one SA of each kind is left", settled)
	}
	wg.Wait()
	w.onlyProtected(w.alice, w.bob)
	if n := strings.Count(bob.log(), "collision"); n < rounds {
		t.Errorf("charon saw %d collisions in %d", n, rounds)
	}
}

// cross has charon rekey an SA of IPv4 when tacit has begun to, and neither has heard of the other; then each hears the other's request, and only then
// an answer. ESP goes on.
func (s *swan) cross(tacit *lab.Host, rekey string) {
	s.t.Helper()
	const ike, flag = "udp dport 4500 @th,64,32 0", "@th,248,8 & 0x20" // what is not ESP (RFC 3948, 2.2); of a response (RFC 7296, 3.1)
	drop := func(what string) {
		for _, h := range []*lab.Host{s.host, tacit} {
			put(s.t, h, "/run/cut.nft", fmt.Sprintf(`table ip cut
delete table ip cut
table ip cut {
	counter requests {}
	chain in { type filter hook input priority 0; %s %s == 0 counter name requests; %s drop; }
}
`, ike, flag, what))
			output(s.t, h, "nft", "-f", "/run/cut.nft")
		}
	}
	wait := func(within time.Duration, what string, h *lab.Host) {
		s.t.Helper()
		eventually(s.t, within, what, func() bool {
			return !strings.Contains(output(s.t, h, "nft", "list", "counter", "ip", "cut", "requests"), "packets 0 ")
		})
	}
	drop(ike)
	wait(time.Minute, "tacit begins to rekey", s.host)
	s.ctl(append([]string{"--rekey"}, strings.Fields(rekey)...)...)
	wait(5*time.Second, "charon begins to rekey", tacit)
	drop(ike + " " + flag + " != 0")
	wait(10*time.Second, "charon hears tacit's request", s.host)
	wait(10*time.Second, "tacit hears charon's request", tacit)
	for _, h := range []*lab.Host{s.host, tacit} {
		output(s.t, h, "nft", "delete", "table", "ip", "cut")
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
