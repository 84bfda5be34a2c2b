package ipsectest

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"tacit/ipsec"
	"tacit/lab"
)

// numbers are the datagrams that have come to a port of Bob's, each by its number. Nothing answers them.
type numbers struct {
	net.PacketConn
	mu   sync.Mutex
	came []uint32
}

func (w *world) numbers(f family) *numbers {
	w.Helper()
	pc, err := w.bob.ListenPacket(netName("udp", f), netip.AddrPortFrom(f.of(w.bob), 0).String())
	w.must(err)
	n := &numbers{PacketConn: pc}
	go func() {
		b := make([]byte, 2000)
		for {
			k, _, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			if k >= 4 {
				n.mu.Lock()
				n.came = append(n.came, sequenceOf(b))
				n.mu.Unlock()
			}
		}
	}()
	return n
}

// want waits until so many have come, and a moment longer, and compares them: not their order, since the ciphers of a kernel with several processors change it.
func (n *numbers) want(w *world, what string, all ...uint32) {
	w.Helper()
	var got []uint32
	for end, quiet := time.Now().Add(wait), 0; time.Now().Before(end) && quiet < 10; time.Sleep(10 * time.Millisecond) {
		n.mu.Lock()
		got = slices.Clone(n.came)
		n.mu.Unlock()
		if len(got) >= len(all) {
			quiet++
		}
	}
	slices.Sort(got)
	slices.Sort(all)
	if !slices.Equal(got, all) {
		w.Errorf("%s: %v came, want %v", what, got, all)
	}
}

// forget begins anew.
func (n *numbers) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.came = nil
}

// watched is a world with a rule that watches everything.
type watched struct {
	*world
	f      family
	da, db ipsec.Dataplane
	at     *numbers
	from   net.Conn
	pair   uint32
}

func (w *watched) send(list ...uint32) {
	w.Helper()
	for _, n := range list {
		_, err := w.from.Write(binary.BigEndian.AppendUint32(nil, n))
		w.must(err)
	}
}

// key arms a new Pair at Alice, and repeats what was refused, or only asks for that.
func (w *watched) key(arm bool) {
	w.Helper()
	w.pair++
	alice, bob := w.pairs(w.pair, shape{w.f, ipsec.Transport, w.pair%2 == 0})
	w.must(errors.Join(w.db.InstallInbound(bob), w.da.InstallInbound(alice)))
	if arm {
		w.must(w.da.InstallOutbound(alice))
	}
	w.must(w.da.Repeat(w.pair))
}

func (w *watched) unkey() {
	w.Helper()
	w.must(errors.Join(w.da.Remove(w.pair), w.db.Remove(w.pair)))
	w.at.forget()
}

// testWatch: what is watched leaves in clear at once, and raises Acquire. Repeat sends it again, through the Pair, in its order and once: not without an armed Pair, not when
// it is old, and not when the rule has gone meanwhile. Where nobody is there any more it leaves all the same.
func testWatch(w *world) {
	w.echo(w.bob)
	da, db := w.open(w.alice), w.open(w.bob)
	for _, f := range w.some() {
		w.must(da.SetRules(everywhere(ipsec.Watch)))
		x := &watched{world: w, f: f, da: da, db: db, at: w.numbers(f), pair: uint32(10 * (f + 1))}
		var err error
		x.from, err = w.alice.Dial(context.Background(), netName("udp", f), x.at.LocalAddr().String())
		w.must(err)
		x.testRepeat()
		x.testNotRepeated()
		_, _ = x.from.Close(), x.at.Close()
	}
}

func (w *watched) testRepeat() {
	s := ipsec.Host(w.f.of(w.alice), w.f.of(w.bob))
	w.reset()
	w.send(1, 2, 3)
	w.at.want(w.world, "in clear", 1, 2, 3)
	w.acquired(w.da, s)
	w.silence(w.da, ipsec.Acquire)
	if c := w.counts(w.f); c.Clear() != 3 || c.ESP() != 0 {
		w.Errorf("tap: %v, want 3 in clear", c)
	}
	w.key(true)
	w.at.want(w.world, "and again", 1, 2, 3, 1, 2, 3)
	w.send(4)
	w.must(w.da.Repeat(w.pair)) // once
	w.at.want(w.world, "and no more", 1, 2, 3, 1, 2, 3, 4)
	if c := w.counts(w.f); c.Clear() != 3 || c.ESP() != 4 {
		w.Errorf("tap: %v, want 3 in clear and 4 of ESP", c)
	}
	w.unkey()
	// What was let go after that is not watched, and what left before is still there.
	w.send(5)
	w.at.want(w.world, "watched again", 5)
	w.must(w.da.SetPolicy(s, ipsec.Bypass, time.Now().Add(time.Minute)))
	w.send(6)
	w.key(true)
	w.at.want(w.world, "let go meanwhile", 5, 6, 5)
	w.unkey()
	w.must(w.da.ClearPolicy(s))
	// There is a bound: all leave, and the first ones again. A burst may be more than the cable takes.
	for n := range uint32(100) {
		w.send(n)
		time.Sleep(time.Millisecond)
	}
	w.key(true)
	all := make([]uint32, 0, 164)
	for n := range uint32(164) {
		all = append(all, n%100)
	}
	w.at.want(w.world, "many", all...)
	w.unkey()
}

