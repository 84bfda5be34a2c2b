package xfrm

import (
	"fmt"
	"net/netip"
	"slices"
)

// Messages of nfnetlink_queue (linux/netfilter/nfnetlink_queue.h). Everything in them is in network order.
const (
	msgQueuePacket  uint16 = 0x300
	msgQueueVerdict uint16 = 0x301
	msgQueueConfig  uint16 = 0x302
)

const (
	queueCommand   = 1 // of a configuration
	queueParams    = 2
	queueMaxLength = 3
	queueFlagMask  = 4
	queueFlags     = 5

	queueHeader        = 1 // of a packet
	queueVerdictHeader = 2
	queueMark          = 3
	queuePayload       = 10
	queueWholeLength   = 13 // only where the payload is a part
	queueInfo          = 14

	queueBind       = 1
	queueFlagGSO    = 4
	queueCopyPacket = 2
	infoNoChecksum  = 1 // the transport's checksum has only its pseudo-header yet
	infoSegments    = 2 // it is to become several packets

	verdictDrop   uint32 = 0
	verdictAccept uint32 = 1

	hookPrerouting uint8 = 0
	hookOutput     uint8 = 3
)

// queueCopy is how much of a packet we ask for, in octets: the longest that is kept, to be sent again.
const queueCopy = 2048

// Queued is a packet that waits for our verdict.
type Queued struct {
	ID       uint32
	Hook     uint8 // where it was caught
	Mark     uint32
	Src, Dst netip.Addr
	Data     []byte // the whole packet, with its checksums; nil where there is only a part of it, or where it is more than one
}

func queueHead(w *writer, number uint16) {
	w.u8(0, 0)
	w.be16(number)
}

// marshalQueue asks for a queue: its packets come with their first octets, large ones in one piece.
func marshalQueue(number uint16, length uint32) []byte {
	w := &writer{}
	queueHead(w, number)
	w.attr(queueCommand, []byte{queueBind, 0, 0, 0})
	params := &writer{}
	params.be32(queueCopy)
	params.u8(queueCopyPacket)
	w.attr(queueParams, params.b)
	w.attr(queueMaxLength, big.AppendUint32(nil, length))
	w.attr(queueFlagMask, big.AppendUint32(nil, queueFlagGSO))
	w.attr(queueFlags, big.AppendUint32(nil, queueFlagGSO))
	return w.b
}

// marshalVerdict lets a packet go, with another mark if it is not 0, or drops it.
func marshalVerdict(number uint16, id, verdict, mark uint32) []byte {
	w := &writer{}
	queueHead(w, number)
	w.attr(queueVerdictHeader, big.AppendUint32(big.AppendUint32(nil, verdict), id))
	if mark != 0 {
		w.attr(queueMark, big.AppendUint32(nil, mark))
	}
	return w.b
}

// ParseQueued reads a packet's message.
func ParseQueued(b []byte) (Queued, error) {
	var q Queued
	var seen int
	var info uint32
	part := false
	r := &reader{b: b}
	r.skip(4)
	r.attrs(func(kind uint16, data []byte) error {
		v := reader{b: data}
		switch kind {
		case queueHeader:
			q.ID = v.be32()
			v.skip(2)
			q.Hook = v.u8()
			seen |= 1
		case queueMark:
			q.Mark = v.be32()
		case queuePayload:
			src, dst, err := addresses(data)
			if err != nil {
				return err
			}
			q.Src, q.Dst, q.Data = src, dst, data
			seen |= 2
		case queueWholeLength:
			part = true
		case queueInfo:
			info = v.be32()
		}
		return v.err
	})
	if r.err == nil && seen != 3 {
		r.fail(fmt.Errorf("no header or no packet: %w", errBad))
	}
	if r.err != nil {
		return Queued{}, fmt.Errorf("xfrm: queued packet: %w", r.err)
	}
	if part || info&infoSegments != 0 {
		q.Data = nil
	} else if info&infoNoChecksum != 0 {
		q.Data = withChecksum(q.Data)
	}
	return q, nil
}

// withChecksum completes the checksum of TCP or UDP in a packet whose field has the sum over the pseudo-header (RFC 9293, 3.1; RFC 768; RFC 8200, 8.1). It
// returns nil for what the kernel would not leave like that.
func withChecksum(packet []byte) []byte {
	head, proto := 40, packet[6]
	if packet[0]>>4 == 4 {
		head, proto = 4*int(packet[0]&15), packet[9]
	}
	field := head + map[uint8]int{protoTCP: 16, protoUDP: 6}[proto]
	if field == head || field+2 > len(packet) {
		return nil
	}
	packet = slices.Clone(packet)
	sum := uint32(0)
	for i := head; i < len(packet); i += 2 {
		sum += uint32(packet[i]) << 8
		if i+1 < len(packet) {
			sum += uint32(packet[i+1])
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	if sum = ^sum & 0xffff; sum == 0 && proto == protoUDP {
		sum = 0xffff // 0 stands for none
	}
	big.PutUint16(packet[field:], uint16(sum))
	return packet
}

// addresses reads those of an IP packet's header.
func addresses(b []byte) (src, dst netip.Addr, err error) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), nil
	case len(b) >= 40 && b[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), nil
	}
	return src, dst, fmt.Errorf("packet of %d octets: %w", len(b), errShort)
}
