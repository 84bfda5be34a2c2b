package ipsectest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"

	"tacit/ipsec"
	"tacit/lab"
)

// echoInClear are the echo's ports as those that a rule leaves in clear.
var echoInClear = []ipsec.Port{{Proto: syscall.IPPROTO_TCP, Number: echoPort}, {Proto: syscall.IPPROTO_UDP, Number: echoPort}}

// testClearPorts: what a rule leaves in clear passes so both ways, also where a Pair or a policy stands; nothing else does, and its ports are no
// door to other services.
func testClearPorts(w *world) {
	w.echo(w.alice)
	w.echo(w.bob)
	da, db := w.open(w.alice), w.open(w.bob)
	rules := everywhere(ipsec.Hold)
	for i := range rules {
		rules[i].ClearPorts = echoInClear
	}
	w.must(errors.Join(da.SetRules(rules), db.SetRules(rules)))
	for i, f := range w.some() {
		w.passesClear(f)
		if w.reaches(f, w.bob, w.alice) {
			w.Errorf("%v: another port is in clear", f)
		}
		w.acquired(da, ipsec.Host(f.of(w.alice), f.of(w.bob)))
		alice, bob := w.pairs(uint32(i+1), shape{f, ipsec.Transport, true})
		w.up(da, db, alice, bob)
		w.reset()
		w.hears(f, w.bob, w.alice)
		w.hears(f, w.alice, w.bob)
		if c := w.counts(f); c.Clear() != 0 || c.ESP() < 2 {
			w.Errorf("%v: other ports: tap: got %v, want ESP", f, c)
		}
		w.passesClear(f)
		w.bulk(f, w.alice, w.bob, 1<<20)
		w.testPortDoor(f)
		w.must(errors.Join(da.Remove(alice.ID), db.Remove(bob.ID)))
	}
}

// passesClear fails the test unless the echoes of both hosts answer in clear, over UDP and TCP.
func (w *world) passesClear(f family) {
	w.Helper()
	w.reset()
	for _, way := range [][2]*lab.Host{{w.alice, w.bob}, {w.bob, w.alice}} {
		w.answered(f, way[0], way[1], 8, 1200)
		c, err := w.dial("tcp", f, way[0], way[1])
		w.must(err)
		w.must(errors.Join(ask(c, 100, wait), c.Close()))
	}
	if c := w.counts(f); c.ESP() != 0 || c.Clear() < 20 {
		w.Errorf("%v: tap: got %v, want clear packets only", f, c)
	}
}

// testPortDoor: from Bob's port in clear a clear packet reaches no other service of Alice, and nothing leaves in reply.
func (w *world) testPortDoor(f family) {
	w.Helper()
	const service = 7008
	at := netip.AddrPortFrom(f.of(w.alice), service)
	l, err := w.alice.Listen(netName("tcp", f), at.String())
	w.must(err)
	defer l.Close()
	pc, err := w.alice.ListenPacket(netName("udp", f), at.String())
	w.must(err)
	defer pc.Close()
	w.reset()
	w.attackAsBob(f, service, echoPort)
	w.must(pc.SetReadDeadline(time.Now().Add(200 * time.Millisecond)))
	if _, _, err := pc.ReadFrom(make([]byte, 16)); err == nil {
		w.Errorf("%v: a clear datagram from a port in clear reached another service", f)
	}
	w.sync()
	if c := w.tap.From(f.of(w.alice), f.of(w.bob)); c.Clear() != 0 || c.ESP() != 0 {
		w.Errorf("%v: alice replied: %v", f, c)
	}
}

