package ipsectest

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"tacit/ipsec"
	"tacit/lab"
)

// network is the prefix of the lab's cable.
func (f family) network() netip.Prefix {
	return netip.MustParsePrefix([...]string{"192.0.2.0/24", "2001:db8::/64"}[f])
}

// everywhere are rules for all addresses.
func everywhere(a ipsec.Action) []ipsec.Rule {
	return []ipsec.Rule{{Remote: netip.MustParsePrefix("0.0.0.0/0"), Action: a}, {Remote: netip.MustParsePrefix("::/0"), Action: a}}
}

// synsFrom are the SYNs in clear that the tap saw from a host.
func (w *world) synsFrom(f family, h *lab.Host) []lab.Packet {
	w.sync()
	flags := 14 + [...]int{20, 40}[f] + 13
	return w.tap.Select(func(p lab.Packet) bool {
		return p.Src == f.of(h) && p.Proto == syscall.IPPROTO_TCP && len(p.Head) > flags && p.Head[flags] == 0x02
	})
}

// connecting dials in the background.
func (w *world) connecting(f family) <-chan error {
	done := make(chan error, 1)
	go func() {
		c, err := w.dial("tcp", f, w.alice, w.bob)
		if err == nil {
			err = hangUp(c)
		}
		done <- err
	}()
	return done
}

// hangUp closes a connection with an echo when both ends have: nothing of it is sent again later, maybe in clear.
func hangUp(c net.Conn) error {
	err := c.(*net.TCPConn).CloseWrite()
	if err == nil {
		_, err = io.Copy(io.Discard, c)
	}
	return errors.Join(err, c.Close())
}

// acquired waits for the Acquire of a selector; others are passed over.
func (w *world) acquired(d ipsec.Dataplane, s ipsec.Selector) {
	w.Helper()
	for e := w.event(d, ipsec.Acquire, wait); e.Selector != s; {
		e = w.event(d, ipsec.Acquire, wait)
	}
}

// testTrap: a packet to an address that only a rule of prefixes traps waits, and raises Acquire for that address, once. Let go it leaves
// in clear at once, and the address is asked for no more until that ends; keyed it leaves in ESP. The peer's clear packets pass.
func testTrap(w *world) {
	w.echo(w.bob)
	da, db := w.open(w.alice), w.open(w.bob)
	w.must(da.SetRules(everywhere(ipsec.Trap)))
	for i, f := range w.some() {
		w.Run(f.String(), func(t *testing.T) {
			in := w.within(t)
			in.testLetGo(f, da)
			in.testKeyed(f, da, db, uint32(i+1))
		})
	}
}

func (w *world) testLetGo(f family, da ipsec.Dataplane) {
	s := ipsec.Host(f.of(w.alice), f.of(w.bob))
	w.hears(f, w.alice, w.bob)
	w.reset()
	begin := time.Now()
	connected := w.connecting(f)
	w.acquired(da, s)
	if took := time.Since(begin); took > 500*time.Millisecond {
		w.Errorf("acquire after %v, want at once", took)
	}
	time.Sleep(100 * time.Millisecond) // looking for a key
	w.silence(da, ipsec.Acquire)
	if n := len(w.synsFrom(f, w.alice)); n != 0 {
		w.Errorf("%d SYNs left before anybody decided", n)
	}
	w.must(da.SetPolicy(s, ipsec.Bypass, time.Now().Add(time.Minute)))
	decided := time.Since(begin)
	w.must(<-connected)
	// A slow machine may come so late that the kernel has sent it again, which it does after a second.
	syns := w.synsFrom(f, w.alice)
	if decided < 900*time.Millisecond && (len(syns) != 1 || syns[0].Time.Sub(begin) >= time.Second) {
		w.Errorf("tap: %d SYNs from alice, let go %v after they were sent; want 1, at once", len(syns), decided)
	}
	w.answered(f, w.alice, w.bob, 8, 1400)
	w.silence(da, ipsec.Acquire)
	w.must(da.SetPolicy(s, ipsec.Bypass, time.Now().Add(300*time.Millisecond)))
	time.Sleep(330 * time.Millisecond)
	_ = ask(w.dialUDP(f, w.alice, w.bob), 8, 50*time.Millisecond)
	w.acquired(da, s) // it has ended, to the moment
}

// testKeyed: what waits because of a rule leaves through the SA.
func (w *world) testKeyed(f family, da, db ipsec.Dataplane, id uint32) {
	time.Sleep(100 * time.Millisecond)
	w.reset()
	connected := w.connecting(f)
	alice, bob := w.pairs(id, shape{f, ipsec.Tunnel, true})
	w.acquired(da, alice.Selector)
	w.up(da, db, alice, bob)
	w.must(<-connected)
	w.answered(f, w.alice, w.bob, 100)
	if c := w.counts(f); c.Clear() != 0 || c.ESP() == 0 {
		w.Errorf("tap: got %v, want ESP only", c)
	}
	w.must(errors.Join(da.Remove(id), db.Remove(id)))
}

