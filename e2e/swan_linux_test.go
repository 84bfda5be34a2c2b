package e2e

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tacit/ipseckey"
	"tacit/lab"
)

// swan is strongSwan's charon-systemd on a host, with ESP in user space (plugin kernel-libipsec: tunnel mode, ESP in
// UDP), which runs on any kernel.
type swan struct {
	t    *testing.T
	host *lab.Host
	cmd  *lab.Cmd
	root string // where it is unpacked, if it is not the machine's
}

// swanConf is what tests say about a strongSwan.
type swanConf struct {
	id, peerID string   // FQDNs
	key        identity // its own
	peerKey    identity // of which only the public half is used
	peer       *lab.Host
	child      string    // more lines of the children
	conn       [2]string // more lines of the connections of IPv4 and IPv6
	pools      string    // the addresses that it assigns
	ike, esp   string    // proposals
	kernel     bool      // the kernel's ESP, in transport mode
	encap      bool      // with it: ESP in UDP though there is no NAT
	port       int       // of IKE at both ends, with the next one for port 4500; 0: the usual ones
	root       string    // another strongSwan than the machine's: 6
	mlkem      bool      // with it: ML-KEM
}

// The daemon's own packets carry a mark and are routed past its TUN device: the protected address is the IKE peer's
// (allow_peer_ts).
const strongswanConf = `
charon-systemd {
	load = random nonce aes sha1 sha2 hmac kdf pem pkcs1 pubkey curve25519 openssl gcm gmp pkcs8 x509 revocation constraints kernel-libipsec kernel-netlink socket-default vici updown
	install_virtual_ip = no
	plugins {
		kernel-libipsec {
			allow_peer_ts = yes
		}
		kernel-netlink {
			fwmark = !0x42
		}
		socket-default {
			fwmark = 0x42
		}
	}
	filelog {
		run {
			path = /run/charon.log
			default = 1
			ike = 2
			cfg = 2
			flush_line = yes
		}
	}
	journal {
		default = -1
	}
}
`

// startSwan runs charon-systemd on the host and loads a connection for each family.
func startSwan(t *testing.T, h *lab.Host, c swanConf) *swan {
	t.Helper()
	conf := &strings.Builder{}
	encap, mode, daemon, ports := "yes", "tunnel", strongswanConf, ""
	if c.kernel {
		mode, daemon = "transport", kernelConf(strongswanConf)
		if !c.encap {
			encap = "no"
		}
	}
	if c.root != "" {
		_, rest, _ := strings.Cut(daemon, "	load =")
		_, rest, _ = strings.Cut(rest, "\n")
		load := swan6Load
		if c.mlkem {
			load += " ml"
		}
		daemon = "\ncharon-systemd {\n	retransmit_timeout = 1\n	load = " + load + "\n" + rest
	}
	if c.port != 0 {
		daemon = strings.Replace(daemon, "	load =", fmt.Sprintf("	port = %d\n	port_nat_t = %d\n	load =", c.port, c.port+1), 1)
		ports = fmt.Sprintf("local_port = %d\n		remote_port = %d", c.port, c.port)
	}
	conf.WriteString("connections {\n")
	for i, family := range []string{"v4", "v6"} {
		fmt.Fprintf(conf, `	%s {
		version = 2
		local_addrs = %s
		remote_addrs = %s
		%s
		%s
		mobike = no
		encap = %s
		send_certreq = no
		proposals = %s
		local {
			auth = pubkey
			pubkeys = own.pem
			id = %s
		}
		remote {
			auth = pubkey
			pubkeys = peer.pem
			id = %s
		}
		children {
			%s-host {
				mode = %s
				esp_proposals = %s
				%s
			}
		}
	}
`, family, both(h)[i], both(c.peer)[i], ports, c.conn[i], encap, cmp.Or(c.ike, "aes128gcm16-prfsha256-x25519,aes256-sha256-ecp256"), c.id, c.peerID,
			family, mode, cmp.Or(c.esp, "aes128gcm16,aes128gcm16-x25519"), c.child)
	}
	conf.WriteString("}\n" + c.pools)
	if strings.Contains(c.conn[0], "vips") {
		daemon = strings.Replace(daemon, "install_virtual_ip = no", "install_virtual_ip = yes", 1)
	}
	return runSwanIn(t, h, c.root, daemon, map[string]string{
		"private/own.pem": c.key.pem, "pubkey/own.pem": publicPEM(t, c.key), "pubkey/peer.pem": publicPEM(t, c.peerKey),
		"swanctl.conf": conf.String(),
	})
}

// runSwan runs charon-systemd with its own configuration, and loads the files of /etc/swanctl.
func runSwan(t *testing.T, h *lab.Host, daemon string, files map[string]string) *swan {
	t.Helper()
	return runSwanIn(t, h, "", daemon, files)
}

func runSwanIn(t *testing.T, h *lab.Host, root, daemon string, files map[string]string) *swan {
	t.Helper()
	dir, err := h.PrivateDir("/etc/swanctl")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(t, h, "/run/strongswan.conf", daemon)
	s := &swan{t: t, host: h, root: root}
	charon := s.program("charon-systemd")
	s.cmd = start(t, h, charon[0], charon[1:]...)
	eventually(t, 30*time.Second, "charon's control socket", func() bool {
		_, err := os.Stat(h.File("/run/charon.vici"))
		return err == nil
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("charon on %s wrote:\n%s", h.Name, tail(s.log(), 120))
		}
	})
	eventually(t, 90*time.Second, "charon listens to swanctl", s.listens)
	s.ctl("--load-all", "--noprompt")
	return s
}

// kernelConf is the configuration without ESP in user space, and the marks that it needs.
func kernelConf(conf string) string {
	conf = strings.Replace(conf, " kernel-libipsec", "", 1)
	from, to := strings.Index(conf, "	plugins {"), strings.Index(conf, "	filelog {")
	return conf[:from] + conf[to:]
}

// publicPEM is the public half as SubjectPublicKeyInfo.
func publicPEM(t *testing.T, id identity) string {
	t.Helper()
	key, err := ipseckey.ParseIdentity([]byte(id.pem))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// program is the command line of one of strongSwan's programs. In a root of its own it has the host's files.
func (s *swan) program(args ...string) []string {
	if s.root != "" {
		const enter = `for d in dev proc sys run etc/swanctl; do mount --rbind "/$d" "$0/$d"; done; exec chroot "$0" "$@"`
		args = append([]string{"sh", "-ec", enter, s.root}, args...)
	}
	return append([]string{"env", "STRONGSWAN_CONF=/run/strongswan.conf"}, args...)
}

// ctl runs swanctl.
func (s *swan) ctl(args ...string) string {
	s.t.Helper()
	args = s.program(append([]string{"swanctl"}, args...)...)
	return output(s.t, s.host, args[0], args[1:]...)
}

// listens reports whether charon answers. On a slow machine it sometimes misses its first client, who then waits for ever.
func (s *swan) listens() bool {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	args := s.program("swanctl", "--stats")
	_, err := s.host.Command(ctx, args[0], args[1:]...).Output()
	return err == nil
}

// initiate sets up the Child SAs of both families.
func (s *swan) initiate() {
	s.t.Helper()
	for _, family := range []string{"v4", "v6"} {
		if out := s.ctl("--initiate", "--child", family+"-host"); !strings.Contains(out, "initiate completed successfully") {
			s.t.Fatalf("%s: %s", family, out)
		}
	}
}

// log is charon's log.
func (s *swan) log() string {
	b, err := os.ReadFile(s.host.File("/run/charon.log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}
