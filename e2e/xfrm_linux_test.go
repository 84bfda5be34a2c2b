package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
	"tacit/lab"
	"tacit/tun"
	"tacit/xfrm"
)

// needESP skips a test where the kernel has no ESP: scripts/test runs these under one that has (TACIT_ESP=1: then it must).
func needESP(t *testing.T, programs ...string) {
	t.Helper()
	needE2E(t, programs...)
	if err := xfrm.Available(); err != nil {
		if os.Getenv("TACIT_ESP") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// TestXFRMJob is a small main job with both hosts on the kernel's ESP: lookups, datagrams and streams both ways, nothing in
// clear; and afterwards SAs, policies and packet filter are byte for byte as before.
func TestXFRMJob(t *testing.T) {
	needESP(t)
	before := ""
	w, alice, bob := jobWorldWith(t, "bob.example", "", "xfrm", "xfrm", func(w *world) { before = ipsecState(t, w.alice) + ipsecState(t, w.bob) })
	mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
	for i, addr := range both(w.bob) {
		datagrams(t, w.alice, w.bob, addr, 20, 1, 1472, 9000)
		transfer(t, w.alice, w.bob, addr, 2_000_000)
		datagrams(t, w.bob, w.alice, both(w.alice)[i], 20, 1, 9000)
		transfer(t, w.bob, w.alice, both(w.alice)[i], 2_000_000)
	}
	w.onlyProtected(w.alice, w.bob)
	if status, err := alice.run("status", "--json"); err != nil || !strings.Contains(status, `"xfrm"`) {
		t.Errorf("status: %v\n%s", err, status)
	}
	alice.stop()
	bob.stop()
	if after := ipsecState(t, w.alice) + ipsecState(t, w.bob); after != before {
		t.Errorf("after stop: got\n%s\nwant\n%s", after, before)
	}
}

// TestXFRMWithTun joins the two data planes, each in both roles.
func TestXFRMWithTun(t *testing.T) {
	needESP(t)
	for _, c := range []struct{ alice, bob string }{{"xfrm", "tun"}, {"tun", "xfrm"}} {
		t.Run(c.alice+" initiates to "+c.bob, func(t *testing.T) {
			w, _, _ := jobWorldWith(t, "bob.example", `child-lifetime = "3s"`, c.alice, c.bob, nil)
			mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
			for i, addr := range both(w.bob) {
				datagrams(t, w.alice, w.bob, addr, 20, 1, 1472, 9000)
				transfer(t, w.alice, w.bob, addr, 1_000_000)
				p, err := ping(w.alice, both(w.alice)[i], addr, 600, 10*time.Millisecond) // six seconds: a rekey or two
				if err != nil || p.received != 600 {
					t.Errorf("ping %v: %v, %v", addr, p, err)
				}
			}
			w.onlyInUDP(w.alice, w.bob) // tun asks for it
		})
	}
}

// TestXFRMCiphersWithTun has our ESP and the kernel's read each other, in every cipher of the conformance test.
func TestXFRMCiphersWithTun(t *testing.T) {
	needESP(t)
	opened := 0
	ipsectest.TestDataplane(t, ipsectest.Subject{
		Open: func(o ipsectest.Options) (ipsec.Dataplane, error) {
			if opened++; opened%2 == 1 {
				return tun.Open(tun.Config{Linger: o.Linger})
			}
			return xfrm.Open(xfrm.Config{Linger: o.Linger})
		},
		Only: []string{"ciphers"},
	})
}

// TestXFRMStrongSwan lets tacit and strongSwan talk in transport mode on the kernel's ESP, both families, either initiating.
func TestXFRMStrongSwan(t *testing.T) {
	needESP(t, "charon-systemd", "swanctl")
	for _, initiator := range []string{"tacit", "strongSwan"} {
		t.Run(initiator+" initiates", func(t *testing.T) {
			w, swan := swanWorld(t, false)
			swan.contact(w, initiator)
			for i, addr := range both(w.bob) {
				datagrams(t, w.alice, w.bob, addr, 20, 1, 1472, 9000)
				transfer(t, w.alice, w.bob, addr, 1_000_000)
				datagrams(t, w.bob, w.alice, both(w.alice)[i], 20, 1, 9000)
			}
			w.onlyProtected(w.alice, w.bob)
			sas := swan.ctl("--list-sas")
			if strings.Count(sas, "ESTABLISHED") < 2 || strings.Contains(sas, "TUNNEL") || !strings.Contains(sas, "TRANSPORT") {
				t.Errorf("bob's SAs:\n%s", sas)
			}
		})
	}
}

// contact has alice, who runs tacit, or bob's strongSwan key both families.
func (s *swan) contact(w *world, initiator string) {
	s.t.Helper()
	if initiator == "tacit" {
		mustResolve(s.t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
		return
	}
	s.initiate()
	for _, addr := range both(w.alice) { // the first ESP arms alice
		datagrams(s.t, w.bob, w.alice, addr, 1, 1)
	}
}

// swanWorld has tacit on alice and strongSwan with the kernel's ESP on bob, in UDP if encap is set.
func swanWorld(t *testing.T, encap bool) (*world, *swan) {
	t.Helper()
	needE2E(t, "nsd", "unbound", "dnssec-signzone", "ldns-signzone", "getent")
	w := newWorld(t)
	aliceKey, bobKey := newIdentity(t), newIdentity(t)
	dir, anchor := signZones(t, zoneFile{"example.", bindNSEC, append(hostRecords("bob.example.", w.bob, &bobKey),
		hostRecords("alice.example.", w.alice, &aliceKey)...)})
	startNSD(t, w.ns, dir)
	startUnbound(t, w.up, w.ns.Addr4().String())
	s := startSwan(t, w.bob, swanConf{id: "bob.example", peerID: "alice.example", key: bobKey, peerKey: aliceKey, peer: w.alice, kernel: true, encap: encap})
	put(t, w.bob, "/etc/resolv.conf", "nameserver "+w.up.Addr4().String()+"\n")
	startTacit(t, w.alice, anchor, options{name: "alice.example", identity: aliceKey.pem, upstream: w.up.Addr4().String(),
		top: "identify = \"all\"", dns: "hold = \"8s\"", dataplane: "xfrm"})
	return w, s
}

// TestXFRMForeignPolicies: policies and SAs of somebody else stand before, while and after tacit runs.
func TestXFRMForeignPolicies(t *testing.T) {
	needESP(t)
	foreign := ""
	w, alice, bob := jobWorldWith(t, "bob.example", "", "xfrm", "xfrm", func(w *world) {
		for _, line := range []string{
			fmt.Sprintf("policy add src %v/32 dst %v/32 dir out priority 100 mark 7 mask 0xff", w.alice.Addr4(), w.bob.Addr4()),
			fmt.Sprintf("policy add src %v/32 dst %v/32 dir out priority 3000000000", w.alice.Addr4(), w.bob.Addr4()),
			"policy add src 203.0.113.0/24 dst 198.51.100.0/24 dir out priority 5 tmpl src 203.0.113.1 dst 198.51.100.1 proto esp reqid 9 mode tunnel",
			"policy add src ::/0 dst ::/0 proto 58 type 135 dir in priority 1",
			"state add src 203.0.113.1 dst 198.51.100.1 proto esp spi 0x900 reqid 9 mode tunnel aead rfc4106(gcm(aes)) 0x000102030405060708090a0b0c0d0e0f10111213 128",
		} {
			output(t, w.alice, "ip", append([]string{"xfrm"}, strings.Fields(line)...)...)
		}
		foreign = ipsecState(t, w.alice)
	})
	mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 100_000)
	}
	w.onlyProtected(w.alice, w.bob)
	if !strings.Contains(alice.log(), "another's policy") {
		t.Error("the log does not tell of another's policies")
	}
	alice.kill()
	bob.stop()
	if during := ipsecState(t, w.alice); !strings.Contains(during, "reqid 2046820353") {
		t.Errorf("after a crash nothing of ours is left:\n%s", during)
	}
	if _, err := alice.run("cleanup"); err != nil {
		t.Errorf("cleanup: %v", err)
	}
	if after := ipsecState(t, w.alice); after != foreign {
		t.Errorf("after cleanup: got\n%s\nwant\n%s", after, foreign)
	}
}

// TestXFRMLossyCable keys and carries over a cable with a round trip of 20 ms that loses every twentieth packet.
func TestXFRMLossyCable(t *testing.T) {
	needESP(t, "tc")
	w, _, _ := jobWorldWith(t, "bob.example", "", "xfrm", "xfrm", func(w *world) {
		for _, h := range []*lab.Host{w.alice, w.bob} {
			output(t, h, "tc", "qdisc", "add", "dev", "eth0", "root", "netem", "delay", "10ms", "loss", "5%")
		}
	})
	eventually(t, 30*time.Second, "both addresses", func() bool {
		addrs, err := getaddrinfo(t, w.alice, "ahosts", "bob.example")
		return err == nil && len(addrs) == 2
	})
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 300_000)
	}
	w.onlyProtected(w.alice, w.bob)
}