// hears fails the test unless a clear datagram from one host reaches a program on the other.
func (w *world) hears(f family, to, from *lab.Host) {
	w.Helper()
	if !w.reaches(f, to, from) {
		w.Errorf("%v: a clear datagram from %s did not arrive", f, from.Name)
	}
}

func (w *world) reaches(f family, to, from *lab.Host) bool {
	w.Helper()
	pc, err := to.ListenPacket(netName("udp", f), netip.AddrPortFrom(f.of(to), 0).String())
	w.must(err)
	defer pc.Close()
	c, err := from.Dial(context.Background(), netName("udp", f), pc.LocalAddr().String())
	w.must(err)
	defer c.Close()
	_, err = c.Write([]byte("hello"))
	w.must(err)
	w.must(pc.SetReadDeadline(time.Now().Add(300 * time.Millisecond)))
	_, _, err = pc.ReadFrom(make([]byte, 16))
	return err == nil
}

// testRuleHold: by a rule that holds no clear packet passes either way, and ours wait for an SA; what is let go passes both ways.
func testRuleHold(w *world) {
	w.echo(w.bob)
	da, db := w.open(w.alice), w.open(w.bob)
	w.must(da.SetRules(everywhere(ipsec.Hold)))
	for i, f := range w.some() {
		s := ipsec.Host(f.of(w.alice), f.of(w.bob))
		if w.reaches(f, w.alice, w.bob) {
			w.Errorf("%v: a clear datagram arrived", f)
		}
		for w.event(da, ipsec.ClearSeen, wait).Selector != s {
		}
		w.reset()
		w.unanswered(f, w.alice, w.bob)
		w.acquired(da, s)
		w.noClear(f)
		w.testKeyed(f, da, db, uint32(i+1))
		w.must(da.SetPolicy(s, ipsec.Bypass, time.Now().Add(time.Minute)))
		w.answered(f, w.alice, w.bob, 8)
		w.hears(f, w.alice, w.bob)
		w.must(da.SetPolicy(s, ipsec.Block, time.Now().Add(time.Minute)))
		w.refused(f)
		w.must(da.ClearPolicy(s)) // the rule counts again
		w.reset()
		w.unanswered(f, w.alice, w.bob)
		w.noClear(f)
	}
}

// refused fails the test unless what Alice sends to Bob is refused at once, and nothing of it is seen.
func (w *world) refused(f family) {
	w.Helper()
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
	w.noClear(f)
}

// testRuleBlock: what a rule blocks is refused at once, and the peer's packets are dropped.
func testRuleBlock(w *world) {
	w.echo(w.bob)
	da := w.open(w.alice)
	w.must(da.SetRules(everywhere(ipsec.Block)))
	for _, f := range families {
		w.refused(f)
		if w.reaches(f, w.alice, w.bob) {
			w.Errorf("%v: a clear datagram arrived", f)
		}
	}
	w.must(da.SetRules(nil))
	for _, f := range families {
		w.answered(f, w.alice, w.bob, 8)
		w.hears(f, w.alice, w.bob)
	}
}

// testNested: of several prefixes the longest counts, whatever their order.
func testNested(w *world) {
	w.echo(w.bob)
	w.echo(w.malory)
	da := w.open(w.alice)
	for _, f := range families {
		bob, size := f.of(w.bob), f.of(w.bob).BitLen()
		near := netip.PrefixFrom(bob, size-2).Masked() // Bob, and not Mallory
		rules := []ipsec.Rule{{Remote: near, Action: ipsec.Bypass}, {Remote: f.network(), Action: ipsec.Block},
			{Remote: netip.PrefixFrom(f.of(w.malory), size), Action: ipsec.Bypass}}
		w.must(da.SetRules(rules))
		w.answered(f, w.alice, w.bob, 8)
		w.answered(f, w.alice, w.malory, 8)
		w.must(da.SetRules(append(rules, ipsec.Rule{Remote: netip.PrefixFrom(bob, size), Action: ipsec.Block})))
		w.refused(f)
		w.answered(f, w.alice, w.malory, 8)
		w.must(da.SetRules(rules[:2]))
		w.answered(f, w.alice, w.bob, 8)
		w.unanswered(f, w.malory, w.alice)
		if err := ask(w.dialUDP(f, w.alice, w.malory), 8, 300*time.Millisecond); !errors.Is(err, syscall.EPERM) {
			w.Errorf("%v: mallory: got %v, want %v", f, err, syscall.EPERM)
		}
	}
}

