package esp

import (
	"math/rand/v2"
	"testing"
)

//tacit:attack A-49 a window of 1,024 and more
func TestWindow(t *testing.T) {
	type step struct {
		seq uint64
		ok  bool
	}
	const w = WindowSize
	for name, steps := range map[string][]step{
		"zero is never valid":    {{0, false}, {1, true}, {0, false}},
		"in order":               {{1, true}, {2, true}, {3, true}, {3, false}, {1, false}},
		"out of order":           {{5, true}, {3, true}, {4, true}, {3, false}, {1, true}, {2, true}, {5, false}},
		"the oldest that counts": {{w, true}, {1, true}, {1, false}, {w + 1, true}, {1, false}, {2, true}, {w + 2, true}, {2, false}, {3, true}},
		"just out of it":         {{w + 1, true}, {1, false}},
		"jump over everything":   {{1, true}, {2, true}, {1 << 40, true}, {2, false}, {1<<40 - w + 1, true}, {1<<40 - w, false}},
		"jump by one ring":       {{64, true}, {64 + 64*windowBlocks, true}, {64, false}, {64 + 64, false}, {64*windowBlocks + 63, true}},
		"jump by half":           {{100, true}, {100 + w/2, true}, {100, false}, {101, true}, {100 + w, true}, {101, false}, {100 + w/2, false}},
		"last of 32 bits":        {{1<<32 - 1, true}, {1<<32 - 1, false}, {1<<32 - 2, true}},
		"last of 64 bits":        {{1<<64 - 1, true}, {1<<64 - 1, false}, {1<<64 - w, true}, {1<<64 - w - 1, false}},
	} {
		var win Window
		for i, s := range steps {
			if got := win.Check(s.seq); got != s.ok {
				t.Errorf("%s: step %d: Check(%d) is %v, want %v", name, i, s.seq, got, s.ok)
			}
			before := win
			if got := win.Add(s.seq); got != s.ok {
				t.Errorf("%s: step %d: Add(%d) is %v, want %v", name, i, s.seq, got, s.ok)
			}
			if !s.ok && win != before {
				t.Errorf("%s: step %d: a refused number changed the window", name, i)
			}
		}
	}
	if WindowSize < 1024 {
		t.Errorf("the window has %d packets, want at least 1024 (TRUST.md A-49)", WindowSize)
	}
}

// model is what a window means, without a thought for speed.
type model struct {
	top  uint64
	seen map[uint64]bool
}

func (m *model) add(seq uint64) bool {
	if seq == 0 || m.seen[seq] || seq <= m.top && m.top-seq >= WindowSize {
		return false
	}
	m.seen[seq] = true
	m.top = max(m.top, seq)
	return true
}

// walk draws numbers around the top: near, far, behind, ahead.
func walk(r *rand.Rand, top uint64) uint64 {
	switch r.IntN(10) {
	case 0:
		return top + r.Uint64N(3*WindowSize)
	case 1, 2, 3:
		return top + 1 + r.Uint64N(3)
	case 4:
		return top - min(top, r.Uint64N(2*WindowSize))
	default:
		return top - min(top, r.Uint64N(WindowSize+2))
	}
}

func TestWindowAgainstModel(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		start := []uint64{0, 1<<32 - 5000, 1<<33 - 1, 1<<63 - 3}[seed%4]
		var w Window
		m := model{seen: map[uint64]bool{}}
		w.Add(start)
		m.add(start)
		for i := range 4000 {
			seq := walk(r, m.top)
			check, want := w.Check(seq), m.add(seq)
			if got := w.Add(seq); got != want || check != want || w.top != m.top {
				t.Fatalf("seed %d, step %d: number %d at top %d: Check %v, Add %v, want %v", seed, i, seq, m.top, check, got, want)
			}
		}
	}
}

func TestInfer(t *testing.T) {
	const w = WindowSize
	for _, tt := range []struct {
		top  uint64
		low  uint32
		want uint64
		ok   bool
	}{
		{0, 1, 1, true},
		{0, 1 << 31, 1 << 31, true},
		{0, 1<<32 - 1, 0, false},                                  // would be before the first
		{10, 1<<32 - 1, 0, false},                                 //
		{w, 1, 1, true},                                           // oldest in the window
		{w, 0, 1 << 32, true},                                     // below it: the next subspace
		{1<<32 - 1, 0, 1 << 32, true},                             // the wrap
		{1<<32 - 1, 5, 1<<32 + 5, true},                           //
		{1<<32 - 1, 1<<32 - w, 1<<32 - w, true},                   // oldest
		{1<<32 - 1, 1<<32 - w - 1, 1<<33 - w - 1, true},           // older: taken for newer, and the ICV will fail
		{1 << 32, 1<<32 - 1, 1<<32 - 1, true},                     // from before the wrap
		{1 << 32, 0, 1 << 32, true},                               //
		{1<<32 + w, 1, 1<<32 + 1, true},                           //
		{1<<64 - 1, 0, 0, false},                                  // after the last
		{1<<64 - 1, 1<<32 - 1, 1<<64 - 1, true},                   //
		{0xfffffffe_00000005, 1<<32 - 3, 1<<64 - 1<<33 - 3, true}, //
	} {
		win := Window{top: tt.top}
		got, ok := win.Infer(tt.low)
		if ok != tt.ok || ok && got != tt.want {
			t.Errorf("top %#x, low %#x: %#x, %v, want %#x, %v", tt.top, tt.low, got, ok, tt.want, tt.ok)
		}
	}
}

// Whatever is at most a window behind and less than 2^32 - WindowSize ahead is inferred right.
func TestInferAgainstTruth(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for range 200000 {
		top := r.Uint64N(1<<34) + 1
		if r.IntN(3) == 0 {
			top = r.Uint64N(5)<<32 + r.Uint64N(2*WindowSize) + 1
		}
		seq := top + r.Uint64N(1<<32-WindowSize)
		if r.IntN(2) == 0 {
			seq = top - min(top-1, r.Uint64N(WindowSize))
		}
		w := Window{top: top}
		if got, ok := w.Infer(uint32(seq)); !ok || got != seq {
			t.Fatalf("top %#x: number %#x was inferred as %#x, %v", top, seq, got, ok)
		}
	}
}
