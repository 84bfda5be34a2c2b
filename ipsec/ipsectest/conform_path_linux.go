package ipsectest

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"tacit/ipsec"
	"tacit/lab"
)

// testRekey: make before break. Datagrams fly both ways all the while, and none is lost.
func testRekey(w *world) {
	w.echo(w.bob)
	da, db := w.open(w.alice), w.open(w.bob)
	alice, bob := w.pairs(1, shape{v4, ipsec.Transport, true})
	w.up(da, db, alice, bob)
	stop, lost := make(chan struct{}), make(chan int, 1)
	go func() { lost <- flood(w.dialUDP(v4, w.alice, w.bob), stop) }()
	w.event(db, ipsec.FirstPacket, wait)
	for i := range 20 {
		time.Sleep(10 * time.Millisecond)
		nextA, nextB := w.pairs(1, shape{v4, ipsec.Transport, true})
		switch i % 2 {
		case 0: // Alice rekeys: Bob installs, answers, and sends with the new SA when he has heard it
			w.must(db.InstallInbound(nextB))
			w.must(da.InstallInbound(nextA))
			w.must(da.InstallOutbound(nextA))
		case 1:
			w.must(da.InstallInbound(nextA))
			w.must(db.InstallInbound(nextB))
			w.must(db.InstallOutbound(nextB))
		}
		for e := w.event(da, ipsec.FirstPacket, wait); e.SPI != nextA.In.SPI; {
			e = w.event(da, ipsec.FirstPacket, wait)
		}
		for e := w.event(db, ipsec.FirstPacket, wait); e.SPI != nextB.In.SPI; {
			e = w.event(db, ipsec.FirstPacket, wait)
		}
		time.Sleep(5 * time.Millisecond) // what is under way with the old one
		w.must(da.Retire(1, alice.In.SPI))
		w.must(db.Retire(1, bob.In.SPI))
		alice, bob = nextA, nextB
	}
	close(stop)
	if n := <-lost; n != 0 {
		w.Errorf("%d datagrams were lost", n)
	}
	w.noClear(v4)
	if u, err := da.Usage(1); err != nil || u.InPackets < 100 || u.Invalid != 0 || u.Replayed != 0 {
		w.Errorf("usage: got %+v, %v", u, err)
	}
}

// flood sends numbered datagrams, a few in flight at a time, and says how many echoes never came.
func flood(c net.Conn, stop <-chan struct{}) (lost int) {
	const inFlight = 8
	missing := make(map[uint32]bool)
	b := make([]byte, 256)
	read := func(within time.Duration) bool {
		_ = c.SetReadDeadline(time.Now().Add(within))
		n, err := c.Read(b)
		if err != nil || n < 4 {
			return false
		}
		delete(missing, sequenceOf(b))
		return true
	}
	for n := uint32(1); ; n++ {
		select {
		case <-stop:
			for len(missing) > 0 && read(500*time.Millisecond) {
			}
			return len(missing)
		default:
		}
		out := make([]byte, 100)
		binary.BigEndian.PutUint32(out, n)
		if _, err := c.Write(out); err != nil {
			return -1
		}
		missing[n] = true
		for len(missing) >= inFlight && read(500*time.Millisecond) {
		}
		if len(missing) > 10*inFlight {
			return len(missing)
		}
	}
}

// testNeighbours: neighbour discovery is never touched. Without the exemption IPv6 deadlocks when the cache is empty.
func testNeighbours(w *world) {
	w.echo(w.bob)
	da, db := w.open(w.alice), w.open(w.bob)
	for i, f := range families {
		alice, bob := w.pairs(uint32(i+1), shape{f, ipsec.Transport, false})
		w.up(da, db, alice, bob)
		w.answered(f, w.alice, w.bob, 8)
		for range 3 {
			w.must(errors.Join(w.alice.FlushNeighbours(), w.bob.FlushNeighbours()))
			w.answered(f, w.alice, w.bob, 8)
		}
		// A peer that comes back from a reboot knows nothing, and asks.
		w.must(db.Remove(bob.ID))
		w.must(errors.Join(w.alice.FlushNeighbours(), w.bob.FlushNeighbours()))
		w.reset()
		w.unanswered(f, w.bob, w.alice)
		w.sync()
		if c := w.tap.From(f.of(w.bob), f.of(w.alice)); c.Clear() == 0 {
			w.Errorf("%v: bob's datagram never left: %v: neighbour discovery failed", f, c)
		}
	}
}

