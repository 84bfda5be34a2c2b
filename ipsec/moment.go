package ipsec

import "time"

// Moment is a point in time in eight octets, for what is kept of thousands of peers: a time.Time is three times as long. It counts nanoseconds by a clock
// that is never set; since when, is its owner's. Zero: never, or not set.
type Moment int64

// Add and the others are time.Time's.
func (m Moment) Add(d time.Duration) Moment { return m + Moment(d) }

// Sub is how long m is after n.
func (m Moment) Sub(n Moment) time.Duration { return time.Duration(m - n) }

// Before reports whether m is before n.
func (m Moment) Before(n Moment) bool { return m < n }

// After reports whether m is after n.
func (m Moment) After(n Moment) bool { return m > n }

// IsZero reports whether m is not set.
func (m Moment) IsZero() bool { return m == 0 }