// sending sends to the connections in turn, all the while, until it is stopped.
func (w *world) sending(conns ...net.Conn) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-end:
				return
			default:
				_, _ = conns[i%len(conns)].Write([]byte("clear?"))
				time.Sleep(100 * time.Microsecond)
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}

// testReplaceRules: rules are replaced in one step: of a flow that sends all the while nothing leaves in clear while one rule that holds
// gives way to another.
func testReplaceRules(w *world) {
	w.echo(w.bob)
	da := w.open(w.alice)
	w.must(da.SetRules(everywhere(ipsec.Hold)))
	w.reset()
	stop := w.sending(w.dialUDP(v4, w.alice, w.bob), w.dialUDP(v6, w.alice, w.bob))
	for i := range 30 {
		rules := everywhere([]ipsec.Action{ipsec.Hold, ipsec.Block}[i%2])
		if i%3 == 0 {
			rules = append(rules, ipsec.Rule{Remote: v4.network(), Action: ipsec.Hold}, ipsec.Rule{Remote: v6.network(), Action: ipsec.Block})
		}
		w.must(da.SetRules(rules))
		time.Sleep(5 * time.Millisecond)
	}
	stop()
	for _, f := range families {
		w.noClear(f)
	}
	// Rules that make no sense change nothing.
	for _, bad := range []ipsec.Rule{{}, {Remote: netip.MustParsePrefix("192.0.2.1/24")}, {Remote: v4.network(), Action: ipsec.Watch + 1},
		{Remote: v4.network(), ClearPorts: []ipsec.Port{{Proto: 1, Number: 1}}}} {
		if err := da.SetRules([]ipsec.Rule{bad}); err == nil {
			w.Errorf("%+v is accepted", bad)
		}
	}
	for _, a := range []ipsec.Action{ipsec.Trap, ipsec.Watch} {
		if err := da.SetPolicy(ipsec.Host(w.alice.Addr4(), w.bob.Addr4()), a, time.Now().Add(time.Minute)); err == nil {
			w.Errorf("a policy may %v", a)
		}
	}
	for _, f := range families {
		w.unanswered(f, w.alice, w.bob)
		w.noClear(f)
	}
}

// testJudgedAnew: what waits because of a rule leaves in clear when another rule lets it.
func testJudgedAnew(w *world) {
	w.echo(w.bob)
	da := w.open(w.alice)
	for _, f := range families {
		w.must(da.SetRules(everywhere(ipsec.Trap)))
		got := make(chan error, 1)
		go func() { got <- ask(w.dialUDP(f, w.alice, w.bob), 5000, wait) }() // longer than the cable takes at once
		w.acquired(da, ipsec.Host(f.of(w.alice), f.of(w.bob)))
		w.must(da.SetRules(nil))
		w.must(<-got)
	}
}

// testStorm: what many addresses make wait is bounded, raises an Acquire each, and goes.
func testStorm(w *world) {
	w.echo(w.bob)
	w.route(w.alice, "198.18.0.0/15", "192.0.2.2")
	da := w.open(w.alice)
	w.must(da.SetRules(everywhere(ipsec.Trap)))
	pcs := make([]net.PacketConn, 100) // what waits in the kernel fills the buffer of its socket
	for i := range pcs {
		pc, err := w.alice.ListenPacket("udp4", "192.0.2.1:0")
		w.must(err)
		defer pc.Close()
		pcs[i] = pc
	}
	asked := make(map[netip.Addr]int)
	sent, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case e := <-da.Events():
				if e.Kind == ipsec.Acquire {
					asked[e.Selector.Remote.Addr()]++
				}
			case <-sent:
				return
			}
		}
	}()
	const storm = 10000
	begin := time.Now()
	for i := range storm {
		b := [4]byte{198, 18}
		binary.BigEndian.PutUint16(b[2:], uint16(i))
		_, _ = pcs[i%len(pcs)].WriteTo([]byte("storm"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4(b), 7007)))
	}
	took := time.Since(begin)
	time.Sleep(500 * time.Millisecond)
	close(sent)
	<-done
	if len(asked) < 100 || took < wait && len(asked) > 1024 {
		w.Errorf("%d addresses were asked for, want 100 to 1024", len(asked))
	}
	time.Sleep(wait + 500*time.Millisecond)
	s := ipsec.Host(w.alice.Addr4(), w.bob.Addr4())
	connected := w.connecting(v4)
	w.acquired(da, s)
	w.must(da.SetPolicy(s, ipsec.Bypass, time.Now().Add(time.Minute)))
	w.must(<-connected)
}