// testReversePath: strict rp_filter on all devices drops nothing.
func testReversePath(w *world) {
	w.echo(w.bob)
	for _, h := range []*lab.Host{w.alice, w.bob} {
		w.must(h.Sysctl("net.ipv4.conf.all.rp_filter", "1"))
		w.must(h.Sysctl("net.ipv4.conf.default.rp_filter", "1"))
	}
	da, db := w.open(w.alice), w.open(w.bob)
	for i, udp := range []bool{false, true} {
		alice, bob := w.pairs(uint32(i+1), shape{v4, ipsec.Transport, udp})
		w.up(da, db, alice, bob)
		w.answered(v4, w.alice, w.bob, 8, 9000)
		w.must(errors.Join(da.Remove(alice.ID), db.Remove(bob.ID)))
	}
}

// testForward: what Alice forwards for others is not touched by her policies, nor when it goes to an address that she protects.
func testForward(w *world) {
	w.echo(w.bob)
	guest, err := w.lab.Host("guest", lab.Prefixes("198.51.100.7/24")...)
	w.must(err)
	w.must(w.alice.AddAddr(netip.MustParsePrefix("198.51.100.1/24")))
	w.must(w.alice.Sysctl("net.ipv4.ip_forward", "1"))
	w.route(guest, "192.0.2.0/24", "198.51.100.1")
	w.route(w.bob, "198.51.100.0/24", "192.0.2.1")
	da, db := w.open(w.alice), w.open(w.bob)
	w.answered(v4, guest, w.bob, 8)
	for _, a := range []ipsec.Action{ipsec.Hold, ipsec.Block} {
		w.must(da.SetPolicy(ipsec.Host(w.alice.Addr4(), w.bob.Addr4()), a, time.Now().Add(time.Minute)))
		w.answered(v4, guest, w.bob, 8)
	}
	w.must(da.ClearPolicy(ipsec.Host(w.alice.Addr4(), w.bob.Addr4())))
	for _, a := range []ipsec.Action{ipsec.Hold, ipsec.Block, ipsec.Trap} {
		w.must(da.SetRules(everywhere(a)))
		w.answered(v4, guest, w.bob, 8)
	}
	alice, bob := w.pairs(1, shape{v4, ipsec.Transport, true})
	w.up(da, db, alice, bob)
	w.answered(v4, w.alice, w.bob, 8)
	w.answered(v4, guest, w.bob, 8)
}

// route adds a route to a host.
func (w *world) route(h *lab.Host, to, via string) {
	w.Helper()
	_, dst, err := net.ParseCIDR(to)
	w.must(err)
	w.must(h.Netlink().RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(via)}))
}

// testForeignMarks: a firewall of somebody else that overwrites every mark, and so routes what was diverted anew, makes
// packets fail at worst, not leak.
func testForeignMarks(w *world) {
	w.echo(w.bob)
	if _, err := exec.LookPath("nft"); err != nil {
		w.Skip("needs the program nft")
	}
	da, db := w.open(w.alice), w.open(w.bob)
	for i, f := range families {
		alice, bob := w.pairs(uint32(i+1), shape{f, ipsec.Transport, true})
		w.up(da, db, alice, bob)
		w.answered(f, w.alice, w.bob, 8)
	}
	rules := "table inet other { chain out { type route hook output priority 100; meta mark and 0xff000000 == 0x7b000000 meta mark set 1; }; }"
	_, err := w.alice.Command(context.Background(), "nft", rules).Output()
	w.must(err)
	w.must(da.SetRules(everywhere(ipsec.Hold)))
	for _, f := range families { // where no mark leads the way they are protected as before
		_ = ask(w.dialUDP(f, w.alice, w.bob), 8, 300*time.Millisecond)
		_ = ask(w.dialUDP(f, w.alice, w.malory), 8, 300*time.Millisecond)
		w.noClear(f)
		if c := w.tap.From(f.of(w.alice), f.of(w.malory)); c.Clear() != 0 {
			w.Errorf("%v: a rule holds, and the tap saw %v", f, c)
		}
	}
}

