package ike

import (
	"testing"
	"time"

	"tacit/ike/wire"
)

// The responder hears that what came from it in clear was dropped when the initiator was asked to say so, and only then, whether the name is told first or
// after; without a Child SA nothing could be sent again. The initiator itself hears nothing.
func TestClearRefused(t *testing.T) {
	for _, tell := range []Tell{TellFirst, TellAfter} {
		for _, tt := range []struct{ asked, childless, want bool }{{true, false, true}, {false, false, false}, {true, true, false}} {
			a, b, w, p := toldPair(t, tell)
			p.ClearRefused, p.Childless = tt.asked, tt.childless
			w.initiate(a, p)
			w.run(time.Second)
			if count[Established](a) != 1 || count[Established](b) != 1 || count[ClearRefused](a) != 0 || count[ClearRefused](b) != map[bool]int{true: 1}[tt.want] {
				t.Errorf("tell %d, %+v\n%s\n%s", tell, tt, a.dump(), b.dump())
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
		if count[ClearRefused](b) != 0 || count[ChildUp](b) != 1 {
			t.Errorf("%q\n%s", data, b.dump())
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
	if count[ClearRefused](a) != 0 || count[ChildUp](a) != 1 {
		t.Errorf("%s", a.dump())
	}
}

// Either end says it later, too, in a probe, also of an IKE SA that is being rekeyed; a probe by itself says nothing.
func TestClearRefusedLater(t *testing.T) {
	for _, rekey := range []bool{false, true} {
		a, b, w := pairOf(t)
		id := establish(t, w, a, b, peerOf(a, b))
		other, _ := find[Established](b)
		for _, end := range []struct {
			from, to *host
			id       SAID
		}{{a, b, id}, {b, a, other.SA}} {
			w.take(end.from, end.from.e.Do(w.now, end.id, Probe))
			w.run(time.Second)
			if count[ClearRefused](end.to) != 0 {
				t.Errorf("%s hears it from a probe", end.to.name)
			}
			if rekey {
				w.take(end.from, end.from.e.Do(w.now, end.id, RekeyIKE))
			}
			w.take(end.from, end.from.e.Do(w.now, end.id, TellRefused))
			w.run(time.Second)
			w.take(end.from, end.from.e.Do(w.now, end.id, Probe))
			w.run(time.Second)
			if count[ClearRefused](end.to) != 1 || count[Alive](end.from) == 0 {
				t.Errorf("rekey %v: %s heard it %d times\n%s", rekey, end.to.name, count[ClearRefused](end.to), end.to.dump())
			}
		}
		checkSound(t, a, b)
	}
}
