package e2e

import (
	"strings"
	"testing"
	"time"
)

// TestStrongSwanSuites lets strongSwan have nothing but what other peers' defaults need: AES-CBC with HMAC, MODP, the larger curves. tacit
// initiates over IPv4, charon over IPv6 and rekeys both its SAs with a key exchange; data flows. Of charon's default charon itself
// chooses AES-CBC, which comes first there, and tacit what it prefers.
func TestStrongSwanSuites(t *testing.T) {
	needSwan(t)
	for _, c := range []struct{ name, ike, esp, suite, listed string }{
		{"AES-CBC and MODP-3072", "aes256-sha256-modp3072", "aes256-sha256-modp3072,aes256-sha256",
			"aes-cbc-256 hmac-sha2-256-128 prf-sha256 modp3072", "AES_CBC-256/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/MODP_3072"},
		{"AES-CBC and P-384", "aes128-sha384-ecp384", "aes128-sha384-ecp384,aes128-sha384",
			"aes-cbc-128 hmac-sha2-384-192 prf-sha384 p384", "AES_CBC-128/HMAC_SHA2_384_192/PRF_HMAC_SHA2_384/ECP_384"},
		{"AES-CBC and P-521", "aes256-sha512-ecp521", "aes256-sha512-ecp521,aes256-sha512",
			"aes-cbc-256 hmac-sha2-512-256 prf-sha512 p521", "AES_CBC-256/HMAC_SHA2_512_256/PRF_HMAC_SHA2_512/ECP_521"},
		{"charon's default", "default", "default", "aes-cbc-128 hmac-sha2-256-128 prf-sha256 x25519", "AES_GCM_16-128/PRF_HMAC_SHA2_256/CURVE_25519"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			aliceKey, bobKey := newIdentity(t), newIdentity(t)
			dir, anchor := signZones(t, zoneFile{"example.", bindNSEC, append(hostRecords("bob.example.", w.bob, &bobKey),
				hostRecords("alice.example.", w.alice, &aliceKey)...)})
			startNSD(t, w.ns, dir)
			startUnbound(t, w.up, w.ns.Addr4().String())
			bob := startSwan(t, w.bob, swanConf{id: "bob.example", peerID: "alice.example", key: bobKey, peerKey: aliceKey, peer: w.alice, ike: c.ike, esp: c.esp})
			alice := startTacit(t, w.alice, anchor, options{name: "alice.example", identity: aliceKey.pem, upstream: w.up.Addr4().String(),
				top: "identify = \"all\""})
			mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
			transfer(t, w.alice, w.bob, w.bob.Addr4(), 200_000)
			if log := alice.log(); !strings.Contains(log, "suite=\""+c.suite+"\"") {
				t.Errorf("tacit as initiator has not %q", c.suite)
			}

			bob.ctl("--terminate", "--ike", "v6")
			if out := bob.ctl("--initiate", "--child", "v6-host"); !strings.Contains(out, "initiate completed successfully") {
				t.Fatalf("charon as initiator: %s", out)
			}
			transfer(t, w.alice, w.bob, w.bob.Addr6(), 200_000)
			bob.ctl("--rekey", "--child", "v6-host")
			bob.ctl("--rekey", "--ike", "v6")
			eventually(t, 5*time.Second, "the rekeys", func() bool {
				log := bob.log()
				return strings.Contains(log, "inbound CHILD_SA v6-host{") && strings.Contains(log, "rekeyed between") && strings.Contains(log, "deleting IKE_SA v6[")
			})
			transfer(t, w.alice, w.bob, w.bob.Addr6(), 200_000)
			if sas := bob.ctl("--list-sas", "--ike", "v6"); !strings.Contains(sas, c.listed) {
				t.Errorf("bob's SAs, want %s:\n%s", c.listed, sas)
			}
			w.onlyProtected(w.alice, w.bob)
		})
	}
}
