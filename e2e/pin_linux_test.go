package e2e

import (
	"strings"
	"testing"
	"time"

	"tacit/lab"
)

// TestPinByVerb: `tacit pin` counts at once, before what DNS proves (TRUST.md R3), for names and for addresses; it outlives the daemon, and ends with
// --remove. An unsigned name is authenticated by it.
func TestPinByVerb(t *testing.T) {
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		return []zoneFile{{"example.", bindNSEC, hostRecords("bob.example.", w.bob, &w.bobKey)}, {"plain.", unsigned, hostRecords("bob.plain.", w.bob, nil)}}
	})
	w.run("")
	tacit := func(args ...string) string {
		t.Helper()
		out, err := w.aliceTac.run(args...)
		if err != nil {
			t.Fatalf("tacit %v: %v", args, err)
		}
		return out
	}
	right, wrong := w.bobKey.fingerprint(t), w.malKey.fingerprint(t)
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	for _, subject := range []string{"bob.example", w.bob.Addr4().String()} {
		tacit("pin", subject, wrong)
		if subject != "bob.example" {
			mustAnswer(t, w.alice, "bob.example", w.bob.Addr6()) // nobody has said a thing of that one
		}
		if p, err := ping(w.alice, w.alice.Addr4(), w.bob.Addr4(), 1, time.Millisecond); err == nil && p.received > 0 { // nor in clear
			t.Errorf("bob answers though he has not the pinned key: %v", p)
		}
		if subject == "bob.example" {
			mustWithhold(t, w.alice, "bob.example")
		}
		tacit("pin", subject, right)
		mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
		tacit("pin", "--remove", subject, wrong)
		mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
		if list := tacit("pin"); strings.Count(list, right) != 1 || strings.Contains(list, wrong) {
			t.Errorf("the list is %q", list)
		}
		tacit("pin", "--remove", subject)
	}

	tacit("pin", "bob.plain", right)
	w.aliceTac.stop()
	w.aliceTac.start(false)
	w.tap.Reset()
	mustAnswer(t, w.alice, "bob.plain", both(w.bob)...)
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 10_000)
	}
	w.onlyProtected(w.alice, w.bob)
	if !w.aliceTac.knows(w.bob, "authenticated", "bob.plain") {
		t.Errorf("status: %+v", w.aliceTac.peers(w.bob))
	}
	tacit("pin", "--remove", "bob.plain")
	tacit("pin", "bob.plain", wrong)
	mustWithhold(t, w.alice, "bob.plain")
	w.sync()
	if c := w.tap.BetweenHosts(w.alice, w.bob); c[lab.ClassClear].Packets != 0 {
		t.Errorf("tap: %v", c)
	}
}
