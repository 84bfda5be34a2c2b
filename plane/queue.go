package plane

import (
	"sync/atomic"
	"time"
)

// Bounds of packets that wait for a Pair, and by themselves of copies of what has left (TRUST.md I4).
const (
	HoldTime    = 3 * time.Second
	HoldPerPeer = 64      // packets
	HoldPackets = 4096    // packets, of all peers
	HoldBytes   = 8 << 20 // octets, of all peers, where the data plane keeps them
	// HoldAddresses are the addresses that may wait at once of which nothing is known but the rule of a prefix.
	HoldAddresses = 1024
	// CopyAddresses are those of them of which copies may be kept: what waits goes before.
	CopyAddresses = HoldAddresses / 2

	acquireInterval = time.Second
)

// Budget bounds what all queues of a data plane hold together.
type Budget struct{ packets, bytes atomic.Int64 }

// take asks for one packet of n octets.
func (b *Budget) take(n int) bool {
	packets, bytes := b.packets.Add(1), b.bytes.Add(int64(n))
	if packets <= HoldPackets && bytes <= HoldBytes {
		return true
	}
	b.give(n)
	return false
}

// give returns what take gave.
func (b *Budget) give(n int) {
	b.packets.Add(-1)
	b.bytes.Add(int64(-n))
}

// Held is a packet that waits.
type Held[P any] struct {
	Packet P
	size   int // octets of the Budget
	since  time.Time
}

// Fate is what becomes of packets that come to the data plane and find no SA.
type Fate uint8

const (
	// Drop drops them.
	Drop Fate = iota
	// Wait lets them wait for a Pair, or for another fate.
	Wait
	// Release lets them leave in clear.
	Release
	// Copy does too, and keeps copies.
	Copy
)

// Queue are the packets of one flow that wait, in their order, and copies of those that left in clear. Its owner locks it.
type Queue[P any] struct {
	Budget *Budget
	Copies *Budget // of copies, so that these take no room from what waits

	list     []Held[P]
	copies   []Held[P]
	fate     Fate
	then     Fate      // after until
	until    time.Time // zero: the fate stays until another is set
	acquired time.Time // the last Acquire
}

// Len is how many wait.
func (q *Queue[P]) Len() int { return len(q.list) }

// Size is how many there are, with the copies.
func (q *Queue[P]) Size() int { return len(q.list) + len(q.copies) }

// Fate is that of a packet that comes now. A queue begins with Drop.
func (q *Queue[P]) Fate(now time.Time) Fate {
	if !q.until.IsZero() && !now.Before(q.until) {
		return q.then
	}
	return q.fate
}

// Put makes a packet wait, which takes size octets of the Budget: the caller sets its Packet. A nil one means that the packet must be
// dropped. acquire says that the event is due.
func (q *Queue[P]) Put(size int, now time.Time) (h *Held[P], acquire bool) {
	if q.Fate(now) != Wait {
		return nil, false
	}
	acquire = q.Due(now)
	if len(q.list) >= HoldPerPeer || !q.Budget.take(size) {
		return nil, acquire
	}
	q.list = append(q.list, Held[P]{size: size, since: now})
	return &q.list[len(q.list)-1], acquire
}

// Keep keeps a copy, of size octets, of a packet that leaves in clear: the caller sets its Packet. A nil one means that there is no room. acquire says that
// the event is due: never without room, since a flow that keeps nothing is forgotten, and would raise it for each packet.
func (q *Queue[P]) Keep(size int, now time.Time) (h *Held[P], acquire bool) {
	if len(q.copies) >= HoldPerPeer || !q.Copies.take(size) {
		return nil, false
	}
	q.copies = append(q.copies, Held[P]{size: size, since: now})
	return &q.copies[len(q.copies)-1], q.Due(now)
}

// Repeat takes the copies out that are not too old.
func (q *Queue[P]) Repeat(now time.Time) []Held[P] {
	fresh := q.copies[overdue(q.copies, now):]
	q.copies = drop(q.copies, len(q.copies), q.Copies)
	return fresh
}

// Due reports whether Acquire is to be raised, at most once in a while, and notes that it was.
func (q *Queue[P]) Due(now time.Time) bool {
	if now.Sub(q.acquired) < acquireInterval {
		return false
	}
	q.acquired = now
	return true
}

// Take empties the queue: what may go, and what waited too long.
func (q *Queue[P]) Take(now time.Time) (ready, late []Held[P]) {
	n := overdue(q.list, now)
	late, ready = q.list[:n], q.list[n:]
	q.remove(len(q.list))
	return ready, late
}

// Expire takes out what waited too long. It forgets old copies.
func (q *Queue[P]) Expire(now time.Time) (late []Held[P]) {
	q.copies = drop(q.copies, overdue(q.copies, now), q.Copies)
	n := overdue(q.list, now)
	if q.Fate(now) != Wait && q.then != Wait { // what waits by the next fate may have come since now
		n = len(q.list)
	}
	late = q.list[:n]
	q.remove(n)
	return late
}

// Settle says what becomes of packets from now on, until the given time, or if that is zero until it is called again; and what after that. With
// any fate but Wait those that wait are taken out. Copies stay, unless nothing may leave any more.
func (q *Queue[P]) Settle(f Fate, until time.Time, then Fate) (out []Held[P]) {
	q.fate, q.until, q.then = f, until, then
	if f != Wait {
		out = q.list
		q.remove(len(q.list))
	}
	if f == Drop {
		q.copies = drop(q.copies, len(q.copies), q.Copies)
	}
	return out
}

func (q *Queue[P]) remove(n int) {
	q.list = drop(q.list, n, q.Budget)
	if q.Size() == 0 {
		q.acquired = time.Time{}
	}
}

// overdue is how many are too old.
func overdue[P any](list []Held[P], now time.Time) (n int) {
	for n < len(list) && now.Sub(list[n].since) >= HoldTime {
		n++
	}
	return n
}

// drop gives the first n back to their budget, and returns the others.
func drop[P any](list []Held[P], n int, b *Budget) []Held[P] {
	for _, h := range list[:n] {
		b.give(h.size)
	}
	if n == len(list) {
		return nil
	}
	return list[n:]
}
