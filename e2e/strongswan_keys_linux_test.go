package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// keyKinds are the kinds of keys that an IPSECKEY record holds.
var keyKinds = []struct {
	name string
	make func() (crypto.Signer, error)
}{
	{"Ed25519", func() (crypto.Signer, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}},
	{"P-256", func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }},
	{"P-384", func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P384(), rand.Reader) }},
	{"RSA-2048", func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) }},
	{"RSA-3072", func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 3072) }},
}

// schemeLine is how charon tells with what somebody has proved himself.
var schemeLine = regexp.MustCompile(`authentication of '([a-z.]+)'( \(myself\))? with (\S+) successful`)

// TestStrongSwanKeys is the matrix of key kinds and roles: both ends have a key of the kind in DNS or in a file, each initiates once, and
// data flows. charon sends fragments of the smallest size.
func TestStrongSwanKeys(t *testing.T) {
	needSwan(t)
	var table []string
	for _, kind := range keyKinds {
		t.Run(kind.name, func(t *testing.T) {
			table = append(table, strongSwanKeys(t, kind.name, kind.make))
		})
	}
	t.Logf("key kind | tacit initiates: tacit's, charon's | charon initiates: charon's, tacit's | messages in fragments\n%s", strings.Join(table, "\n"))
}

func strongSwanKeys(t *testing.T, kind string, generate func() (crypto.Signer, error)) (row string) {
	w := newWorld(t)
	var keys [2]identity
	for i := range keys {
		key, err := generate()
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = identityOf(t, key)
	}
	dir, anchor := signZones(t, zoneFile{"example.", bindNSEC, append(hostRecords("bob.example.", w.bob, &keys[1]),
		hostRecords("alice.example.", w.alice, &keys[0])...)})
	startNSD(t, w.ns, dir)
	startUnbound(t, w.up, w.ns.Addr4().String())
	bob := startSwan(t, w.bob, swanConf{id: "bob.example", peerID: "alice.example", key: keys[1], peerKey: keys[0], peer: w.alice,
		daemon: "\tfragment_size = 576\n"})
	startTacit(t, w.alice, anchor, options{name: "alice.example", identity: keys[0].pem, upstream: w.up.Addr4().String(),
		top: "identify = \"all\""})
	mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
	transfer(t, w.alice, w.bob, w.bob.Addr4(), 100_000)
	ours := schemeLine.FindAllStringSubmatch(bob.log(), -1)
	if len(ours) == 0 {
		t.Fatal("charon tells of no authentication")
	}

	before := len(bob.log())
	bob.ctl("--terminate", "--ike", "v6")
	if out := bob.ctl("--initiate", "--child", "v6-host"); !strings.Contains(out, "initiate completed successfully") {
		t.Fatalf("charon as initiator: %s", out)
	}
	transfer(t, w.alice, w.bob, w.bob.Addr6(), 100_000)
	theirs := schemeLine.FindAllStringSubmatch(bob.log()[before:], -1)
	if len(theirs) < 2 || theirs[0][1] != "bob.example" || theirs[1][1] != "alice.example" {
		t.Fatalf("charon as initiator tells of %v", theirs)
	}
	w.onlyProtected(w.alice, w.bob)
	fragments := strings.Count(bob.log(), "splitting IKE message")
	if strings.HasPrefix(kind, "RSA") && fragments == 0 {
		t.Error("charon sent no fragments")
	}
	return fmt.Sprintf("%-8s | %s | %s | %d", kind, schemes(ours), schemes(theirs), fragments)
}

// schemes lists who proved himself with what first, in the order of the protocol.
func schemes(found [][]string) string {
	var s []string
	seen := map[string]bool{}
	for _, f := range found {
		if !seen[f[1]] {
			s = append(s, f[3])
		}
		seen[f[1]] = true
	}
	return strings.Join(s, ", ")
}