// testIKE: IKE's messages pass whatever the policy, on both ports and families, with their local addresses, and without the
// non-ESP marker.
func testIKE(w *world) {
	da, db := w.open(w.alice), w.open(w.bob)
	for _, f := range families {
		for _, port := range []uint16{500, 4500} {
			at, to := netip.AddrPortFrom(f.of(w.alice), port), netip.AddrPortFrom(f.of(w.bob), port)
			w.must(da.SetPolicy(ipsec.Host(at.Addr(), to.Addr()), ipsec.Hold, time.Now().Add(time.Minute)))
			w.must(db.SetPolicy(ipsec.Host(to.Addr(), at.Addr()), ipsec.Block, time.Now().Add(time.Minute)))
			ca, err := da.Conn(at)
			w.must(err)
			cb, err := db.Conn(netip.AddrPortFrom(netip.Addr{}, port))
			w.must(err)
			timer := time.AfterFunc(wait, func() { _ = errors.Join(ca.Close(), cb.Close()) }) // a Read that waits in vain ends
			for _, size := range []int{28, 1400, 6000} {
				w.must(ca.Write(make([]byte, size), at, to))
				b := make([]byte, 65535)
				n, local, remote, err := cb.Read(b)
				w.must(err)
				if n != size || local != to || remote != at {
					w.Errorf("got %d octets, %v, %v; want %d, %v, %v", n, local, remote, size, to, at)
				}
				w.must(cb.Write(b[:n], local, remote))
				if n, _, _, err = ca.Read(b); n != size || err != nil {
					w.Errorf("reply: got %d octets, %v; want %d", n, err, size)
				}
			}
			timer.Stop()
			w.must(errors.Join(ca.Close(), cb.Close()))
		}
	}
}

// testMoved: valid packets from another address raise Moved and are delivered; Redirect follows.
func testMoved(w *world) {
	w.echo(w.bob)
	da, db := w.open(w.alice), w.open(w.bob)
	alice, bob := w.pairs(1, shape{v4, ipsec.Tunnel, true})
	w.up(da, db, alice, bob)
	w.answered(v4, w.alice, w.bob, 8)
	other := netip.MustParsePrefix("192.0.2.11/24")
	w.must(w.alice.AddAddr(other))
	local := netip.AddrPortFrom(other.Addr(), 4500)
	w.must(da.Redirect(1, local, alice.Remote))
	c := w.dialUDP(v4, w.alice, w.bob)
	_, err := c.Write([]byte("moved"))
	w.must(err)
	if e := w.event(db, ipsec.Moved, wait); e.Remote != local || e.ID != 1 {
		w.Errorf("moved: got %+v, want %v", e, local)
	}
	w.must(db.Redirect(1, bob.Local, local))
	w.answered(v4, w.alice, w.bob, 8)
	w.must(w.alice.DelAddr(other))
}

