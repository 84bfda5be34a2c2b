package ipsectest

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tacit/ipsec"
	"tacit/lab"
)

// testHold: a packet to a held address waits, raises Acquire at once, and leaves through the new SA at once; nothing passes
// in clear either way. The application does not send again: one SYN.
func testHold(w *world) {
	w.echo(w.bob)
	w.echo(w.alice)
	for i, f := range families {
		w.Run(f.String(), func(t *testing.T) { testHoldOf(w.within(t), f, uint32(i+1)) })
	}
}

func testHoldOf(w *world, f family, id uint32) {
	da, db := w.open(w.alice), w.open(w.bob)
	alice, bob := w.pairs(id, shape{f, ipsec.Tunnel, true})
	w.must(da.SetPolicy(alice.Selector, ipsec.Hold, time.Now().Add(time.Minute)))
	w.reset()
	w.unanswered(f, w.bob, w.alice) // theirs is dropped
	w.event(da, ipsec.ClearSeen, wait)

	connected := make(chan error, 1)
	begin := time.Now()
	go func() {
		c, err := w.dial("tcp", f, w.alice, w.bob)
		if err == nil {
			err = c.Close()
		}
		connected <- err
	}()
	if e := w.event(da, ipsec.Acquire, wait); e.Selector != alice.Selector {
		w.Errorf("acquire: got %v, want %v", e.Selector, alice.Selector)
	}
	if took := time.Since(begin); took > 200*time.Millisecond {
		w.Errorf("acquire after %v, want at once", took)
	}
	time.Sleep(100 * time.Millisecond) // keying; less than the SYN's retransmission takes
	w.up(da, db, alice, bob)
	w.must(<-connected)
	if took := time.Since(begin); took > 900*time.Millisecond {
		w.Errorf("connected after %v: the SYN was sent again", took)
	}
	// Bob's own clear question was before; from Alice nothing was seen but ESP, and one SYN among it.
	w.sync()
	if c := w.tap.From(f.of(w.alice), f.of(w.bob)); c.Clear() != 0 || c.ESP() == 0 {
		w.Errorf("tap, from alice: got %v", c)
	}
	w.answered(f, w.alice, w.bob, 100)
}

// testHoldEnds: a hold ends by itself, and ClearPolicy ends it at once.
func testHoldEnds(w *world) {
	w.echo(w.bob)
	da := w.open(w.alice)
	s := ipsec.Host(w.alice.Addr4(), w.bob.Addr4())
	w.must(da.SetPolicy(s, ipsec.Hold, time.Now().Add(700*time.Millisecond)))
	w.unanswered(v4, w.alice, w.bob)
	time.Sleep(700 * time.Millisecond)
	w.answered(v4, w.alice, w.bob, 8)

	w.must(da.SetPolicy(s, ipsec.Hold, time.Now().Add(200*time.Millisecond)))
	w.must(da.SetPolicy(s, ipsec.Hold, time.Now().Add(time.Minute))) // a longer one replaces it
	time.Sleep(400 * time.Millisecond)
	w.unanswered(v4, w.alice, w.bob)
	w.must(da.ClearPolicy(s))
	w.must(da.ClearPolicy(s))
	w.answered(v4, w.alice, w.bob, 8)
}

// testDeadPeer: packets to an address that never answers stand in nobody's way, and are bounded in number and time.
func testDeadPeer(w *world) {
	w.echo(w.bob)
	da, db := w.open(w.alice), w.open(w.bob)
	dead := ipsec.Host(w.alice.Addr4(), netip.MustParseAddr("192.0.2.99"))
	until := time.Now().Add(time.Minute)
	w.must(da.SetPolicy(dead, ipsec.Hold, until))
	c, err := w.alice.Dial(context.Background(), "udp4", "192.0.2.99:7")
	w.must(err)
	defer c.Close()
	for range 500 {
		_, _ = c.Write(make([]byte, 1000))
	}
	alice, bob := w.pairs(1, shape{v4, ipsec.Transport, true})
	w.must(da.SetPolicy(alice.Selector, ipsec.Hold, until))
	got := make(chan error, 1)
	go func() { got <- ask(w.dialUDP(v4, w.alice, w.bob), 8, wait) }()
	for e := w.event(da, ipsec.Acquire, wait); e.Selector != alice.Selector; {
		e = w.event(da, ipsec.Acquire, wait)
	}
	w.up(da, db, alice, bob)
	w.must(<-got)
	w.event(da, ipsec.Acquire, wait) // while packets wait for the dead one, it is asked for again
	w.sync()
	if n := len(w.tap.Select(func(p lab.Packet) bool { return p.Dst == dead.Remote.Addr() && p.Class == lab.ClassClear })); n != 0 {
		w.Errorf("tap: got %d clear packets to the dead peer", n)
	}
}

