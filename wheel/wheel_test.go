package wheel

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
	"unsafe"
)

type thing struct {
	place Place
	want  time.Time // zero: it wants nothing
	met   time.Time
}

func (t *thing) Place() *Place { return &t.place }

var start = time.Unix(1000, 0)

// Everybody is looked at in the tick in which he wants to be, and nobody is twice in one, whatever else is set and however unevenly time passes.
func TestEverybodysTurnComes(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := Wheel[*thing]{Tick: time.Second}
		things := make([]*thing, 30)
		for i := range things {
			things[i] = &thing{}
		}
		now := start
		want := func(x *thing, in time.Duration) {
			x.want = now.Add(in)
			w.Set(x, now, x.want)
		}
		looks := 0
		for range 400 {
			switch r.IntN(8) {
			case 0: // longer than the wheel is round
				now = now.Add(time.Duration(r.Int64N(int64(3 * turns * time.Second))))
			default:
				now = now.Add(time.Duration(r.Int64N(int64(2 * time.Second))))
			}
			for _, x := range w.Due(now) {
				looks++
				switch {
				case x.met.Equal(now):
					t.Fatalf("seed %d: looked at twice at once", seed)
				case x.want.IsZero():
				case x.want.After(now):
					w.Set(x, now, x.want)
				default:
					x.want = time.Time{}
				}
				x.met = now
			}
			for _, x := range things {
				// A tick begins at a whole second, so what is wanted in the tick that has begun has the next.
				if !x.want.IsZero() && now.Sub(x.want) >= time.Second {
					t.Fatalf("seed %d: at %v nobody has looked at what wanted it at %v", seed, now.Sub(start), x.want.Sub(start))
				}
			}
			for range r.IntN(4) {
				x := things[r.IntN(len(things))]
				in := time.Duration(r.Int64N(int64(2 * turns * time.Second)))
				if !x.want.IsZero() && r.IntN(2) == 0 { // sooner than it wanted
					in = x.want.Sub(now) / 2
				}
				if x.want.IsZero() || now.Add(in).Before(x.want) {
					want(x, in)
				}
			}
		}
		if looks < 100 {
			t.Errorf("seed %d: %d looks", seed, looks)
		}
	}
}

// The wheel keeps nobody whom it has given out, and its first tick may be long past.
func TestNobodyIsKept(t *testing.T) {
	w := Wheel[*thing]{Tick: 250 * time.Millisecond}
	a, b := &thing{}, &thing{}
	w.Due(start.Add(-time.Hour))
	w.Set(a, start, start)
	if got := w.Due(start); !slices.Equal(got, []*thing{a}) {
		t.Errorf("at once: %v", got)
	}
	w.Set(b, start, start.Add(time.Hour))
	w.Set(b, start, start.Add(time.Second)) // sooner
	w.Set(b, start, start.Add(time.Minute))
	if got := w.Due(start.Add(999 * time.Millisecond)); len(got) != 0 {
		t.Errorf("before its tick: %v", got)
	}
	if got := w.Due(start.Add(24 * time.Hour)); !slices.Equal(got, []*thing{b}) {
		t.Errorf("a day later: %v", got)
	}
	if got := w.Due(start.Add(48 * time.Hour)); len(got) != 0 || a.place != 0 || b.place != 0 {
		t.Errorf("still there: %v, %v, %v", got, a.place, b.place)
	}
	for i, s := range w.stops {
		if s != nil {
			t.Errorf("tick %d is not empty", i)
		}
	}
	w.Set(a, start, start) // the clock was set back: the next tick is the earliest
	if got := w.Due(start.Add(48*time.Hour + 250*time.Millisecond)); !slices.Equal(got, []*thing{a}) {
		t.Errorf("from the past: %v", got)
	}
}

// BenchmarkWheel is a look at one thing of so many.
func BenchmarkWheel(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := Wheel[*thing]{Tick: time.Second}
			now := start
			for i := range n {
				w.Set(&thing{}, now, now.Add(time.Duration(i%8)*time.Second))
			}
			looks := 0
			b.ResetTimer()
			for looks < b.N {
				now = now.Add(time.Second)
				for _, x := range w.Due(now) {
					w.Set(x, now, now.Add(8*time.Second))
					looks++
				}
			}
		})
	}
}

// asleep is what time.Now says d after t where the monotonic clock has seen nothing of it: a machine was suspended, or its clock set.
func asleep(t time.Time, d time.Duration) time.Time {
	t = t.Add(d)
	type raw struct { // of a time.Time with both clocks
		wall uint64
		ext  int64
		loc  *time.Location
	}
	(*raw)(unsafe.Pointer(&t)).ext -= int64(d)
	return t
}

// A time of the wall clock alone counts by how long it is from now, whatever the two clocks have come to since the beginning.
func TestWallClock(t *testing.T) {
	for _, slept := range []time.Duration{time.Hour, -time.Hour} {
		w := Wheel[*thing]{Tick: time.Second}
		begun := time.Now()
		w.Due(begun)
		now := asleep(begun, slept)
		if now.Sub(begun) != 0 || now.Round(0).Sub(begun.Round(0)) != slept {
			t.Fatalf("asleep: %v, %v", now.Sub(begun), now.Round(0).Sub(begun.Round(0)))
		}
		x := &thing{}
		w.Set(x, now, now.Add(2*time.Second).Round(0))
		for s := range 3 {
			if got := w.Due(now.Add(time.Duration(s) * time.Second)); (len(got) > 0) != (s == 2) {
				t.Errorf("clocks %v apart, after %d s: %v", slept, s, got)
			}
		}
	}
}

// One that is to be looked at in a year keeps nobody waiting.
func TestFarFirst(t *testing.T) {
	w := Wheel[*thing]{Tick: time.Second}
	far, x := &thing{}, &thing{}
	w.Set(far, start, start.Add(400*24*time.Hour))
	w.Set(x, start, start.Add(2*time.Second))
	w.Due(start)
	if got := w.Due(start.Add(2 * time.Second)); !slices.Equal(got, []*thing{x}) {
		t.Errorf("got %v", got)
	}
}
