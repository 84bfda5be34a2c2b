package plane

import (
	"testing"
	"time"
)

func TestQueue(t *testing.T) {
	var budget Budget
	now := time.Unix(1000, 0)
	q := Queue[int]{Budget: &budget}
	if h, acquire := q.Put(1, now); acquire || h != nil {
		t.Error("a packet waits though nothing holds it")
	}
	q.Settle(Wait, now.Add(10*time.Second), Drop)
	for i := range HoldPerPeer + 5 {
		h, acquire := q.Put(1, now)
		if acquire != (i == 0) || (h != nil) != (i < HoldPerPeer) {
			t.Errorf("packet %d: acquire %v, %v", i, acquire, h)
		}
		if h != nil {
			h.Packet = i
		}
	}
	if _, acquire := q.Put(0, now.Add(acquireInterval)); !acquire {
		t.Error("no acquire again after a second")
	}
	if n := len(q.Expire(now.Add(HoldTime - time.Millisecond))); n != 0 {
		t.Errorf("%d packets expired early", n)
	}
	if n := len(q.Expire(now.Add(HoldTime))); n != HoldPerPeer || q.Len() != 0 {
		t.Errorf("%d packets expired, want %d", n, HoldPerPeer)
	}
	q.Put(1, now)
	if n := len(q.Settle(Drop, time.Time{}, Drop)); n != 1 {
		t.Errorf("%d packets dropped at the end of the hold, want 1", n)
	}
	if p, b := budget.packets.Load(), budget.bytes.Load(); p != 0 || b != 0 {
		t.Errorf("budget: %d packets, %d octets are still taken", p, b)
	}
}

// Packets leave in their order; those that waited too long do not.
func TestQueueTake(t *testing.T) {
	var budget Budget
	now := time.Unix(1000, 0)
	q := Queue[int]{Budget: &budget}
	q.Settle(Wait, now.Add(time.Minute), Drop)
	for i := range 4 {
		h, _ := q.Put(1, now.Add(time.Duration(i)*time.Second))
		h.Packet = i
	}
	ready, late := q.Take(now.Add(HoldTime + time.Second))
	if len(late) != 2 || len(ready) != 2 || ready[0].Packet != 2 || ready[1].Packet != 3 {
		t.Errorf("got %v ready, %v late", ready, late)
	}
	if _, acquire := q.Put(1, now.Add(5*time.Second)); !acquire {
		t.Error("an empty queue's next packet raises no Acquire")
	}
}

func TestBudget(t *testing.T) {
	var b Budget
	for range HoldPackets {
		if !b.take(1) {
			t.Fatal("refused early")
		}
	}
	if b.take(1) {
		t.Error("more packets than may wait")
	}
	b.give(1)
	if b.take(HoldBytes) || !b.take(1) {
		t.Error("the octets are not counted right")
	}
}

// Copies of what leaves in clear have bounds and a Budget of their own; they come out once, in their order, and not when they are old.
func TestCopies(t *testing.T) {
	var budget, copies Budget
	now := time.Unix(1000, 0)
	fresh := func() *Queue[int] {
		q := &Queue[int]{Budget: &budget, Copies: &copies}
		q.Settle(Copy, time.Time{}, Drop)
		return q
	}
	q := fresh()
	for i := range HoldPerPeer + 5 {
		h, acquire := q.Keep(1, now.Add(time.Duration(i)*time.Millisecond))
		if acquire != (i == 0) || (h != nil) != (i < HoldPerPeer) {
			t.Errorf("copy %d: acquire %v, %v", i, acquire, h)
		}
		if h != nil {
			h.Packet = i
		}
	}
	if p := budget.packets.Load(); p != 0 || q.Len() != 0 || q.Size() != HoldPerPeer {
		t.Errorf("copies wait: %d packets of the budget, %d in the queue, size %d", p, q.Len(), q.Size())
	}
	if h, _ := q.Put(1, now); h != nil {
		t.Error("a packet waits where copies are kept")
	}
	if late := q.Expire(now.Add(HoldTime + 9*time.Millisecond)); len(late) != 0 || q.Size() != HoldPerPeer-10 {
		t.Errorf("%d dropped, %d left, want none, %d", len(late), q.Size(), HoldPerPeer-10)
	}
	if _, acquire := q.Keep(1, now.Add(HoldTime)); !acquire {
		t.Error("no acquire again, later")
	}
	again := q.Repeat(now.Add(HoldTime + 19*time.Millisecond))
	if len(again) != HoldPerPeer-20+1 || again[0].Packet != 20 || again[1].Packet != 21 {
		t.Errorf("again: %v", again)
	}
	if len(q.Repeat(now)) != 0 || q.Size() != 0 || copies.packets.Load() != 0 || copies.bytes.Load() != 0 {
		t.Errorf("twice, or room is taken yet: %d packets", copies.packets.Load())
	}
	for fate, want := range map[Fate]int{Release: 1, Wait: 1, Copy: 1, Drop: 0} { // what may not leave any more is not sent again either
		q := fresh()
		q.Keep(1, now)
		if out := q.Settle(fate, time.Time{}, Drop); len(out) != 0 {
			t.Errorf("fate %d: %d copies came out as if they had waited", fate, len(out))
		}
		if got := len(q.Repeat(now)); got != want {
			t.Errorf("fate %d: %d copies, want %d", fate, got, want)
		}
	}
	if copies.packets.Load() != 0 {
		t.Errorf("%d places are taken yet", copies.packets.Load())
	}
	for range HoldPackets {
		if !copies.take(1) {
			t.Fatal("refused early")
		}
	}
	if h, acquire := fresh().Keep(1, now); h != nil || acquire {
		t.Errorf("beyond the budget: a copy %v, acquire %v", h, acquire)
	}
}

// A policy's end is one to the moment: whatever looks at policies late, packets have their next fate.
func TestFateEnds(t *testing.T) {
	now := time.Unix(1000, 0)
	for _, tt := range []struct{ fate, then Fate }{{Release, Wait}, {Drop, Copy}, {Wait, Drop}, {Wait, Wait}} {
		q := Queue[int]{Budget: &Budget{}, Copies: &Budget{}}
		q.Settle(tt.fate, now.Add(time.Second), tt.then)
		if got := q.Fate(now.Add(time.Second - 1)); got != tt.fate {
			t.Errorf("%v, then %v: before its end %v", tt.fate, tt.then, got)
		}
		if h, _ := q.Put(1, now); (h != nil) != (tt.fate == Wait) {
			t.Errorf("%v, then %v: before its end a packet waits: %v", tt.fate, tt.then, h != nil)
		}
		if got := q.Fate(now.Add(time.Second)); got != tt.then {
			t.Errorf("%v, then %v: at its end %v", tt.fate, tt.then, got)
		}
		late := q.Expire(now.Add(time.Second))
		if h, acquire := q.Put(1, now.Add(time.Second)); (h != nil) != (tt.then == Wait) || acquire != (h != nil) {
			t.Errorf("%v, then %v: at its end a packet waits: %v, acquire %v", tt.fate, tt.then, h != nil, acquire)
		}
		early := len(q.Expire(now.Add(time.Second - 1))) // by a clock that was read before the packet came
		if tt.then == Wait && early != 0 {
			t.Errorf("%v, then %v: %d packets of after its end do not wait", tt.fate, tt.then, early)
		}
		if want := tt.fate == Wait && tt.then != Wait; (len(late) == 1) != want {
			t.Errorf("%v, then %v: at its end %d packets are late", tt.fate, tt.then, len(late))
		}
	}
}