// testBlock: our packets are refused at once, theirs are dropped.
func testBlock(w *world) {
	w.echo(w.alice)
	w.echo(w.bob)
	da := w.open(w.alice)
	for _, f := range families {
		s := ipsec.Host(f.of(w.alice), f.of(w.bob))
		w.must(da.SetPolicy(s, ipsec.Block, time.Now().Add(time.Minute)))
		w.reset()
		begin := time.Now()
		c, err := w.dial("tcp", f, w.alice, w.bob)
		if err == nil {
			_ = c.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EPERM) || time.Since(begin) > 300*time.Millisecond {
			w.Errorf("%v tcp: got %v after %v, want refused at once", f, err, time.Since(begin))
		}
		if err := ask(w.dialUDP(f, w.alice, w.bob), 8, 300*time.Millisecond); !errors.Is(err, syscall.EPERM) {
			w.Errorf("%v udp: got %v, want %v", f, err, syscall.EPERM)
		}
		if c := w.counts(f); c.Clear() != 0 {
			w.Errorf("%v: tap: got %v", f, c)
		}
		w.unanswered(f, w.bob, w.alice)
		w.must(da.ClearPolicy(s))
		w.answered(f, w.alice, w.bob, 8)
	}
}

// testBypass: a Bypass policy replaces another, and neither diverts nor drops.
func testBypass(w *world) {
	w.echo(w.bob)
	da := w.open(w.alice)
	s := ipsec.Host(w.alice.Addr4(), w.bob.Addr4())
	for _, a := range []ipsec.Action{ipsec.Hold, ipsec.Bypass, ipsec.Block, ipsec.Bypass} {
		w.must(da.SetPolicy(s, a, time.Now().Add(time.Minute)))
		if a == ipsec.Bypass {
			w.answered(v4, w.alice, w.bob, 8)
		}
	}
}

// testPairToHold: when a Pair goes and its address stays held there is no moment in clear, also for a flow that sends all
// the while, and the flow goes on in the next Pair.
func testPairToHold(w *world) {
	w.echo(w.bob)
	da, db := w.open(w.alice), w.open(w.bob)
	f := v6
	w.must(da.SetPolicy(ipsec.Host(f.of(w.alice), f.of(w.bob)), ipsec.Hold, time.Now().Add(time.Minute)))
	w.must(db.SetPolicy(ipsec.Host(f.of(w.bob), f.of(w.alice)), ipsec.Hold, time.Now().Add(time.Minute)))
	c := w.dialUDP(f, w.alice, w.bob)
	var sent atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = c.Write([]byte("datagram"))
				sent.Add(1)
				time.Sleep(50 * time.Microsecond)
			}
		}
	}()
	more := func(n int64) { // waits until the flow has sent n more
		for was := sent.Load(); sent.Load() < was+n; {
			time.Sleep(100 * time.Microsecond)
		}
	}
	for i := range 20 {
		alice, bob := w.pairs(uint32(i+1), shape{f, ipsec.Transport, false})
		w.up(da, db, alice, bob)
		more(20)
		w.must(errors.Join(da.Remove(alice.ID), db.Remove(bob.ID)))
		more(10)
	}
	close(stop)
	<-stopped
	w.noClear(f)
}

