package tun

import (
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"tacit/esp"
	"tacit/ipsec"
	"tacit/plane"
)

/* The way in, in packet order.

1. receiveLoop reads a batch of datagrams from a socket: raw ESP, or UDP port 4500. The kernel may have joined several
   datagrams of one sender into one (UDP_GRO): they are taken apart.
2. On port 4500 a keepalive is dropped, and what begins with the non-ESP marker goes to IKE (RFC 3948, 2.2 and 2.3).
3. receiveESP finds the SA by its SPI and opens the packet: window, ICV, window again.
4. unwrap checks that what came out lies in the Pair's selector ("If an IPsec system receives an inbound packet on an SA and
   the packet's header fields are not consistent with the selectors for the SA, it MUST discard the packet", RFC 4301, 5.2)
   and, in transport mode, puts an IP header before it. The address that the peer has assigned to us gives way to our own.
5. A SYN's segment size is lowered to what fits into ESP on the way back.
6. The first packet of an SA waits until the Pair is armed (arm.go). Others go into the device with the batch.
*/

// Sizes of a receive batch. Buffers hold what the kernel joined; what is never filled costs no memory.
const (
	receiveMessages = 8
	receiveBuffer   = 1 << 16
	deviceBatch     = 64
)

// receiver is the state of one receiveLoop.
type receiver struct {
	sock  *socket
	in    *recvBatch
	bufs  [][]byte // opened packets, with deviceOffset octets of room before them
	ready [][]byte
	now   time.Time
}

// receiveLoop moves packets from a socket to the device until the Plane is closed.
func (p *Plane) receiveLoop(s *socket) {
	r := &receiver{sock: s, in: newRecvBatch(s, receiveMessages, receiveBuffer), ready: make([][]byte, 0, deviceBatch)}
	for {
		n, err := r.in.read()
		if err != nil {
			if p.run.Stopping() {
				return
			}
			continue // an error of one packet
		}
		r.now = p.now()
		for i := range n {
			p.receiveDatagrams(r, i)
		}
		p.deliver(r)
	}
}

// buffer is where the next packet is opened. They are made as batches come to need them: a socket that carries no ESP has none.
func (r *receiver) buffer() []byte {
	if len(r.ready) == len(r.bufs) {
		r.bufs = append(r.bufs, make([]byte, deviceOffset+maxPacket+ipv6Header))
	}
	return r.bufs[len(r.ready)]
}

// deliver hands the opened packets to the device.
func (p *Plane) deliver(r *receiver) {
	if len(r.ready) == 0 {
		return
	}
	if _, err := p.dev.Write(r.ready, deviceOffset); err != nil {
		p.counts.deviceErrors.Add(1)
	}
	r.ready = r.ready[:0]
}

// receiveDatagrams takes one message of the batch apart.
func (p *Plane) receiveDatagrams(r *receiver, i int) {
	data, from, c := r.in.packet(i)
	if r.sock.port == 0 {
		if !r.sock.v6 { // raw IPv4 sockets get the header as well
			pkt, err := parsePacket(data)
			if err != nil || pkt.v6 {
				p.counts.unfit.Add(1)
				return
			}
			data, c.tos, c.hops = pkt.data[pkt.header:], pkt.tos, pkt.hops
		}
		p.receiveESP(r, data, from, c)
		return
	}
	for size := c.segment; len(data) > 0; {
		if size <= 0 || size > len(data) {
			size = len(data)
		}
		p.receiveNATT(r, data[:size], from, c)
		data = data[size:]
	}
}

// receiveNATT tells ESP from IKE and keepalives on port 4500.
func (p *Plane) receiveNATT(r *receiver, data []byte, from *sockaddr, c control) {
	if len(data) == 1 && data[0] == 0xff {
		return // a keepalive
	}
	if message, ok := plane.IsIKE(data); ok {
		p.conns.Deliver(netip.AddrPortFrom(c.local, plane.PortNATT), from.addrPort(), message)
		return
	}
	p.receiveESP(r, data, from, c)
}