// testExemptKinds: what no rule concerns passes where a rule holds everything.
func testExemptKinds(w *world) {
	w.echo(w.alice)
	w.echo(w.bob)
	w.serveDNS(w.bob)
	da := w.open(w.alice)
	w.must(da.SetRules(everywhere(ipsec.Hold)))
	for _, f := range families {
		w.unanswered(f, w.alice, w.bob)
		w.answered(f, w.alice, w.alice, 8) // own addresses
		w.asks(f, w.alice, w.bob)
	}
	for _, a := range []string{"127.0.0.1", "::1"} {
		w.must(w.alice.Do(func() error { return loopback(a) }))
	}
	// The neighbours are found anew; what they are asked with is no matter of rules.
	w.must(errors.Join(w.alice.FlushNeighbours(), w.bob.FlushNeighbours()))
	w.must(da.SetPolicy(ipsec.Host(w.alice.Addr6(), w.bob.Addr6()), ipsec.Bypass, time.Now().Add(time.Minute)))
	w.answered(v6, w.alice, w.bob, 8)
	w.must(da.ClearPolicy(ipsec.Host(w.alice.Addr6(), w.bob.Addr6())))
	link := w.link(w.alice)
	for _, to := range []string{"224.0.0.0/4", "255.255.255.255/32"} { // else there is no way there
		_, dst, err := net.ParseCIDR(to)
		w.must(err)
		w.must(w.alice.Netlink().RouteAdd(&netlink.Route{Dst: dst, LinkIndex: link, Scope: netlink.SCOPE_LINK}))
	}
	w.sendsTo(68, "192.0.2.2:67", "255.255.255.255:67", "192.0.2.255:7007", "224.0.0.251:5353")
	w.sendsTo(546, "[2001:db8::2]:547", fmt.Sprintf("[ff02::fb%%%d]:5353", link))
	w.hearsBroadcast()
	conn, err := da.Conn(netip.AddrPortFrom(w.alice.Addr4(), 500))
	w.must(err)
	w.reset()
	w.must(conn.Write(make([]byte, 28), netip.AddrPortFrom(w.alice.Addr4(), 500), netip.AddrPortFrom(w.bob.Addr4(), 500)))
	w.await(func() bool { return w.tap.From(w.alice.Addr4(), w.bob.Addr4())[lab.ClassIKE].Packets == 1 })
	w.must(conn.Close())
	w.testGateway(da)
}

// loopback exchanges a datagram with oneself.
func loopback(addr string) error {
	pc, err := net.ListenPacket("udp", net.JoinHostPort(addr, "0"))
	if err != nil {
		return err
	}
	defer pc.Close()
	if _, err := pc.WriteTo([]byte("hello"), pc.LocalAddr()); err != nil {
		return err
	}
	_ = pc.SetReadDeadline(time.Now().Add(wait))
	_, _, err = pc.ReadFrom(make([]byte, 16))
	return err
}

// link is the index of a host's device.
func (w *world) link(h *lab.Host) int {
	w.Helper()
	links, err := h.Netlink().LinkList()
	w.must(err)
	for _, l := range links {
		if l.Attrs().Flags&net.FlagBroadcast != 0 && l.Attrs().HardwareAddr.String() == h.MAC().String() {
			return l.Attrs().Index
		}
	}
	w.Fatalf("%s has no link", h.Name)
	return 0
}

// sendsTo fails the test unless the tap sees what Alice sends in clear to each place, from the port.
func (w *world) sendsTo(from uint16, to ...string) {
	w.Helper()
	for _, place := range to {
		at := netip.MustParseAddrPort(place)
		network := "udp4"
		if at.Addr().Is6() {
			network = "udp6"
		}
		pc, err := w.alice.ListenPacket(network, fmt.Sprintf(":%d", from))
		w.must(err)
		w.reset()
		if _, err = pc.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(at)); err != nil {
			w.Errorf("to %s: %v", place, err)
		} else {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			err = w.tap.Wait(ctx, func() bool {
				return len(w.tap.Select(func(p lab.Packet) bool { return p.Dst == at.Addr().WithZone("") && p.DstPort == at.Port() })) == 1
			})
			cancel()
			if err != nil {
				w.Errorf("to %s: nothing was seen", place)
			}
		}
		w.must(pc.Close())
	}
}

// hearsBroadcast: so does what comes to a broadcast address.
func (w *world) hearsBroadcast() {
	w.Helper()
	pc, err := w.alice.ListenPacket("udp4", "0.0.0.0:7010")
	w.must(err)
	defer pc.Close()
	c, err := w.bob.ListenPacket("udp4", ":0")
	w.must(err)
	defer c.Close()
	_, err = c.WriteTo([]byte("hello"), &net.UDPAddr{IP: net.IPv4(192, 0, 2, 255), Port: 7010})
	w.must(err)
	w.must(pc.SetReadDeadline(time.Now().Add(wait)))
	if _, _, err := pc.ReadFrom(make([]byte, 16)); err != nil {
		w.Errorf("a broadcast did not arrive: %v", err)
	}
}

// testGateway: the default gateway is subject to no rule, soon after it is one, and no longer.
func (w *world) testGateway(da ipsec.Dataplane) {
	w.Helper()
	w.unanswered(v4, w.alice, w.bob)
	r := &netlink.Route{Gw: w.bob.Addr4().AsSlice()}
	w.must(w.alice.Netlink().RouteAdd(r))
	for begin := time.Now(); ask(w.dialUDP(v4, w.alice, w.bob), 8, 200*time.Millisecond) != nil; {
		if time.Since(begin) > 8*time.Second {
			w.Fatal("the default gateway is held")
		}
	}
	w.must(w.alice.Netlink().RouteDel(r))
	w.must(da.SetRules(everywhere(ipsec.Hold)))
	w.unanswered(v4, w.alice, w.bob)
}
