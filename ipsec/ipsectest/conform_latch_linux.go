package ipsectest

import (
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	"tacit/ipsec"
	"tacit/lab"
)

// testLatch: the responder enforces nothing before the peer's first valid ESP (TRUST.md R10); the reply to that packet is
// protected; later clear packets are dropped, counted and reported.
func testLatch(w *world) {
	w.echo(w.bob)
	w.echo(w.alice)
	for _, f := range families {
		w.Run(f.String(), func(t *testing.T) { testLatchOf(w.within(t), f) })
	}
}

func testLatchOf(w *world, f family) {
	da, db := w.open(w.alice), w.open(w.bob)
	alice, bob := w.pairs(7, shape{f, ipsec.Transport, true})
	w.must(db.InstallInbound(bob))
	w.answered(f, w.alice, w.bob, 8) // answered in clear, as asked
	w.answered(f, w.bob, w.alice, 8)
	if u, err := db.Usage(7); err != nil || u.Armed || u.OutPackets != 0 {
		w.Fatalf("before the first ESP: got %+v, %v", u, err)
	}
	w.silence(db, ipsec.FirstPacket)

	w.reset()
	w.must(da.InstallInbound(alice))
	w.must(da.InstallOutbound(alice))
	w.answered(f, w.alice, w.bob, 8)
	if e := w.event(db, ipsec.FirstPacket, wait); e.ID != 7 || e.SPI != bob.In.SPI {
		w.Errorf("first packet: got %+v", e)
	}
	w.event(da, ipsec.FirstPacket, wait)
	w.noClear(f) // the very reply
	for _, d := range []ipsec.Dataplane{da, db} {
		if !slices.Contains(d.Used(), 7) {
			w.Error("nobody is told that the Pair was used")
		}
	}
	if u, err := db.Usage(7); err != nil || !u.Armed {
		w.Errorf("after the first ESP: got %+v, %v", u, err)
	}
	w.answered(f, w.alice, w.bob, 8)
	for _, d := range []ipsec.Dataplane{da, db} {
		if !slices.Contains(d.Used(), 7) {
			w.Error("nobody is told that the Pair was used again")
		}
	}

	// The peer forgets and speaks in clear.
	w.must(da.Remove(7))
	w.unanswered(f, w.alice, w.bob)
	if e := w.event(db, ipsec.ClearSeen, wait); e.Selector != bob.Selector {
		w.Errorf("clear seen: got %v", e.Selector)
	}
	if u, err := db.Usage(7); err != nil || u.ClearDropped == 0 {
		w.Errorf("clear dropped: got %+v, %v", u, err)
	}
	if c := w.tap.From(f.of(w.bob), f.of(w.alice)); c.Clear() != 0 {
		w.Errorf("bob sent in clear: %v", c)
	}
}

// testLatchRace: the reply never overtakes the arming, however fast the application is.
func testLatchRace(w *world) {
	w.echo(w.bob)
	da, db := w.open(w.alice), w.open(w.bob)
	for i := range 60 {
		f := families[i%2]
		alice, bob := w.pairs(uint32(i+1), shape{f, ipsec.Transport, i%4 < 2})
		w.up(da, db, alice, bob)
		w.answered(f, w.alice, w.bob, 8)
		w.noClear(f)
		w.must(errors.Join(da.Remove(alice.ID), db.Remove(bob.ID)))
		w.reset()
	}
}

// testReplay: a packet that is sent again, and one that was changed, are not delivered.
func testReplay(w *world) {
	da, db := w.open(w.alice), w.open(w.bob)
	alice, bob := w.pairs(1, shape{v4, ipsec.Transport, true})
	w.up(da, db, alice, bob)
	at, err := w.bob.ListenPacket("udp4", "192.0.2.2:7007")
	w.must(err)
	defer at.Close()
	received := countPackets(at)
	c := w.dialUDP(v4, w.alice, w.bob)
	_, err = c.Write([]byte("once"))
	w.must(err)
	w.await(func() bool { return w.tap.Between(w.alice.Addr4(), w.bob.Addr4()).ESP() == 1 })
	esp := w.tap.Select(func(p lab.Packet) bool { return p.Class == lab.ClassESPUDP })
	packet := esp[0].Head[14:]
	for i := range 3 {
		again := append([]byte(nil), packet...)
		if i == 2 {
			again[20+8+7]++             // the sequence number
			again[26], again[27] = 0, 0 // UDP's checksum: none
		}
		w.must(w.malory.Inject(again))
	}
	time.Sleep(200 * time.Millisecond)
	if n := received(); n != 1 {
		w.Errorf("bob's application got %d datagrams, want 1", n)
	}
	u, err := db.Usage(1)
	w.must(err)
	if u.Replayed != 2 || u.Invalid != 1 || u.InPackets != 1 {
		w.Errorf("usage: got %+v, want 2 replayed, 1 invalid", u)
	}
}

// countPackets reads a socket until it is closed; the result says how many datagrams came.
func countPackets(c net.PacketConn) (received func() int) {
	got := make(chan int, 1)
	got <- 0
	go func() {
		b := make([]byte, 65536)
		for {
			if _, _, err := c.ReadFrom(b); err != nil {
				return
			}
			got <- <-got + 1
		}
	}()
	return func() int {
		n := <-got
		got <- n
		return n
	}
}
