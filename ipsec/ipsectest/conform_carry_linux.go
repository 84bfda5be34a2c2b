package ipsectest

import (
	"fmt"
	"testing"

	"tacit/ipsec"
	"tacit/lab"
)

// shapes are all ways to carry a packet.
func shapes() (all []shape) {
	for _, f := range families {
		for _, m := range []ipsec.Mode{ipsec.Transport, ipsec.Tunnel} {
			for _, udp := range []bool{false, true} {
				all = append(all, shape{f, m, udp})
			}
		}
	}
	return all
}

func (s shape) String() string {
	return fmt.Sprintf("%v %v udp=%v", s.family, s.mode, s.udp)
}

// testCarry: every shape of Pair carries datagrams of every size, both ways, and TCP; the tap sees ESP only.
func testCarry(w *world) {
	w.echo(w.alice)
	w.echo(w.bob)
	da, db := w.open(w.alice), w.open(w.bob)
	for i, s := range shapes() {
		w.Run(s.String(), func(t *testing.T) {
			in := w.within(t)
			in.reset()
			alice, bob := in.pairs(uint32(i+1), s)
			in.up(da, db, alice, bob)
			in.answered(s.family, w.alice, w.bob, 1, 100, 1472, 9000, 30000)
			in.answered(s.family, w.bob, w.alice, 1, 1472, 9000)
			in.bulk(s.family, w.alice, w.bob, 1<<20)
			in.noClear(s.family)
			in.protected(da, db, alice.ID, s, 8)
			in.must(da.Remove(alice.ID))
			in.must(db.Remove(bob.ID))
			in.answered(s.family, w.alice, w.bob, 1) // in clear now
			if in.counts(s.family).Clear() == 0 {
				t.Error("tap: nothing in clear after both Pairs were removed")
			}
		})
	}
}

// within is the same world for a subtest.
func (w *world) within(t *testing.T) *world {
	in := *w
	in.T = t
	return &in
}

// testBulk: TCP streams fit into ESP without fragments, both ways, over both families.
func testBulk(w *world) {
	w.echo(w.alice)
	w.echo(w.bob)
	da, db := w.open(w.alice), w.open(w.bob)
	for i, f := range families {
		alice, bob := w.pairs(uint32(i+1), shape{f, ipsec.Transport, true})
		w.up(da, db, alice, bob)
		w.bulk(f, w.alice, w.bob, 16<<20)
		w.bulk(f, w.bob, w.alice, 16<<20)
		w.noClear(f)
	}
	w.sync()
	fragments := w.tap.Select(func(p lab.Packet) bool { return p.Fragment || p.FirstFragment })
	if len(fragments) != 0 {
		w.Errorf("tap: got %d fragments of TCP, want none", len(fragments))
	}
}

// testPrefer: of two Pairs for the same traffic the one armed last sends, and InstallOutbound, without keys, arms again. What the other
// receives is taken all the while, so that nothing is lost when it goes.
func testPrefer(w *world) {
	w.echo(w.bob)
	da, db := w.open(w.alice), w.open(w.bob)
	first, firstBob := w.pairs(1, shape{v4, ipsec.Transport, false})
	second, secondBob := w.pairs(2, shape{v4, ipsec.Transport, false})
	w.up(da, db, first, firstBob)
	w.up(da, db, second, secondBob)
	sends := func(p ipsec.Pair) {
		w.Helper()
		before, err := da.Usage(p.ID)
		w.must(err)
		w.answered(v4, w.alice, w.bob, 100)
		after, err := da.Usage(p.ID)
		w.must(err)
		if after.OutPackets == before.OutPackets {
			w.Errorf("Pair %d does not send", p.ID)
		}
	}
	sends(second)
	for _, p := range []*ipsec.Pair{&first, &second} {
		p.In.Key, p.In.Salt, p.Out.Key, p.Out.Salt = nil, nil, nil, nil
	}
	w.must(da.InstallOutbound(first))
	sends(first)
	w.must(da.InstallOutbound(second))
	sends(second)
	w.must(da.Remove(second.ID))
	sends(first)
	w.noClear(v4)
}
