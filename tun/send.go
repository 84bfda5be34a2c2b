package tun

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"

	"tacit/esp"
	"tacit/ipsec"
)

/* The way out, in packet order.

1. guard marked the packet, the rule led it into the device: sendLoop reads a batch. What the kernel handed over as one
   large segment, the device's Read has split.
2. sendPacket parses it and looks its flow up by (own address, peer's address).
3. Nothing armed: the packet waits (hold.go), also one of an unknown address if a rule of prefixes says so (unknown.go); or it is
   dropped, because no policy wants it any more.
4. A SYN's segment size is lowered to what fits into ESP.
5. seal appends the ESP packet to the batch: the payload in transport mode, the whole packet in tunnel mode. Behind a NAT our address gives way to
   the one that the peer has assigned (translate.go).
6. flush sends the batch. The kernel builds the outer headers, from the Pair's local address, and fragments what is too long.
*/

// deviceOffset is the room that the device needs before each packet for its own header.
const deviceOffset = 16

// sendLoop moves packets from the device to the sockets until the Plane is closed.
func (p *Plane) sendLoop() {
	batch := p.dev.BatchSize()
	bufs, sizes := make([][]byte, batch), make([]int, batch)
	for i := range bufs {
		bufs[i] = make([]byte, deviceOffset+maxPacket)
	}
	out := newSendBatch(&p.counts)
	for {
		n, err := p.dev.Read(bufs, sizes, deviceOffset)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil && !errors.Is(err, wgtun.ErrTooManySegments) {
			if p.run.Stopping() {
				return
			}
			p.counts.deviceErrors.Add(1)
		}
		now := p.now()
		for i := range n {
			p.sendPacket(out, bufs[i][deviceOffset:deviceOffset+sizes[i]], now)
		}
		out.flush()
	}
}

// sendPacket puts one packet of the device into the batch.
func (p *Plane) sendPacket(batch *sendBatch, data []byte, now time.Time) {
	pkt, err := parsePacket(data)
	if err != nil {
		p.counts.unfit.Add(1)
		return
	}
	f, ok := p.flows.get(addrKey{pkt.src, pkt.dst})
	if !ok {
		if f = p.meet(&pkt); f == nil {
			return
		}
	}
	out := f.out.Load()
	if out == nil {
		if out = p.hold(f, pkt.data, now); out == nil {
			return
		}
	}
	p.seal(batch, out, &pkt, now)
}

// seal adds the ESP of a packet to the batch, and sends the batch if it is full.
func (p *Plane) seal(batch *sendBatch, out *outbound, pkt *packet, now time.Time) {
	payload, next, hops := pkt.data, uint8(unix.IPPROTO_IPIP), uint8(defaultHops)
	if out.tunnel {
		if pkt.v6 {
			next = unix.IPPROTO_IPV6
		}
		if out.pair.inner != nil {
			pkt.translate(true, *out.pair.inner)
		}
	} else {
		if err := pkt.transportable(); err != nil {
			p.counts.unfit.Add(1)
			return
		}
		payload, next, hops = pkt.data[pkt.header:], pkt.proto, pkt.hops
	}
	clampMSS(pkt, out.mss)
	if !batch.room(out.sealer.PacketLen(len(payload)) + esp.Scratch) {
		batch.flush()
	}
	start := len(batch.arena)
	arena, err := out.sealer.Seal(batch.arena, next, payload)
	if err != nil {
		p.counts.exhausted.Add(1)
		return
	}
	batch.arena = arena
	batch.add(out, start, pkt.tos, hops)
	out.count(len(payload), now)
	p.wasUsed(out.pair)
	if out.sealer.Sent() == out.expire {
		p.run.Raise(ipsec.Event{Kind: ipsec.Expiring, ID: out.pair.id, SPI: out.spi, Selector: out.pair.flow.Selector()})
	}
}

func (o *outbound) count(n int, now time.Time) {
	o.pair.outPackets.Add(1)
	o.pair.outBytes.Add(uint64(n))
	o.pair.lastOut.Store(now.UnixNano())
}
