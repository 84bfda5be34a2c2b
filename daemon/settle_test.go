package daemon

import "testing"

// Memory is given back in the calm after a burst: once, and once more a little later; not while the burst lasts, and not for what a quiet daemon allocates.
func TestSettlesAfterABurst(t *testing.T) {
	const mb = 1 << 20
	var s settler
	allocated := uint64(0)
	for i, tick := range []struct {
		fresh, live uint64
		want        bool
	}{
		{4 * mb, 4 * mb, false},    // the start
		{0, 4 * mb, false},         // calm, but it is not worth while
		{100 * mb, 40 * mb, false}, // a burst
		{60 * mb, 60 * mb, false},  // its end
		{1 * mb, 60 * mb, true},    // calm
		{1 * mb, 30 * mb, false},
		{100 * mb, 30 * mb, false}, // another one
		{1 * mb, 30 * mb, true},
		{1 * mb, 30 * mb, false},
		{1 * mb, 30 * mb, false},
		{1 * mb, 30 * mb, true},  // what its peers have kept for a while
		{1 * mb, 30 * mb, false}, // what a quiet daemon allocates
		{1 * mb, 30 * mb, false},
		{1 * mb, 30 * mb, false},
		{1 * mb, 30 * mb, false},
		{3 * mb, 30 * mb, false},
		{4 * mb, 30 * mb, true},  // until it has come together
		{1 * mb, 30 * mb, false}, // once
		{1 * mb, 30 * mb, false},
		{1 * mb, 30 * mb, false},
		{1 * mb, 30 * mb, false},
	} {
		allocated += tick.fresh
		if got := s.due(allocated, tick.live); got != tick.want {
			t.Errorf("tick %d: got %v, want %v", i, got, tick.want)
		}
	}
}
