package tun

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func TestControl(t *testing.T) {
	for _, c := range []struct {
		local netip.Addr
		tos   uint8
		hops  uint8
	}{{alice4, 0x10, 1}, {alice6, 0xb8, 255}} {
		b := putLocal(make([]byte, 0, controlSize), c.local)
		b = putTOS(b, c.local.Is6(), c.tos)
		b = putHops(b, c.local.Is6(), c.hops)
		b = putSegment(b, 1300)
		got := parseControl(b)
		// What is sent in IP_PKTINFO is the source, what is received the destination: other fields of one message.
		if c.local.Is4() {
			got.local = alice4
		}
		if got.local != c.local || got.tos != c.tos || got.hops != c.hops {
			t.Errorf("got %+v, want %+v", got, c)
		}
		for i := range b {
			parseControl(b[:i])
		}
	}
	if c := parseControl(nil); c.hops != defaultHops {
		t.Errorf("without hops: %+v", c)
	}
	if b := putLocal(nil, netip.IPv4Unspecified()); len(b) != 0 {
		t.Errorf("no local address: got %x", b)
	}
	var v [2]byte
	v[0] = 100
	if got := parseControl(putCmsg(make([]byte, 0, controlSize), unix.IPPROTO_UDP, unix.UDP_GRO, v[:])); got.segment == 0 {
		t.Errorf("segment size: got %+v", got)
	}
}

func TestSockaddr(t *testing.T) {
	for _, want := range []netip.AddrPort{netip.AddrPortFrom(alice4, 4500), netip.AddrPortFrom(bob6, 500)} {
		s := makeSockaddr(want)
		if got := s.addrPort(); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

func TestTable(t *testing.T) {
	var tab table[addrKey, int]
	keys := make([]addrKey, 3000)
	for i := range keys {
		keys[i] = keyOf(alice4, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
		tab.put(keys[i], i)
	}
	for i, k := range keys {
		if got, ok := tab.get(k); !ok || got != i {
			t.Fatalf("key %d: got %d, %v", i, got, ok)
		}
	}
	tab.put(keys[7], -7)
	if got, _ := tab.get(keys[7]); got != -7 || tab.n != len(keys) {
		t.Errorf("a key that was put again: got %d of %d keys", got, tab.n)
	}
	most := len(*tab.buckets.Load())
	for i, k := range keys {
		tab.remove(k)
		tab.remove(k)
		if _, ok := tab.get(k); ok {
			t.Fatalf("key %d was removed and is there", i)
		}
		if got, ok := tab.get(keys[len(keys)-1]); i < len(keys)-1 && (!ok || got != len(keys)-1) {
			t.Fatalf("after the removal of key %d: got %d, %v for another", i, got, ok)
		}
	}
	if tab.n != 0 || most < len(keys) || len(*tab.buckets.Load()) != leastBuckets {
		t.Errorf("%d keys, %d buckets at most, %d in the end", tab.n, most, len(*tab.buckets.Load()))
	}
}

// Who reads a table while it changes finds what was there all the time.
func TestTableBesideWriter(t *testing.T) {
	var tab table[int, int]
	const steady = 100
	for i := range steady {
		tab.put(i, i)
	}
	var readers sync.WaitGroup
	var over atomic.Bool
	readers.Go(func() {
		for i := 0; !over.Load(); i = (i + 1) % steady {
			if got, ok := tab.get(i); !ok || got != i {
				t.Errorf("key %d: got %d, %v", i, got, ok)
				return
			}
		}
	})
	for range 3 {
		for i := steady; i < 5000; i++ {
			tab.put(i, i)
		}
		for i := steady; i < 5000; i++ {
			tab.remove(i)
		}
	}
	over.Store(true)
	readers.Wait()
}

func TestJoins(t *testing.T) {
	out := &outbound{fits: 1472}
	out.segments.Store(true)
	m := message{out: out, start: 0, end: 2000, segment: 1000, segments: 2}
	for name, c := range map[string]struct {
		change func(*message)
		n      int
		want   bool
	}{
		"same length":       {func(*message) {}, 1000, true},
		"shorter":           {func(*message) {}, 10, true},
		"longer":            {func(*message) {}, 1001, false},
		"after a short one": {func(m *message) { m.end -= 10 }, 1000, false},
		"another SA":        {func(m *message) { m.out = &outbound{} }, 1000, false},
		"other service":     {func(m *message) { m.tos = 1 }, 1000, false},
		"other hops":        {func(m *message) { m.hops = 1 }, 1000, false},
		"fragmented":        {func(m *message) { m.segment, m.segments, m.end = 1473, 1, 1473 }, 1000, false},
		"too many":          {func(m *message) { m.segments, m.end = maxSegments, maxSegments*1000 }, 1000, false},
	} {
		m := m
		c.change(&m)
		if got := m.joins(out, c.n, 0, 0); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

func FuzzParseControl(f *testing.F) {
	f.Add(putTOS(putLocal(make([]byte, 0, controlSize), alice4), false, 3))
	f.Add(putSegment(putLocal(make([]byte, 0, controlSize), alice6), 1400))
	f.Fuzz(func(t *testing.T, b []byte) {
		parseControl(b)
	})
}