func (w *watched) testNotRepeated() {
	for range 10 { // the packet comes before the Pair, or in the middle of its installation, or behind it
		w.send(1)
		w.key(false)
		w.at.want(w.world, "not armed", 1)
		w.must(w.da.Repeat(w.pair + 1)) // there is no such Pair
		w.unkey()
	}
	w.must(w.da.SetRules(nil))
	w.must(w.da.SetRules(everywhere(ipsec.Watch)))
	w.key(true)
	w.at.want(w.world, "the rule had gone")
	w.unkey()
	if w.f == v6 {
		return
	}
	w.send(2)
	time.Sleep(3300 * time.Millisecond)
	w.key(true)
	w.at.want(w.world, "old", 2)
	w.unkey()
}

// testWatchOfTheDead: nothing waits for a process that has ended, and what comes before the next one knows its rules leaves when it does.
func testWatchOfTheDead(w *world) {
	w.echo(w.bob)
	first := w.lingering()
	w.must(first.SetRules(everywhere(ipsec.Watch)))
	for _, f := range families {
		w.answered(f, w.alice, w.bob, 8, 1400, 5000)
	}
	w.must(first.Close(true))
	for _, f := range families {
		w.answered(f, w.alice, w.bob, 8, 1400, 5000)
		w.must(<-w.connecting(f))
	}
	second := w.lingering()
	defer func() { w.must(second.Close(false)) }()
	w.must(second.SetRules(everywhere(ipsec.Watch)))
	for _, f := range families {
		w.answered(f, w.alice, w.bob, 8, 1400, 5000)
		w.must(<-w.connecting(f))
	}
}

// lingering opens the data plane of a process that leaves something behind.
func (w *world) lingering() (d ipsec.Dataplane) {
	w.must(w.alice.Do(func() (err error) { d, err = w.subject.Open(Options{Linger: time.Minute}); return err }))
	return d
}

// testBypassOfTheDead: what a dead process had let go is held where a rule says so now.
func testBypassOfTheDead(w *world) {
	w.echo(w.bob)
	between := func(f family) ipsec.Selector { return ipsec.Host(f.of(w.alice), f.of(w.bob)) }
	first := w.lingering()
	w.must(first.SetRules(everywhere(ipsec.Watch)))
	for _, f := range families {
		w.must(first.SetPolicy(between(f), ipsec.Bypass, time.Now().Add(time.Minute)))
	}
	w.must(first.Close(true))
	second := w.lingering()
	defer func() { w.must(second.Close(false)) }()
	w.must(second.SetRules(everywhere(ipsec.Hold)))
	w.reset()
	for _, f := range families {
		connected := w.connecting(f)
		w.acquired(second, between(f))
		if n := len(w.synsFrom(f, w.alice)); n != 0 {
			w.Errorf("%v: %d packets left in clear", f, n)
		}
		w.must(second.SetPolicy(between(f), ipsec.Bypass, time.Now().Add(time.Minute)))
		w.must(<-connected)
	}
}

// testWatchLong: a packet that is too long to be kept raises Acquire too, or its address would be watched for ever.
func testWatchLong(w *world) {
	da := w.open(w.alice)
	w.must(da.SetRules(everywhere(ipsec.Watch)))
	for _, f := range families {
		from, err := w.alice.Dial(context.Background(), netName("udp", f), netip.AddrPortFrom(f.of(w.bob), 7009).String())
		w.must(err)
		_, err = from.Write(make([]byte, 4000))
		w.must(err)
		w.acquired(da, ipsec.Host(f.of(w.alice), f.of(w.bob)))
		_ = from.Close()
	}
}

// testWatchStorm: however many addresses are watched, all packets leave, and what waits for another finds its place.
func testWatchStorm(w *world) {
	w.echo(w.bob)
	w.route(w.alice, "198.18.0.0/15", "192.0.2.2")
	da := w.open(w.alice)
	w.must(da.SetRules([]ipsec.Rule{{Remote: netip.MustParsePrefix("198.18.0.0/15"), Action: ipsec.Watch}, {Remote: v4.network(), Action: ipsec.Trap}}))
	pc, err := w.alice.ListenPacket("udp4", "192.0.2.1:0")
	w.must(err)
	defer pc.Close()
	w.reset()
	const storm = 2000
	for i := range storm {
		b := [4]byte{198, 18}
		binary.BigEndian.PutUint16(b[2:], uint16(i))
		_, err := pc.WriteTo([]byte("storm"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4(b), 7007)))
		w.must(err)
		if i%50 == 0 {
			time.Sleep(time.Millisecond) // no more than the cable takes
		}
	}
	connected := w.connecting(v4)
	s := ipsec.Host(w.alice.Addr4(), w.bob.Addr4())
	w.acquired(da, s)
	w.must(da.SetPolicy(s, ipsec.Bypass, time.Now().Add(time.Minute)))
	w.must(<-connected)
	w.sync()
	seen := make(map[netip.Addr]bool)
	for _, p := range w.tap.Select(func(p lab.Packet) bool { return p.Src == w.alice.Addr4() && p.Dst.As4()[0] == 198 }) {
		seen[p.Dst] = true
	}
	if len(seen) != storm {
		w.Errorf("packets to %d addresses left, want %d", len(seen), storm)
	}
}