// TestXFRMReboot: Bob comes back from a reboot and knows nothing. What he says in clear is dropped; Alice says nothing in clear, and
// soon the two speak again.
func TestXFRMReboot(t *testing.T) {
	needESP(t)
	w, _, bob := jobWorldWith(t, "bob.example", "", "xfrm", "xfrm", nil)
	mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
	for _, addr := range both(w.bob) {
		datagrams(t, w.alice, w.bob, addr, 1, 1)
	}
	bob.kill()
	for _, line := range []string{"ip xfrm policy flush", "ip xfrm state flush", "nft flush ruleset"} {
		args := strings.Fields(line)
		output(t, w.bob, args[0], args[1:]...)
	}
	bob.start(false)
	for i, addr := range both(w.alice) {
		if p, err := ping(w.bob, both(w.bob)[i], addr, 1, 100*time.Millisecond); err == nil && p.received > 0 {
			t.Errorf("%v answered in clear", addr)
		}
	}
	for i, addr := range both(w.bob) {
		eventually(t, 30*time.Second, "an answer from "+addr.String(), func() bool {
			_, _ = getaddrinfo(t, w.alice, "ahosts", "bob.example")
			p, err := ping(w.alice, both(w.alice)[i], addr, 1, time.Second)
			return err == nil && p.received == 1
		})
	}
	w.sync()
	for i, addr := range both(w.bob) {
		if c := w.tap.From(both(w.alice)[i], addr); c.Clear() != 0 {
			t.Errorf("alice to %v: %v", addr, c)
		}
	}
}

