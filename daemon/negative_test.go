package daemon

import (
	"net/netip"
	"testing"
	"time"
)

func nth(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}) }

// The cache is bounded, also against one network, and what goes is the oldest.
func TestDenialsAreBounded(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	c := newDenials(64)
	for i := range 1000 { // of four networks
		gone := c.put(&denial{addr: nth(i), until: now.Add(time.Minute)})
		if len(c.of) > 64 || c.order.Len() != len(c.of) {
			t.Fatalf("%d entries, %d in order", len(c.of), c.order.Len())
		}
		for net, of := range c.networks {
			if of.Len() > 32 || of.Len() == 0 {
				t.Fatalf("%v has %d", net, of.Len())
			}
		}
		if gone != nil && c.get(now, gone.addr) != nil {
			t.Fatal("what is gone is there")
		}
		if c.get(now, nth(i)) == nil {
			t.Fatal("the newest is not there")
		}
	}
	if c.get(now, nth(999-31)) == nil || c.get(now, nth(999-64)) != nil {
		t.Error("not the oldest went")
	}
	// Again the same one: nothing has to go, and its policies stay known.
	d := c.get(now, nth(999))
	d.locals = append(d.locals, nth(1))
	if gone := c.put(&denial{addr: nth(999), until: now.Add(time.Hour)}); gone != nil || len(c.get(now, nth(999)).locals) != 1 {
		t.Errorf("gone %v", gone)
	}
	if c.get(now.Add(time.Minute), nth(998)) != nil || c.get(now.Add(time.Minute), nth(999)) == nil {
		t.Error("a denial does not end in time")
	}
	for range 64 {
		c.expire(now.Add(2*time.Hour), 10)
	}
	if len(c.of) != 0 || len(c.networks) != 0 || c.order.Len() != 0 {
		t.Errorf("%d entries, %d networks left", len(c.of), len(c.networks))
	}
}
