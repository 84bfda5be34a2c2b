package xfrm

import (
	"fmt"
	"net/netip"
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

	queueBind       = 1
	queueFlagGSO    = 4
	queueCopyPacket = 2

	verdictDrop   uint32 = 0
	verdictAccept uint32 = 1

	hookPrerouting uint8 = 0
	hookOutput     uint8 = 3
)

// queueCopy is how much of a packet we ask for: the longest header with the addresses.
const queueCopy = 64

// Queued is a packet that waits for our verdict.
type Queued struct {
	ID       uint32
	Hook     uint8 // where it was caught
	Mark     uint32
	Src, Dst netip.Addr
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
			q.Src, q.Dst = src, dst
			seen |= 2
		}
		return v.err
	})
	if r.err == nil && seen != 3 {
		r.fail(fmt.Errorf("no header or no packet: %w", errBad))
	}
	if r.err != nil {
		return Queued{}, fmt.Errorf("xfrm: queued packet: %w", r.err)
	}
	return q, nil
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
