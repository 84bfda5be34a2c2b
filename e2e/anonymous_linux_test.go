package e2e

import (
	"testing"
	"time"
)

// Better than nothing: rules that take whoever is there.

// anybodyWorld has names without a key at Bob's addresses, signed and not, and at a host that speaks no IKE.
func anybodyWorld(t *testing.T) *attackWorld {
	t.Helper()
	return newAttackWorld(t, func(w *attackWorld) []zoneFile {
		r := append(hostRecords("bob.example.", w.bob, &w.bobKey), hostRecords("www.example.", w.bob, nil)...)
		r = append(r, hostRecords("plain.example.", w.plain, nil)...)
		return []zoneFile{{"example.", bindNSEC, r}, {"unsigned.", unsigned, hostRecords("bob.unsigned.", w.bob, &w.bobKey)}}
	})
}

// startAnybody starts both daemons; Alice's rule for every name is of a class and takes anybody.
func (w *attackWorld) startAnybody(class string) {
	w.t.Helper()
	w.bobTac = startTacit(w.t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost})
	w.aliceTac = startTacit(w.t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost,
		policy: "[[policy]]\nmatch = [\"*\"]\nclass = \"" + class + "\"\nanonymous = true\n"})
}

// TestAnonymousBesideTheAnswer: the answer does not wait; within a second what is sent is ESP, and reported as no more than it is. A host that speaks
// no IKE is reached as ever.
//
//tacit:attack A-19 reported anonymous; somebody takes its place without a packet in clear
func TestAnonymousBesideTheAnswer(t *testing.T) {
	for _, name := range []string{"www.example", "bob.unsigned"} {
		t.Run(name, func(t *testing.T) {
			w := anybodyWorld(t)
			w.startAnybody("private-or-clear")
			if a := mustAnswer(t, w.alice, name, both(w.bob)...); a.took > 500*time.Millisecond {
				t.Errorf("the answer waited %v", a.took)
			}
			eventually(t, time.Second, "encrypted within a second", func() bool { return w.aliceTac.knows(w.bob, "anonymous") })
			w.tap.Reset()
			for _, addr := range both(w.bob) {
				transfer(t, w.alice, w.bob, addr, 100_000)
			}
			w.onlyProtected(w.alice, w.bob)

			if a := mustAnswer(t, w.alice, "plain.example", both(w.plain)...); a.took > 500*time.Millisecond {
				t.Errorf("plain.example waited %v", a.took)
			}
			transfer(t, w.alice, w.plain, w.plain.Addr4(), 1000)

			// Somebody, once he proves himself, takes nobody's place without a packet in clear.
			flow := startStream(t, w.alice, w.bob, w.bob.Addr4())
			mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
			if !w.aliceTac.knows(w.bob, "authenticated", "bob.example") {
				t.Errorf("status: %+v", w.aliceTac.peers(w.bob))
			}
			flow.goesOn(disturbed)
			w.onlyProtected(w.alice, w.bob)
		})
	}
}

// TestPrivateTakesAnybody: the answer waits for the SA, so that the first packet is encrypted; a host that does not encrypt is withheld, and so is
// a name whose zone proves nothing.
func TestPrivateTakesAnybody(t *testing.T) {
	w := anybodyWorld(t)
	w.startAnybody("private")
	mustAnswer(t, w.alice, "www.example", both(w.bob)...)
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 100_000)
	}
	w.onlyProtected(w.alice, w.bob)
	mustWithhold(t, w.alice, "plain.example")
	mustWithhold(t, w.alice, "bob.unsigned")
}
