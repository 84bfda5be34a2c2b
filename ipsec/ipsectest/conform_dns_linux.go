package ipsectest

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/ipsec"
	"tacit/lab"
)

// dnsPorts are exempt from every policy (TRUST.md R6).
var dnsPorts = []uint16{53, 853}

// largeText makes an answer that travels in fragments.
var largeText = strings.Repeat("0123456789abcdef", 15)

// testDNS: DNS between protected hosts passes in clear, over UDP and TCP and whichever of them asks; and its ports are no
// door: who can send as the peer from port 53 reaches no service and gets no reply.
func testDNS(w *world) {
	before := w.state(w.alice)
	w.echo(w.alice)
	w.echo(w.bob)
	w.serveDNS(w.alice)
	stop := w.serveDNS(w.bob)
	for _, f := range families { // the attack does work where nothing is protected
		w.attackAsBob(f, echoPort, 53)
		w.await(func() bool { return w.tap.From(f.of(w.alice), f.of(w.bob))[lab.ClassDNS].Packets >= 2 })
	}
	var da ipsec.Dataplane
	w.must(w.alice.Do(func() (err error) { da, err = w.subject.Open(Options{Linger: time.Minute}); return err }))
	db := w.open(w.bob)
	for i, f := range families {
		alice, bob := w.pairs(uint32(i+1), shape{f, ipsec.Transport, true})
		w.up(da, db, alice, bob)
		w.answered(f, w.alice, w.bob, 8)
		w.Run(f.String(), func(t *testing.T) {
			in := w.within(t)
			in.asks(f, w.alice, w.bob)
			in.asks(f, w.bob, w.alice)
			in.testDoor(f, da, alice)
			in.testQueryPort(f, da, alice)
			in.asks(f, w.alice, w.bob)
		})
	}
	stop() // Bob's ports are free
	for _, f := range families {
		w.testServicePort(f)
	}
	w.must(da.Close(false))
	if after := w.state(w.alice); after != before {
		w.Errorf("after close: got\n%s\nwant\n%s", after, before)
	}
}

// serveDNS answers every question on all DNS ports of a host with a small text, and questions for "large." with a large one.
func (w *world) serveDNS(h *lab.Host) (stop func()) {
	w.Helper()
	answer := dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		n := 1
		if q.Question[0].Name == "large." {
			n = 20
		}
		for i := range n {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET},
				Txt: []string{strconv.Itoa(i), largeText}})
		}
		_ = rw.WriteMsg(m)
	})
	var at []string
	for _, f := range families {
		for _, port := range dnsPorts {
			at = append(at, netip.AddrPortFrom(f.of(h), port).String())
		}
	}
	stop, err := h.ServeDNS(answer, at...)
	w.must(err)
	stop = sync.OnceFunc(stop)
	w.Cleanup(stop)
	return stop
}

// asks fails the test unless all DNS from one host to the other is answered, in clear.
func (w *world) asks(f family, from, to *lab.Host) {
	w.Helper()
	w.reset()
	for _, proto := range []string{"udp", "tcp"} {
		for _, port := range dnsPorts {
			for _, name := range []string{"small.", "large."} {
				if err := askDNS(proto, f, from, to, port, name); err != nil {
					w.Errorf("%v, %s port %d, %s from %s: %v", f, proto, port, name, from.Name, err)
				}
			}
		}
	}
	if c := w.counts(f); c.ESP() != 0 || c.Clear() != 0 || c[lab.ClassDNS].Packets < 20 {
		w.Errorf("%v, DNS from %s: tap: got %v, want DNS only", f, from.Name, c)
	}
}

func askDNS(proto string, f family, from, to *lab.Host, port uint16, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	c, err := from.Dial(ctx, netName(proto, f), netip.AddrPortFrom(f.of(to), port).String())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(wait))
	q := new(dns.Msg).SetQuestion(name, dns.TypeTXT).SetEdns0(dns.MaxMsgSize-1, false)
	co := &dns.Conn{Conn: c, UDPSize: dns.MaxMsgSize - 1}
	if err := co.WriteMsg(q); err != nil {
		return err
	}
	m, err := co.ReadMsg()
	if err == nil && (m.Id != q.Id || len(m.Answer) == 0) {
		err = errors.New("not the answer")
	}
	return err
}

// attackAsBob sends Alice a SYN and a datagram from Bob's address and the ports, and says how many packets that was.
func (w *world) attackAsBob(f family, to uint16, from ...uint16) (sent uint64) {
	w.Helper()
	dst := netip.AddrPortFrom(f.of(w.alice), to)
	for _, port := range from {
		src := netip.AddrPortFrom(f.of(w.bob), port)
		w.must(errors.Join(w.malory.Inject(synPacket(src, dst)), w.malory.Inject(lab.UDPPacket(src, dst, []byte("answer me")))))
		sent += 2
	}
	return sent
}

