package daemon

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"tacit/ike"
	"tacit/ipsec"
)

// A tick that comes before the peer's turn has nothing to do: in random histories a peer that is looked after each second does nothing between its turns.
func TestTicksBetweenTurnsDoNothing(t *testing.T) {
	for seed := range uint64(1000) {
		h := &history{play: newPlay(t), r: rand.New(rand.NewPCG(seed, 7)), next: 1000}
		h.p.linger = 300 * time.Second
		for range 30 {
			if what := h.any(); what != "" {
				h.told = append(h.told, what)
				h.due = h.p.turn(h.now)
			}
			seconds := h.r.IntN(40)
			if h.r.IntN(6) == 0 {
				seconds = h.r.IntN(700)
			}
			for range seconds {
				h.second(t, seed)
			}
		}
		if t.Failed() {
			return
		}
	}
}

// history is what happens to a peer, and when it wants to be looked after.
type history struct {
	*play
	r    *rand.Rand
	next ike.SAID // of a peer's SAs
	due  time.Time
	told []string
}

// second is one in which nothing happens but its tick.
func (h *history) second(t *testing.T, seed uint64) {
	t.Helper()
	h.now = h.now.Add(tick)
	state, done := h.p.state, len(h.done)
	h.event(evTick{})
	did := len(h.done) > done || h.p.state != state
	if did && h.now.Before(h.due) {
		t.Errorf("seed %d: %v before its turn a tick did %+v, and %v became %v, after %s", seed, h.due.Sub(h.now), h.done[done:], state, h.p.state, strings.Join(h.told, ", "))
	}
	if did || !h.now.Before(h.due) {
		h.due = h.p.turn(h.now)
	}
}

// any has something happen, and says what; nothing if it cannot now.
func (h *history) any() string {
	p := h.p
	key := byte(h.r.IntN(3))
	switch h.r.IntN(8) {
	case 0:
		h.lookup("bob.example.", 1+key%2)
		return fmt.Sprint("a lookup with key ", 1+key%2)
	case 1:
		h.next++
		h.established(h.next, false, key)
		return fmt.Sprint("an SA of the peer's with key ", key)
	case 2:
		h.event(evAcquire{})
		return "a packet"
	case 3:
		h.event(evContest{})
		return "a contest"
	case 4:
		if p.attempt == nil {
			return ""
		}
		id := p.attempt.id
		if h.r.IntN(3) == 0 {
			h.event(ike.Closed{SA: id, Err: ike.ErrAuthentication})
			return "a failure"
		}
		if p.attempt.anybody {
			h.established(id, true, 0)
		} else {
			h.established(id, true, 1)
		}
		return "an SA of ours"
	}
	if len(p.sas) == 0 {
		return ""
	}
	a := p.sas[h.r.IntN(len(p.sas))]
	switch h.r.IntN(5) {
	case 0:
		h.event(evFirst{a.pair.ID})
		return "a first packet"
	case 1:
		h.event(ike.Alive{SA: a.id})
		return "a sign of life"
	case 2:
		h.event(ike.ChildUp{SA: a.id, Pair: ipsec.Pair{ID: uint32(a.id) + 5000}})
		return "another child"
	case 3:
		err := error(nil)
		if h.r.IntN(2) == 0 {
			err = errors.New("gone")
		}
		h.ended(a.id, err)
		return fmt.Sprint("an end: ", err)
	}
	u := ipsec.Usage{Armed: a.armed, LastIn: a.usage.in.time(), LastOut: a.usage.out.time()}
	if h.r.IntN(2) == 0 {
		u.LastIn, u.Armed = h.now, true
	}
	if h.r.IntN(2) == 0 {
		u.LastOut = h.now.Add(time.Millisecond)
	}
	h.event(&evUsage{a.pair.ID, u})
	return fmt.Sprintf("use: in %v, out %v", u.LastIn.Equal(h.now), u.LastOut.After(h.now))
}
