package e2e

import (
	"testing"
	"time"
)

// TestTrafficHelpers tries the helpers between two hosts without tacit, so that a failure elsewhere is not theirs.
func TestTrafficHelpers(t *testing.T) {
	needE2E(t)
	w := newWorld(t)
	for _, addr := range both(w.bob) {
		datagrams(t, w.alice, w.bob, addr, 5, 1, 1472, 9000)
		transfer(t, w.alice, w.bob, addr, 20_000_000)
		p, err := ping(w.alice, both(w.alice)[0], both(w.bob)[0], 500, time.Millisecond)
		if addr.Is6() {
			p, err = ping(w.alice, both(w.alice)[1], addr, 500, time.Millisecond)
		}
		if err != nil || p.received != 500 || p.repeated != 0 {
			t.Errorf("ping %v: %v, %v", addr, p, err)
		}
	}
	w.sync()
	if n, err := w.tap.Dropped(); n != 0 || err != nil {
		t.Errorf("the tap missed %d frames (%v)", n, err)
	}
	if c := w.tap.BetweenHosts(w.alice, w.bob); c.Clear() < 30_000 || c.ESP() != 0 {
		t.Errorf("tap: got %v", c)
	}
}
