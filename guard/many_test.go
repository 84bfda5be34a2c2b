package guard

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
)

// manyPeers are keys of as many peers.
func manyPeers(n int) (keys []Key) {
	for i := range n {
		keys = append(keys, Key{key6.Own, netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})})
	}
	return keys
}

// What stands for tens of thousands of peers is given its time anew, and a successor takes it over.
func TestManyPeers(t *testing.T) {
	newNamespace(t)
	g, _, err := Open(Config{Device: "tacit0"})
	if err != nil {
		t.Fatal(err)
	}
	var all []Change
	for _, k := range manyPeers(20_000) {
		all = append(all, Change{k, Divert, time.Minute})
	}
	if err := g.Apply(all); err != nil {
		t.Fatal(err)
	}
	for i := range all {
		all[i].Timeout = time.Hour
	}
	if err := g.Apply(all); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(true); err != nil {
		t.Fatal(err)
	}
	g, left, err := Open(Config{Device: "tacit0"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = g.Close(false) }()
	if len(left) != len(all) || left[0].Left < time.Minute {
		t.Errorf("%d elements are left for %v, want %d for an hour", len(left), left[0].Left, len(all))
	}
}

// What stands for thousands of peers is renewed in pieces, all the time: the room for a piece is that of the one before.
func TestRenewalTakesLittle(t *testing.T) {
	newNamespace(t)
	g, _, err := Open(Config{Device: "tacit0"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = g.Close(false) }()
	var some []Change
	for _, k := range manyPeers(chunk) {
		some = append(some, Change{k, Divert, time.Minute})
	}
	for range 2 {
		if err := g.Apply(some); err != nil {
			t.Fatal(err)
		}
	}
	gather := func() {
		if err := g.gather(some); err != nil {
			t.Fatal(err)
		}
	}
	lists := func() { // what the library makes of as many
		for set := range g.add {
			elements := make([]nftables.SetElement, 0, chunk)
			for _, c := range some {
				elements = append(elements, nftables.SetElement{Key: encodeKey(c.Key), Timeout: c.Timeout})
			}
			if err := errors.Join(g.conn.SetDeleteElements(set, elements), g.conn.SetAddElements(set, elements)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if ours, theirs := testing.AllocsPerRun(5, gather), testing.AllocsPerRun(5, lists); ours > theirs+8 {
		t.Errorf("%v allocations for %d changes, want %v, as the library makes them", ours, chunk, theirs)
	}
}
