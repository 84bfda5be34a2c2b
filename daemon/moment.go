package daemon

import (
	"time"

	"tacit/ipsec"
)

// moment is a point in time since a while before this process began, of which a peer keeps a dozen.
type moment = ipsec.Moment

// past is how long before the process moments begin: the clock of a test may stand in another decade.
const past = 100 * 365 * 24 * time.Hour

var began = time.Now()

// at is now, which must be what a clock said and not what was read of a file or a kernel's counter: for that there is momentOf.
func at(now time.Time) moment { return moment(past + now.Sub(began)) }

// momentOf is the moment of a time that tells of the wall clock alone, which may have been set since we began: what counts is how long it is from now.
func momentOf(now, t time.Time) moment {
	if t.IsZero() {
		return 0
	}
	return at(now).Add(t.Sub(now))
}

// timeOf is its opposite.
func timeOf(now time.Time, m moment) time.Time {
	if m.IsZero() {
		return time.Time{}
	}
	return now.Add(m.Sub(at(now)))
}

// reading is what a data plane has read of the wall clock, in nanoseconds since 1970; zero: never.
type reading int64

func readingOf(t time.Time) reading {
	if t.IsZero() {
		return 0
	}
	return reading(t.UnixNano())
}

func (r reading) time() time.Time {
	if r == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(r))
}

// usage is when packets of a Pair came and left last, by the data plane's clock.
type usage struct{ in, out reading }

// moments are those of both, as of now.
func (u usage) moments(now time.Time) (in, out moment) {
	return momentOf(now, u.in.time()), momentOf(now, u.out.time())
}

func latest(ts ...time.Time) (t time.Time) {
	for _, x := range ts {
		if x.After(t) {
			t = x
		}
	}
	return t
}