// testDoor: what comes from the peer's DNS ports to a service is dropped, counted and reported, again and again, and nothing leaves
// in reply.
func (w *world) testDoor(f family, da ipsec.Dataplane, alice ipsec.Pair) {
	for range 2 {
		w.silenced(da, alice)
		w.reset()
		was, err := da.Usage(alice.ID)
		w.must(err)
		sent := w.attackAsBob(f, echoPort, dnsPorts...)
		w.event(da, ipsec.ClearSeen, wait)
		w.dropped(da, alice, was.ClearDropped+sent)
		w.sync()
		if c := w.tap.From(f.of(w.alice), f.of(w.bob)); c[lab.ClassDNS].Packets != 0 || c.Clear() != 0 || c.ESP() != 0 {
			w.Errorf("%v: alice replied: %v", f, c)
		}
	}
}

// silenced waits until what was dropped before is reported.
func (w *world) silenced(da ipsec.Dataplane, alice ipsec.Pair) {
	w.Helper()
	for last, end := ^uint64(0), time.Now().Add(wait); time.Now().Before(end); {
		u, err := da.Usage(alice.ID)
		w.must(err)
		if u.ClearDropped == last {
			break
		}
		last = u.ClearDropped
		time.Sleep(1200 * time.Millisecond)
	}
	drain(da.Events())
}

// dropped waits until so many clear packets of the peer are counted, and fails the test unless it is exactly as many.
func (w *world) dropped(da ipsec.Dataplane, alice ipsec.Pair, want uint64) {
	w.Helper()
	var got uint64
	for end := time.Now().Add(wait); time.Now().Before(end) && got < want; time.Sleep(50 * time.Millisecond) {
		u, err := da.Usage(alice.ID)
		w.must(err)
		got = u.ClearDropped
	}
	if got != want {
		w.Errorf("clear dropped: got %d, want %d", got, want)
	}
}

// testQueryPort: a query opens the way for its answer only: not for other ports at either end, nor for a connection.
func (w *world) testQueryPort(f family, da ipsec.Dataplane, alice ipsec.Pair) {
	w.silenced(da, alice)
	pc, err := w.alice.ListenPacket(netName("udp", f), netip.AddrPortFrom(f.of(w.alice), 0).String())
	w.must(err)
	defer pc.Close()
	received := countPackets(pc)
	own := pc.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	q, err := new(dns.Msg).SetQuestion("small.", dns.TypeTXT).Pack()
	w.must(err)
	_, err = pc.WriteTo(q, net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.of(w.bob), 53)))
	w.must(err)
	for end := time.Now().Add(wait); received() < 1 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	was, err := da.Usage(alice.ID)
	w.must(err)
	w.reset()
	w.attackAsBob(f, own, 853, 54)
	w.must(w.malory.Inject(synPacket(netip.AddrPortFrom(f.of(w.bob), 53), netip.AddrPortFrom(f.of(w.alice), own))))
	w.dropped(da, alice, was.ClearDropped+5)
	c, err := w.alice.Dial(context.Background(), netName("tcp", f), netip.AddrPortFrom(f.of(w.bob), 53).String())
	w.must(err)
	defer c.Close()
	calling := c.LocalAddr().(*net.TCPAddr).AddrPort()
	w.sync()
	sent := w.tap.From(f.of(w.alice), f.of(w.bob))
	w.must(w.malory.Inject(synPacket(netip.AddrPortFrom(f.of(w.bob), 53), calling)))
	w.dropped(da, alice, was.ClearDropped+6)
	if n := received(); n != 1 {
		w.Errorf("%v: alice's port %d: got %d datagrams, want bob's answer only", f, own, n)
	}
	w.sync()
	if c := w.tap.From(f.of(w.alice), f.of(w.bob)); sent[lab.ClassDNS].Packets != 2 || c != sent || c.Clear() != 0 {
		w.Errorf("%v: alice sent %v, then %v, want a SYN and an ACK only", f, sent, c)
	}
}

// testServicePort: a program that calls from a DNS port, which nobody asked, is protected, and so is what a service answers it.
func (w *world) testServicePort(f family) {
	w.reset()
	reuse := func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) })
	}
	for _, port := range dnsPorts {
		err := w.bob.Do(func() error {
			d := net.Dialer{Timeout: wait, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(f.of(w.bob), port)), Control: reuse}
			c, err := d.Dial(netName("tcp", f), netip.AddrPortFrom(f.of(w.alice), echoPort).String())
			if err != nil {
				return err
			}
			defer c.Close()
			return ask(c, 100, wait)
		})
		if err != nil {
			w.Errorf("%v: bob's port %d to alice's service: %v", f, port, err)
		}
	}
	if c := w.counts(f); c[lab.ClassDNS].Packets != 0 || c.Clear() != 0 || c.ESP() == 0 {
		w.Errorf("%v: calls from DNS ports: tap: got %v, want ESP only", f, c)
	}
}

// synPacket is an IP packet that opens a TCP connection.
func synPacket(src, dst netip.AddrPort) []byte {
	t := make([]byte, 20)
	binary.BigEndian.PutUint16(t, src.Port())
	binary.BigEndian.PutUint16(t[2:], dst.Port())
	binary.BigEndian.PutUint32(t[4:], 1)
	t[12], t[13] = 5<<4, 0x02
	binary.BigEndian.PutUint16(t[14:], 0xffff)
	pseudo := append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
	pseudo = append(append(pseudo, 0, 6, 0, 20), t...)
	var sum uint32
	for i := 0; i < len(pseudo); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(pseudo[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(t[16:], ^uint16(sum))
	return lab.IPPacket(src.Addr(), dst.Addr(), 6, t)
}