// receiveESP opens a packet and puts what was in it into the batch for the device.
func (p *Plane) receiveESP(r *receiver, data []byte, from *sockaddr, c control) {
	spi, ok := esp.ParseSPI(data)
	if !ok {
		p.counts.unfit.Add(1)
		return
	}
	in, ok := p.spis.get(spi)
	if !ok {
		p.counts.unknownSPI.Add(1)
		return
	}
	if len(r.ready) == cap(r.ready) {
		p.deliver(r)
	}
	buf := r.buffer()
	room := deviceOffset + in.headerRoom()

	in.mu.Lock()
	opened, next, err := in.opener.Open(buf[:room], data)
	in.mu.Unlock()
	if err != nil {
		in.pair.refuse(err)
		return
	}
	if !p.expected(in, from, r.sock.port != 0) {
		p.counts.mismatched.Add(1)
		return
	}
	in.count(len(opened)-room, r.now)
	p.wasUsed(in.pair)
	opened, pkt, ok := p.unwrap(in, opened, next, c)
	if !ok {
		return
	}
	if !in.live.Load() && p.latch(in, opened) {
		return
	}
	if opened != nil {
		clampMSS(&pkt, in.mss)
		r.ready = append(r.ready, opened)
	}
}

// refuse counts a packet that the Opener refused.
func (pr *pair) refuse(err error) {
	if errors.Is(err, esp.ErrReplay) {
		pr.replayed.Add(1)
	} else {
		pr.invalid.Add(1)
	}
}

func (in *inbound) count(n int, now time.Time) {
	in.pair.inPackets.Add(1)
	in.pair.inBytes.Add(uint64(n))
	in.pair.lastIn.Store(now.UnixNano())
}

// headerRoom is what unwrap needs before the payload.
func (in *inbound) headerRoom() int {
	switch {
	case in.mode == ipsec.Tunnel:
		return 0
	case in.pair.flow.Key.Peer.Is4():
		return ipv4Header
	}
	return ipv6Header
}

// expected compares where a valid packet came from with the Pair's outer address. Another address of an encapsulated Pair is a
// NAT that moved, which the owner hears of, at most once a second; the packet is good.
func (p *Plane) expected(in *inbound, from *sockaddr, udp bool) bool {
	got, want := from.addrPort(), *in.outer.Load()
	if !in.encap {
		return got.Addr() == want.Addr()
	}
	if udp && got != want {
		now, last := p.now().UnixNano(), in.pair.moved.Load()
		if now-last >= int64(time.Second) && in.pair.moved.CompareAndSwap(last, now) {
			p.run.Raise(ipsec.Event{Kind: ipsec.Moved, ID: in.pair.id, SPI: in.spi, Remote: got, Selector: in.pair.flow.Selector()})
		}
	}
	return true
}

// unwrap makes an IP packet of what was opened: buf holds it behind deviceOffset and room for a header. A dummy packet yields nil.
func (p *Plane) unwrap(in *inbound, buf []byte, next uint8, c control) (out []byte, pkt packet, ok bool) {
	if next == esp.NextDummy {
		return nil, packet{}, true
	}
	data := buf[deviceOffset:]
	if in.mode == ipsec.Transport {
		room := in.headerRoom()
		if len(buf)-deviceOffset > maxPacket {
			p.counts.unfit.Add(1)
			return nil, packet{}, false
		}
		local, peer := in.hosts()
		putHeader(data[:room], local, peer, next, c, len(data)-room)
	}
	pkt, err := parsePacket(data)
	if err != nil {
		p.counts.unfit.Add(1)
		return nil, packet{}, false
	}
	if in.mode == ipsec.Tunnel {
		local, peer := in.hosts()
		own, inner := local.As16(), in.pair.inner
		dst := own
		if inner != nil {
			dst = *inner
		}
		version := next == unix.IPPROTO_IPV6 && pkt.v6 || next == unix.IPPROTO_IPIP && !pkt.v6
		if !version || pkt.src != peer.As16() || pkt.dst != dst || !decapsulateECN(pkt.data, c.tos) {
			p.counts.mismatched.Add(1)
			return nil, packet{}, false
		}
		if inner != nil {
			pkt.translate(false, own)
		}
	}
	return buf[:deviceOffset+len(pkt.data)], pkt, true
}
