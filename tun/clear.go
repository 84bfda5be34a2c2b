package tun

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"tacit/guard"
	"tacit/plane"
)

// clearSender sends packets that waited, or are watched, and are let go as they are: by raw sockets of our mark, so that they do not come back to us.
type clearSender struct {
	plane.Raw
	mu    sync.Mutex // the probe is connected anew for each question; few packets need one
	probe mtuProbe
}

func (c *clearSender) open() (err error) {
	if err := c.Open(guard.MarkOwn); err != nil {
		return hint("let packets go", err)
	}
	c.probe, err = openProbe()
	return err
}

func (c *clearSender) close() {
	c.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.probe.close()
	c.probe = mtuProbe{-1, -1}
}

// mtu is that of the way to an address.
func (c *clearSender) mtu(to netip.Addr) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.probe.mtu(to)
}

// sendClear sends a packet in clear. The device took it whole: what the way does not take is fragmented, as its sender's kernel would have.
func (p *Plane) sendClear(data []byte) {
	pkt, err := parsePacket(data)
	if err == nil {
		err = p.clear.Send(netip.AddrFrom16(pkt.dst).Unmap(), pkt.data)
	}
	if errors.Is(err, unix.EMSGSIZE) {
		var parts [][]byte
		parts, err = fragment(&pkt, p.clear.mtu(netip.AddrFrom16(pkt.dst).Unmap()), rand.Uint32())
		for _, b := range parts {
			if e := p.clear.Send(netip.AddrFrom16(pkt.dst).Unmap(), b); e != nil {
				err = e
			}
		}
	}
	if err != nil {
		p.counts.sendErrors.Add(1)
		return
	}
	p.counts.released.Add(1)
}

// fragment cuts a packet of ours into fragments of the MTU (RFC 791, 3.2; RFC 8200, 4.5), under an identification.
func fragment(pkt *packet, mtu int, id uint32) (parts [][]byte, err error) {
	head, payload := pkt.data[:pkt.header], pkt.data[pkt.header:]
	extra := 0
	if pkt.v6 {
		extra = fragmentHeader
	} else if binary.BigEndian.Uint16(head[6:])&0x4000 != 0 {
		return nil, errDontFragment
	}
	step := (mtu - len(head) - extra) &^ 7
	if pkt.fragment || step < 8 {
		return nil, fmt.Errorf("%w of %d octets to an MTU of %d", errLength, len(pkt.data), mtu)
	}
	for at := 0; at < len(payload); at += step {
		part := payload[at:min(at+step, len(payload))]
		more := at+step < len(payload)
		b := make([]byte, 0, len(head)+extra+len(part))
		b = append(b, head...)
		if pkt.v6 {
			b = append(b, pkt.proto, 0)
			b = binary.BigEndian.AppendUint16(b, uint16(at)|flagIf(more, 1))
			b = binary.BigEndian.AppendUint32(b, id)
			b[6] = unix.IPPROTO_FRAGMENT
			binary.BigEndian.PutUint16(b[4:], uint16(extra+len(part)))
		} else {
			binary.BigEndian.PutUint16(b[2:], uint16(len(head)+len(part)))
			binary.BigEndian.PutUint16(b[4:], uint16(id)|1) // with 0 the kernel would choose another for each
			binary.BigEndian.PutUint16(b[6:], uint16(at/8)|flagIf(more, 0x2000))
		}
		parts = append(parts, append(b, part...))
	}
	return parts, nil
}

// fragmentHeader is the length of IPv6's extension header, in octets.
const fragmentHeader = 8

var errDontFragment = errors.New("packet is too long and must not be fragmented")

func flagIf(set bool, flag uint16) uint16 {
	if set {
		return flag
	}
	return 0
}
