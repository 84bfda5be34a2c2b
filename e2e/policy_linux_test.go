package e2e

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// policyWorld has names of Bob's with his key, of a plain host without one, and of an unsigned zone.
func policyWorld(t *testing.T) *attackWorld {
	t.Helper()
	return newAttackWorld(t, func(w *attackWorld) []zoneFile {
		r := append(hostRecords("bob.example.", w.bob, &w.bobKey), hostRecords("open.example.", w.mallory, &w.malKey)...)
		for _, n := range []string{"keyless.example.", "private.keyless.example.", "block.keyless.example."} {
			r = append(r, hostRecords(n, w.plain, nil)...)
		}
		return []zoneFile{{"example.", bindNSEC, r}, {"plain.", unsigned, append(hostRecords("host.plain.", w.plain, nil), hostRecords("private.plain.", w.plain, nil)...)}}
	})
}

// TestClassesByName: what each class makes of a name with a key, one without, and one in an unsigned zone.
func TestClassesByName(t *testing.T) {
	w := policyWorld(t)
	w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost})
	w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost, policy: `[[policy]]
match = ["bob.example", "private.keyless.example", "private.plain"]
class = "private"
[[policy]]
match = ["block.keyless.example"]
class = "block"
[[policy]]
match = ["open.example"]
class = "clear-or-private"
`})
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	mustAnswer(t, w.alice, "keyless.example", both(w.plain)...)
	mustAnswer(t, w.alice, "host.plain", both(w.plain)...)
	mustAnswer(t, w.alice, "open.example", both(w.mallory)...) // he does not even speak IKE
	for _, name := range []string{"private.keyless.example", "private.plain"} {
		if code, _ := mustWithhold(t, w.alice, name).ede(); code != dns.ExtendedErrorCodeProhibited {
			t.Errorf("%s: EDE %d", name, code)
		}
	}
	if a := ask(t, w.alice, "block.keyless.example", dns.TypeA); a.Rcode != dns.RcodeRefused {
		t.Errorf("block: got\n%v", a.Msg)
	}
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 1000)
	}
	w.onlyProtected(w.alice, w.bob)
	w.wantNothing(w.alice, w.mallory)
}

// TestReload: rules come into force while a flow goes on; a bad file changes nothing; an SA ends when its rule says so, and no other does.
func TestReload(t *testing.T) {
	w := policyWorld(t)
	w.run("")
	for _, addr := range both(w.bob) {
		mustAnswer(t, w.alice, "bob.example", addr)
		transfer(t, w.alice, w.bob, addr, 1000)
	}
	conf := w.alice.File("/run/tacit.toml")
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	put := func(more string) { put(t, w.alice, "/run/tacit.toml", string(text)+more) }
	flow := startStream(t, w.alice, w.bob, w.bob.Addr4())

	put("[[policy]]\nmatch = [\"keyless.example\"]\nclass = \"blocked\"\n")
	if _, err := w.aliceTac.run("reload"); err == nil {
		t.Error("a bad file was taken")
	}
	mustAnswer(t, w.alice, "keyless.example", both(w.plain)...)

	put("[[policy]]\nmatch = [\"keyless.example\"]\nclass = \"block\"\n")
	if _, err := w.aliceTac.run("reload"); err != nil {
		t.Fatal(err)
	}
	if a := ask(t, w.alice, "keyless.example", dns.TypeA); a.Rcode != dns.RcodeRefused {
		t.Errorf("after the reload: got\n%v", a.Msg)
	}
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	flow.goesOn(disturbed)
	w.onlyProtected(w.alice, w.bob)

	put("[[policy]]\nmatch = [\"bob.example\"]\nclass = \"clear\"\n")
	if err := w.aliceTac.cmd.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "nothing stands on bob's addresses", func() bool { return len(w.aliceTac.peers(w.bob)) == 0 })
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	mustAnswer(t, w.alice, "keyless.example", both(w.plain)...)
	eventually(t, 10*time.Second, "bob lets go, five seconds after the end of a conversation", func() bool { return len(w.bobTac.peers(w.alice)) == 0 })
	w.tap.Reset()
	transfer(t, w.alice, w.bob, w.bob.Addr6(), 1000)
	w.sync()
	if c := w.tap.BetweenHosts(w.alice, w.bob); c.Clear() == 0 {
		t.Errorf("tap between alice and bob: %v, want clear packets", c)
	}
	if n := strings.Count(w.aliceTac.log(), "msg=reloaded"); n != 2 {
		t.Errorf("%d reloads in the log, want 2", n)
	}
}
