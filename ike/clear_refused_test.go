package ike

import (
	"testing"
	"time"

	"tacit/ike/wire"
)

// The responder hears that what came from it in clear was dropped when the initiator was asked to say so, and only then, whether the name is told first or
// after; without a Child SA nothing could be sent again. The initiator's own event never says so.
func TestClearRefused(t *testing.T) {
	for _, tell := range []Tell{TellFirst, TellAfter} {
		for _, tt := range []struct{ asked, childless, want bool }{{true, false, true}, {false, false, false}, {true, true, false}} {
			a, b, w, p := toldPair(t, tell)
			p.ClearRefused, p.Childless = tt.asked, tt.childless
			w.initiate(a, p)
			w.run(time.Second)
			ours, ok := find[Established](a)
			theirs, up := find[Established](b)
			if !ok || !up || ours.ClearRefused || theirs.ClearRefused != tt.want {
				t.Errorf("tell %d, %+v: initiator %v %v, responder %v %v", tell, tt, ok, ours.ClearRefused, up, theirs.ClearRefused)
			}
			checkSound(t, a, b)
		}
	}
}

// Others may mean something else by a number of private use (RFC 7296, 3.10.1): without our data it says nothing, and is no error.
func TestClearRefusedOfOthers(t *testing.T) {
	for _, data := range []string{"", "tacit\x00", "taci", "somebody's"} {
		a, b, w := pairOf(t)
		w.tap = rewrite(t, a, func(ps []wire.Payload) []wire.Payload { return append(ps, status(wire.ClearRefused, []byte(data))) })
		w.initiate(a, peerOf(a, b))
		w.run(time.Second)
		if e, ok := find[Established](b); !ok || e.ClearRefused || count[ChildUp](b) != 1 {
			t.Errorf("%q: %+v\n%s", data, e, b.dump())
		}
	}
}

// A responder that says it in its answer is not heard: it was the initiator's packets that made nobody begin.
func TestClearRefusedInAnswer(t *testing.T) {
	a, b, w := pairOf(t)
	w.tap = rewrite(t, b, func(ps []wire.Payload) []wire.Payload {
		return append(ps, status(wire.ClearRefused, []byte(wire.ClearRefusedData)))
	})
	w.initiate(a, peerOf(a, b))
	w.run(time.Second)
	if e, ok := find[Established](a); !ok || e.ClearRefused || count[ChildUp](a) != 1 {
		t.Errorf("%+v\n%s", e, a.dump())
	}
}