// ipsecState is what ip and nft print of a host.
func ipsecState(t *testing.T, h *lab.Host) string {
	t.Helper()
	return output(t, h, "ip", "xfrm", "state") + output(t, h, "ip", "xfrm", "policy") + output(t, h, "nft", "list", "ruleset")
}

// jobWorldWith is jobWorld with a data plane for each host, and something to do before the daemons start.
func jobWorldWith(t *testing.T, bobName, top, alicePlane, bobPlane string, before func(*world)) (w *world, alice, bob *tacit) {
	t.Helper()
	needE2E(t, "nsd", "unbound", "dnssec-signzone", "ldns-signzone", "getent")
	w = newWorld(t)
	key := newIdentity(t)
	dir, anchor := signZones(t, zoneFile{"example.", bindNSEC, hostRecords("bob.example.", w.bob, &key)})
	w.anchor = anchor
	startNSD(t, w.ns, dir)
	startUnbound(t, w.up, w.ns.Addr4().String())
	if before != nil {
		before(w)
	}
	up := w.up.Addr4().String()
	bob = startTacit(t, w.bob, anchor, options{name: bobName, identity: key.pem, upstream: up, top: top, dataplane: bobPlane})
	alice = startTacit(t, w.alice, anchor, options{upstream: up, top: top, dns: "hold = \"8s\"", dataplane: alicePlane}) // a slow kernel
	return w, alice, bob
}
