package e2e

import (
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tacit/lab"
)

// pluto is libreswan's IKE daemon on a host, with the kernel's ESP in transport mode and raw RSA keys.
type pluto struct {
	t    *testing.T
	host *lab.Host
	cmd  *lab.Cmd
}

// libreswanTool is one of libreswan's programs. Its package and strongSwan's exclude each other: scripts/test unpacks it, and says where.
func libreswanTool(name string) string {
	return os.Getenv("TACIT_LIBRESWAN") + "/usr/libexec/ipsec/" + name
}

// rsaIdentity is one that libreswan can read: it knows no Ed25519.
func rsaIdentity(t *testing.T) identity {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return identityOf(t, key)
}

// rawKey is the last field of an IPSECKEY record: the key in base64.
func rawKey(record string) string {
	f := strings.Fields(record)
	return f[len(f)-1]
}

// newPlutoKey makes pluto's database of keys with one in it, and returns the key in base64 (RFC 3110).
func newPlutoKey(t *testing.T, h *lab.Host) string {
	t.Helper()
	if err := os.MkdirAll(h.File("/run/nss"), 0o700); err != nil {
		t.Fatal(err)
	}
	output(t, h, "certutil", "-N", "-d", "sql:/run/nss", "--empty-password")
	output(t, h, libreswanTool("rsasigkey"), "--nssdir", "/run/nss", "2192")
	_, id, found := strings.Cut(output(t, h, libreswanTool("showhostkey"), "--nssdir", "/run/nss", "--list"), "ckaid: ")
	if !found {
		t.Fatal("libreswan made no key")
	}
	left := output(t, h, libreswanTool("showhostkey"), "--nssdir", "/run/nss", "--left", "--ckaid", strings.TrimSpace(id))
	_, key, found := strings.Cut(left, "leftrsasigkey=0s")
	if !found {
		t.Fatalf("showhostkey: %s", left)
	}
	return strings.Fields(key)[0]
}

// startPluto runs pluto on a host with a connection for each family to a peer with the raw key peerKey.
func startPluto(t *testing.T, h, peer *lab.Host, key, peerKey string) *pluto {
	t.Helper()
	conf := &strings.Builder{}
	conf.WriteString("config setup\n")
	for i, family := range []string{"v4", "v6"} {
		fmt.Fprintf(conf, `
conn %s
	ikev2=insist
	type=transport
	authby=rsa-sha2
	left=%s
	leftid=@bob.example
	leftrsasigkey=0s%s
	leftupdown=%%disabled
	right=%s
	rightid=@alice.example
	rightrsasigkey=0s%s
	ike=aes_gcm128-sha2_256-dh31
	esp=aes_gcm128
	auto=add
`, family, both(h)[i], key, both(peer)[i], peerKey)
	}
	return runPluto(t, h, conf.String(), "v4", "v6")
}

// runPluto runs pluto with a configuration, and adds its connections.
func runPluto(t *testing.T, h *lab.Host, conf string, connections ...string) *pluto {
	t.Helper()
	put(t, h, "/run/ipsec.conf", conf)
	put(t, h, "/run/ipsec.secrets", "")
	programs, err := h.PrivateDir("/usr/libexec") // pluto looks for the others there
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(strings.TrimSuffix(libreswanTool(""), "/"), filepath.Join(programs, "ipsec")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(h.File("/run/pluto"), 0o700); err != nil {
		t.Fatal(err)
	}
	p := &pluto{t: t, host: h}
	p.start(connections...)
	return p
}

// start runs pluto with the configuration that lies there.
func (p *pluto) start(connections ...string) {
	t, h := p.t, p.host
	t.Helper()
	_ = os.Remove(h.File("/run/pluto/pluto.ctl")) // that of one before it
	p.cmd = start(t, h, libreswanTool("pluto"), "--nofork", "--config", "/run/ipsec.conf", "--secretsfile", "/run/ipsec.secrets", "--nssdir", "/run/nss",
		"--rundir", "/run/pluto", "--stderrlog")
	eventually(t, time.Minute, "pluto's control socket", func() bool {
		_, err := os.Stat(h.File("/run/pluto/pluto.ctl"))
		return err == nil
	})
	for _, c := range connections {
		output(t, h, libreswanTool("addconn"), "--config", "/run/ipsec.conf", "--ctlsocket", "/run/pluto/pluto.ctl", c)
	}
}

// whack tells pluto something.
func (p *pluto) whack(args ...string) string {
	p.t.Helper()
	return output(p.t, p.host, libreswanTool("whack"), append([]string{"--rundir", "/run/pluto"}, args...)...)
}

// needLibreswan skips where it cannot run.
func needLibreswan(t *testing.T, programs ...string) {
	t.Helper()
	needESP(t)
	needTree(t, "TACIT_LIBRESWAN")
	needE2E(t, append(programs, libreswanTool("pluto"))...)
}

// TestXFRMLibreswan lets tacit and libreswan talk in transport mode on the kernel's ESP, both families, either initiating.
func TestXFRMLibreswan(t *testing.T) {
	needLibreswan(t, "certutil", "nsd", "unbound", "dnssec-signzone", "ldns-signzone", "getent")
	for _, initiator := range []string{"tacit", "libreswan"} {
		t.Run(initiator+" initiates", func(t *testing.T) {
			w := newWorld(t)
			aliceKey, bobKey := rsaIdentity(t), newPlutoKey(t, w.bob)
			records := append(hostRecords("bob.example.", w.bob, nil), "bob.example. 60 IN IPSECKEY 10 0 2 . "+bobKey)
			dir, anchor := signZones(t, zoneFile{"example.", bindNSEC, append(records, hostRecords("alice.example.", w.alice, &aliceKey)...)})
			startNSD(t, w.ns, dir)
			startUnbound(t, w.up, w.ns.Addr4().String())
			p := startPluto(t, w.bob, w.alice, bobKey, rawKey(aliceKey.record))
			startTacit(t, w.alice, anchor, options{name: "alice.example", identity: aliceKey.pem, upstream: w.up.Addr4().String(),
				top: "identify = \"all\"", dns: "hold = \"8s\"", dataplane: "xfrm"})
			if initiator == "tacit" {
				mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
			} else {
				for i, family := range []string{"v4", "v6"} {
					p.whack("--initiate", "--name", family)
					datagrams(t, w.bob, w.alice, both(w.alice)[i], 1, 1) // the first ESP arms alice
				}
			}
			for i, addr := range both(w.bob) {
				datagrams(t, w.alice, w.bob, addr, 20, 1, 1472, 9000)
				transfer(t, w.alice, w.bob, addr, 1_000_000)
				datagrams(t, w.bob, w.alice, both(w.alice)[i], 20, 1, 9000)
			}
			w.onlyProtected(w.alice, w.bob)
		})
	}
}