// testDisarm: a Pair that is disarmed hears what the peer sent before it knows, and sends nothing any more: what is sent waits for the next Pair.
func testDisarm(w *world) {
	w.echo(w.bob)
	da, db := w.open(w.alice), w.open(w.bob)
	at, err := w.alice.ListenPacket("udp4", "192.0.2.1:7007")
	w.must(err)
	defer at.Close()
	received := countPackets(at)
	toBob, toAlice := w.dialUDP(v4, w.alice, w.bob), w.dialUDP(v4, w.bob, w.alice)
	for i, encapsulated := range []bool{false, true} {
		id := uint32(2*i + 1)
		w.must(da.SetPolicy(ipsec.Host(w.alice.Addr4(), w.bob.Addr4()), ipsec.Hold, time.Now().Add(time.Minute)))
		alice, bob := w.pairs(id, shape{v4, ipsec.Transport, encapsulated})
		w.up(da, db, alice, bob)
		w.must(ask(toBob, 8, wait))
		before, err := da.Usage(id)
		w.must(errors.Join(err, da.Disarm(id), da.Disarm(id), da.InstallOutbound(alice)))

		_, err = toAlice.Write([]byte("on its way"))
		w.must(err)
		w.await(func() bool { return received() == i+1 })
		_, err = toBob.Write([]byte("next"))
		w.must(err)
		w.event(da, ipsec.Acquire, wait)
		if u, err := da.Usage(id); err != nil || u.Armed || u.OutPackets != before.OutPackets || u.InPackets != before.InPackets+1 {
			w.Errorf("disarmed: got %+v, %v; before %+v", u, err, before)
		}
		alice, bob = w.pairs(id+1, shape{v4, ipsec.Transport, encapsulated})
		w.up(da, db, alice, bob)
		w.must(toBob.SetReadDeadline(time.Now().Add(wait)))
		if _, err := toBob.Read(make([]byte, 100)); err != nil {
			w.Errorf("what waited has no answer: %v", err)
		}
		w.must(errors.Join(da.Remove(id), da.Remove(id+1), db.Remove(id), db.Remove(id+1), da.Disarm(id)))
		w.noClear(v4)
	}
}

// testKill: after the process died nothing passes in clear before linger is over; then everything passes, with no help from
// the dead process; Cleanup leaves nothing behind. So it is with a policy on two addresses, and with a rule of a prefix.
func testKill(w *world) {
	w.echo(w.bob)
	for _, f := range families {
		w.kill(f, f.of(w.alice).String(), f.of(w.bob).String())
	}
	w.kill(v6, "", "::/0")
	if !w.subject.Short {
		w.kill(v4, "", v4.network().String())
	}
}

// kill starts a process that holds the peer, or a prefix, and kills it.
func (w *world) kill(f family, own, peer string) {
	w.Helper()
	before := w.state(w.alice)
	cmd := w.alice.Command(context.Background(), "/proc/self/exe", childFlag, own, peer)
	out, err := cmd.StdoutPipe()
	w.must(err)
	cmd.Stderr = os.Stderr
	w.must(cmd.Start())
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		w.Fatalf("child: %v", err)
	}
	w.unanswered(f, w.alice, w.bob)
	w.must(cmd.Signal(syscall.SIGKILL))
	_ = cmd.Wait()
	died := time.Now()
	w.reset()
	c := w.dialUDP(f, w.alice, w.bob)
	for time.Since(died) < childLinger-300*time.Millisecond {
		_, _ = c.Write([]byte("clear?")) // refused, or nowhere to go
		time.Sleep(10 * time.Millisecond)
	}
	w.noClear(f)
	time.Sleep(childLinger/2 + 500*time.Millisecond)
	w.answered(f, w.alice, w.bob, 8)
	w.must(w.alice.Do(w.subject.Cleanup))
	if after := w.state(w.alice); after != before {
		w.Errorf("%v: after cleanup: got\n%s\nwant\n%s", f, after, before)
	}
}

