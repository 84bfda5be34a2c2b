package ike

import (
	"testing"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// RFC 6023: the proof without a Child SA, in two round trips, from who heard that it is possible.
func TestChildless(t *testing.T) {
	for _, tell := range []Tell{TellFirst, TellAfter} {
		a, b, w, p := toldPair(t, tell)
		p.Childless = true
		id := w.initiate(a, p)
		w.run(time.Second)
		for _, h := range []*host{a, b} {
			if e, ok := find[Established](h); !ok || e.Key == nil || count[ChildWanted](h)+count[ChildDown](h)+count[Closed](h) != 0 || len(h.e.spis) != 0 {
				t.Errorf("tell %d\n%s", tell, h.dump())
			}
		}
		if want := 4 + 2*int(tell); w.sent != want {
			t.Errorf("tell %d: %d messages, want %d", tell, w.sent, want)
		}
		w.run(30 * time.Second)
		if count[Closed](a) != 0 {
			t.Error("closed too early")
		}
		w.run(time.Minute)
		if count[Closed](a) != 1 || count[Closed](b) != 1 {
			t.Errorf("what is of no use stays for ever\n%s", b.dump())
		}
		_ = id
		checkSound(t, a, b)
	}
}

// A responder that does not say so gets a Child SA as ever.
func TestChildlessUnknown(t *testing.T) {
	a, b, w := pairOf(t)
	p := peerOf(a, b)
	p.Childless = true
	w.tap = stranger(t, b, func(ps []wire.Payload) []wire.Payload { return drop[*wire.Notify](ps) })
	establish(t, w, a, b, p)
}

// A request without a Child SA from one who did not hear of it, or with a part of one, is malformed.
func TestChildlessUnasked(t *testing.T) {
	for name, change := range map[string]func([]wire.Payload) []wire.Payload{
		"no SA":          drop[*wire.SA],
		"no TS":          drop[*wire.TS],
		"none, not told": func(ps []wire.Payload) []wire.Payload { return drop[*wire.TS](drop[*wire.SA](ps)) },
	} {
		a, b, w := pairOf(t)
		w.tap = rewrite(t, a, change)
		look := w.tap
		w.tap = func(from *host, d *Datagram) bool {
			for _, s := range b.e.sas {
				if s.hs != nil && name == "none, not told" {
					s.hs.auths.offersNone = false
				}
			}
			return look(from, d)
		}
		closedWith(t, w, a, b, peerOf(a, b), NotifyError{wire.InvalidSyntax})
		if count[AuthorizationWanted](b) != 0 {
			t.Errorf("%s: somebody was asked", name)
		}
	}
}

// A Child SA can be asked for later, within what the Authorization allows.
func TestChildlessThenChild(t *testing.T) {
	a, b, w := pairOf(t)
	p := peerOf(a, b)
	p.Childless = true
	id := w.initiate(a, p)
	w.run(20 * time.Second)
	w.take(a, a.e.AddChild(w.now, id, ipsec.Selector{}))
	if !w.until(time.Second, bothUp(a, b)) {
		t.Fatalf("not up\n%s\n%s", a.dump(), b.dump())
	}
	checkPaired(t, a, b)
	w.run(2 * time.Minute)
	if count[Closed](a)+count[Closed](b) != 0 {
		t.Error("closed, though it has a Child SA")
	}
}
