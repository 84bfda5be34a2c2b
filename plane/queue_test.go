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
	q.Settle(Wait, now.Add(10*time.Second))
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
	if n := len(q.Settle(Drop, time.Time{})); n != 1 {
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
	q.Settle(Wait, now.Add(time.Minute))
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
