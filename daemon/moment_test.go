package daemon

import (
	"testing"
	"time"
)

// A moment is as far from now as the time that it is of, by whatever clock the time was read, and never is one that is not set.
func TestMoments(t *testing.T) {
	for name, now := range map[string]time.Time{
		"a process's":   time.Now(),
		"a wall's":      time.Now().Round(0),
		"a test's":      time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		"a later one's": time.Date(2090, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		for _, ago := range []time.Duration{0, time.Second, -time.Second, 24 * time.Hour} {
			for _, when := range []time.Time{now.Add(-ago), now.Add(-ago).Round(0)} {
				m := momentOf(now, when)
				if got := at(now).Sub(m); got != ago || !timeOf(now, m).Equal(when) || !readingOf(when).time().Equal(when) || m <= 0 {
					t.Errorf("%s clock, %v ago: moment %d, %v ago, %v", name, ago, m, got, timeOf(now, m))
				}
			}
		}
	}
	if now := time.Now(); !momentOf(now, time.Time{}).IsZero() || !timeOf(now, 0).IsZero() || !readingOf(time.Time{}).time().IsZero() {
		t.Error("the zero time is a moment")
	}
}

// What most peers share is never changed.
func TestNobodyAskedIsShared(t *testing.T) {
	p := newPlay(t)
	if p.p.anybody != nobodyAsked {
		t.Fatal("a new peer has its own")
	}
	p.p.asking().failed++
	if q := newPlay(t); p.p.anybody == nobodyAsked || q.p.anybody.failed != 0 {
		t.Error("another peer has it too")
	}
}