// testRefused: what cannot be done is refused with an error, and leaves nothing behind.
func testRefused(w *world) {
	da := w.open(w.alice)
	before := w.state(w.alice)
	good, _ := w.pairs(1, shape{v4, ipsec.Transport, false})
	for name, change := range map[string]func(*ipsec.Pair){
		"wide selector": func(p *ipsec.Pair) { p.Selector.Remote = netip.MustParsePrefix("192.0.2.0/24") },
		"no selector":   func(p *ipsec.Pair) { p.Selector = ipsec.Selector{} },
		"ports":         func(p *ipsec.Pair) { p.Selector.Proto, p.Selector.RemotePort = 6, 80 },
		"families":      func(p *ipsec.Pair) { p.Local = netip.AddrPortFrom(w.alice.Addr6(), 0) },
		"no remote":     func(p *ipsec.Pair) { p.Remote = netip.AddrPort{} },
		"short key":     func(p *ipsec.Pair) { p.In.Key = p.In.Key[:7] },
		"no cipher":     func(p *ipsec.Pair) { p.Out.Cipher = 11 },
		"no integrity":  func(p *ipsec.Pair) { p.Out.Cipher, p.Out.Salt = ipsec.AESCBC, nil },
		"two of them":   func(p *ipsec.Pair) { p.In.Integrity, p.In.AuthKey = ipsec.HMACSHA256, make([]byte, 32) },
		"reserved SPI":  func(p *ipsec.Pair) { p.Out.SPI = 255 },
	} {
		bad := good
		change(&bad)
		if err := da.InstallInbound(bad); err == nil {
			w.Errorf("inbound, %s: accepted", name)
		}
		if err := da.InstallOutbound(bad); err == nil {
			w.Errorf("outbound, %s: accepted", name)
		}
	}
	if err := da.SetPolicy(ipsec.Selector{Local: good.Selector.Local, Remote: netip.MustParsePrefix("0.0.0.0/0")}, ipsec.Hold,
		time.Now().Add(time.Minute)); err == nil {
		w.Error("a policy of one address to any: accepted")
	}
	if after := w.state(w.alice); after != before {
		w.Errorf("after refusals: got\n%s\nwant\n%s", after, before)
	}
	if _, err := da.Usage(1); err == nil {
		w.Error("usage of a pair that was refused: no error")
	}
	w.must(da.InstallInbound(good))
	if err := da.InstallInbound(good); err == nil {
		w.Error("the same SPI twice: accepted")
	}
	w.must(errors.Join(da.Remove(1), da.Remove(1)))
}

// testTraces: Close leaves the host as it was, and so does a second life.
func testTraces(w *world) {
	before := w.state(w.alice)
	for range 2 {
		var d ipsec.Dataplane
		w.must(w.alice.Do(func() (err error) { d, err = w.subject.Open(Options{}); return err }))
		alice, _ := w.pairs(1, shape{v6, ipsec.Transport, true})
		w.must(errors.Join(d.InstallInbound(alice), d.InstallOutbound(alice),
			d.SetPolicy(ipsec.Host(w.alice.Addr4(), w.bob.Addr4()), ipsec.Block, time.Now().Add(time.Minute))))
		w.must(d.Close(false))
		if _, open := <-drain(d.Events()); open {
			w.Error("events are still open after Close")
		}
		if after := w.state(w.alice); after != before {
			w.Errorf("after close: got\n%s\nwant\n%s", after, before)
		}
	}
}

func drain(events <-chan ipsec.Event) <-chan ipsec.Event {
	for range len(events) {
		<-events
	}
	return events
}

// state is what the kernel holds on a host: nftables, rules, routes, links, as the usual tools print it.
func (w *world) state(h *lab.Host) string {
	w.Helper()
	var out strings.Builder
	for _, line := range []string{"nft list ruleset", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all",
		"ip -o addr", "sysctl net.ipv4.conf.all.rp_filter net.ipv4.conf.all.src_valid_mark net.ipv6.conf.all.forwarding"} {
		args := strings.Fields(line)
		if _, err := exec.LookPath(args[0]); err != nil {
			w.Skipf("needs the program %s", args[0])
		}
		text, err := h.Command(context.Background(), args[0], args[1:]...).Output()
		w.must(err)
		out.WriteString("$ " + line + "\n" + string(text))
	}
	return out.String()
}
