package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tacit/ipseckey"
	"tacit/lab"
)

// Endpoints known by name ([[peer]]).

// fingerprint is what `tacit key show` prints of the identity.
func (id identity) fingerprint(t *testing.T) string {
	t.Helper()
	key, err := ipseckey.ParseIdentity([]byte(id.pem))
	if err != nil {
		t.Fatal(err)
	}
	return ipseckey.Fingerprint(key.Public())
}

// protected waits until both families of a peer are, authenticated as a name.
func (d *tacit) protected(at *lab.Host, name string) {
	d.t.Helper()
	eventually(d.t, 15*time.Second, d.host.Name+" has "+name, func() bool { return d.knows(at, "authenticated", name) })
}

// TestEndpointIsKeptUp: nobody looks Bob up. His daemon is killed and comes back; he is keyed again, and what is sent meanwhile leaves nothing in clear.
func TestEndpointIsKeptUp(t *testing.T) {
	w, aliceKey := mutualWorld(t)
	o := w.named("alice.example", aliceKey)
	o.top = `linger = "6s"` // a silent endpoint is probed every three seconds
	o.policy = "[[peer]]\nname = \"bob.example\"\nstart = \"now\"\n"
	w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost})
	w.aliceTac = startTacit(t, w.alice, w.anchor, o)
	w.aliceTac.protected(w.bob, "bob.example")
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 1000)
	}
	w.bobTac.protected(w.alice, "alice.example") // identify = "matched" tells her name to endpoints
	w.bobTac.kill()
	w.bobTac.start(false)
	before := w.handshakes()
	eventually(t, 20*time.Second, "alice keys bob again", func() bool { return w.handshakes() >= before+2 })
	w.aliceTac.protected(w.bob, "bob.example")
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 1000)
	}
	w.onlyProtected(w.alice, w.bob)
}

// TestPinned: with pins and addresses two hosts need no DNS at all, and let nobody else in. A name in an unsigned zone is as good as any once its key is
// pinned; a wrong pin is nobody's.
func TestPinned(t *testing.T) {
	w, aliceKey := mutualWorld(t)
	peer := func(name string, h *lab.Host, pin string) string {
		return fmt.Sprintf("[[peer]]\nname = %q\naddress = %q\npin = [%q]\nstart = \"now\"\n", name, h.Addr4(), pin)
	}
	const nobodysServer = "192.0.2.99"
	start := func(alicePin string) {
		a, b := w.named("alice.example", aliceKey), w.named("bob.example", w.bobKey)
		a.upstream, b.upstream = nobodysServer, nobodysServer
		a.policy, b.policy = peer("bob.example", w.bob, w.bobKey.fingerprint(t))+onlyNamed, peer("alice.example", w.alice, alicePin)+onlyNamed
		w.aliceTac, w.bobTac = startTacit(t, w.alice, w.anchor, a), startTacit(t, w.bob, w.anchor, b)
	}
	start(aliceKey.fingerprint(t))
	for _, x := range []struct {
		d  *tacit
		at *lab.Host
	}{{w.aliceTac, w.bob}, {w.bobTac, w.alice}} {
		eventually(t, 10*time.Second, "protected", func() bool {
			rows := x.d.peers(x.at)
			return len(rows) == 1 && rows[0].Assurance == "authenticated"
		})
	}
	w.tap.Reset() // who came first was told by the other's kernel that nobody speaks IKE there
	transfer(t, w.alice, w.bob, w.bob.Addr4(), 1000)
	w.onlyProtected(w.alice, w.bob)
	w.aliceTac.stop()
	w.bobTac.stop()

	start(w.malKey.fingerprint(t))
	time.Sleep(3 * time.Second)
	for _, p := range append(w.aliceTac.peers(w.bob), w.bobTac.peers(w.alice)...) {
		if p.State == "protected" {
			t.Errorf("with a wrong pin: %+v", p)
		}
	}
	if !strings.Contains(w.bobTac.log(), "did not prove the key of alice.example") {
		t.Error("bob's log does not say that alice has another key")
	}
	w.aliceTac.stop()
	w.bobTac.stop()

	w.run("")
	w.aliceTac.stop()
	w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost,
		policy: fmt.Sprintf("[[peer]]\nname = \"bob.plain\"\npin = [%q]\n[[peer]]\nname = \"other.plain\"\npin = [%q]\n", w.bobKey.fingerprint(t), w.malKey.fingerprint(t))})
	mustWithhold(t, w.alice, "other.plain")
	mustAnswer(t, w.alice, "bob.plain", both(w.bob)...)
	w.tap.Reset()
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 1000)
	}
	w.onlyProtected(w.alice, w.bob)
}