// testRenew: what stands in the kernel is renewed while the process lives, however short linger is.
func testRenew(w *world) {
	w.echo(w.bob)
	da, db := w.openWith(w.alice, Options{Linger: childLinger / 2}), w.open(w.bob)
	alice, bob := w.pairs(1, shape{v4, ipsec.Transport, true})
	w.up(da, db, alice, bob)
	w.must(da.SetPolicy(ipsec.Host(w.alice.Addr6(), w.bob.Addr6()), ipsec.Hold, time.Now().Add(time.Minute)))
	w.must(da.SetRules([]ipsec.Rule{{Remote: netip.PrefixFrom(w.malory.Addr4(), 32), Action: ipsec.Hold}}))
	w.echo(w.malory)
	for end := time.Now().Add(childLinger); time.Now().Before(end); {
		w.answered(v4, w.alice, w.bob, 8)
		w.unanswered(v6, w.alice, w.bob)
	}
	w.unanswered(v4, w.alice, w.malory)
	w.noClear(v4)
	w.noClear(v6)
}

// testRestart: a process that starts while the elements of a dead one stand takes them over: no moment in clear, its address
// is reported and stays held until it is keyed anew.
func testRestart(w *world) {
	w.echo(w.bob)
	open := func() (d ipsec.Dataplane) {
		w.must(w.alice.Do(func() (err error) { d, err = w.subject.Open(Options{Linger: time.Minute}); return err }))
		return d
	}
	f := v6
	alice, bob := w.pairs(1, shape{f, ipsec.Transport, true})
	first, db := open(), w.open(w.bob)
	w.up(first, db, alice, bob)
	w.answered(f, w.alice, w.bob, 8)
	c := w.dialUDP(f, w.alice, w.bob)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				_, _ = c.Write([]byte("clear?"))
			}
		}
	}()
	w.must(first.Close(true))
	time.Sleep(50 * time.Millisecond)
	second := open()
	defer func() { w.must(second.Close(false)) }()
	left, err := second.Existing()
	if err != nil || len(left) != 1 || left[0].Selector != alice.Selector {
		w.Errorf("existing: got %v, %v; want %v", left, err, alice.Selector)
	}
	w.event(second, ipsec.Acquire, wait)
	w.must(db.Remove(1))
	alice, bob = w.pairs(2, shape{f, ipsec.Transport, true})
	w.up(second, db, alice, bob)
	w.answered(f, w.alice, w.bob, 8)
	close(stop)
	<-stopped
	w.sync()
	if c := w.tap.From(f.of(w.alice), f.of(w.bob)); c.Clear() != 0 {
		w.Errorf("alice sent in clear: %v", c)
	}
}

// testRulesOfTheDead: the rules of a process that ended are taken over: nothing passes in clear, what comes waits and raises Acquire, until
// the next process sets its own.
func testRulesOfTheDead(w *world) {
	w.echo(w.bob)
	open := func() (d ipsec.Dataplane) {
		w.must(w.alice.Do(func() (err error) { d, err = w.subject.Open(Options{Linger: time.Minute}); return err }))
		return d
	}
	first := open()
	w.must(first.SetRules(everywhere(ipsec.Hold)))
	w.must(first.SetPolicy(ipsec.Host(w.alice.Addr6(), w.bob.Addr6()), ipsec.Bypass, time.Now().Add(time.Minute)))
	w.reset()
	stop := w.sending(w.dialUDP(v4, w.alice, w.bob))
	second := first
	for range 10 {
		w.must(second.Close(true))
		second = open()
	}
	stop()
	defer func() { w.must(second.Close(false)) }()
	w.noClear(v4)
	w.answered(v6, w.alice, w.bob, 8) // let go yet
	got := make(chan error, 1)
	w.echo(w.malory) // as many as may wait for Bob do
	go func() { got <- ask(w.dialUDP(v4, w.alice, w.malory), 8, wait) }()
	w.acquired(second, ipsec.Host(w.alice.Addr4(), w.malory.Addr4()))
	w.noClear(v4)
	w.must(second.SetRules(nil))
	w.must(<-got)
}
