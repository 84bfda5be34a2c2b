package tun

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"tacit/esp"
	"tacit/ipsec"
)

// TCP's flags and options (RFC 9293, 3.1 and 3.2).
const (
	tcpSYN     = 0x02
	optEnd     = 0
	optNop     = 1
	optMSS     = 2
	optMSSLen  = 4
	minSegment = 536
)

// clampMSS lowers the maximum segment size that a SYN of the packet offers to limit, and corrects the checksum. It works on
// SYNs of both directions: ours tells the peer what fits into its ESP, the peer's tells our own kernel, whose idea
// of the route's MTU knows nothing of ESP. Other packets, and malformed options, are left alone.
func clampMSS(p *packet, limit uint16) {
	if p.proto != unix.IPPROTO_TCP || p.fragment || limit < minSegment {
		return
	}
	tcp := p.data[p.header:]
	if len(tcp) < tcpHeader || tcp[13]&tcpSYN == 0 {
		return
	}
	length := int(tcp[12]>>4) * 4
	if length < tcpHeader || length > len(tcp) {
		return
	}
	for at := tcpHeader; at < length; {
		switch tcp[at] {
		case optEnd:
			return
		case optNop:
			at++
			continue
		}
		if at+1 >= length || tcp[at+1] < 2 || at+int(tcp[at+1]) > length {
			return
		}
		if tcp[at] == optMSS && tcp[at+1] == optMSSLen {
			lowerMSS(tcp, at+2, limit)
			return
		}
		at += int(tcp[at+1])
	}
}

// lowerMSS changes the value at an offset of the TCP header, and the checksum with it.
func lowerMSS(tcp []byte, at int, limit uint16) {
	if old := binary.BigEndian.Uint16(tcp[at:]); old <= limit {
		return
	}
	// The option may stand at an odd offset: the words that hold it are corrected, whatever else is in them.
	first, last := at&^1, (at+1)&^1
	before := [2]uint16{binary.BigEndian.Uint16(tcp[first:]), binary.BigEndian.Uint16(tcp[last:])}
	binary.BigEndian.PutUint16(tcp[at:], limit)
	replaceSum(tcp[16:18], before[0], binary.BigEndian.Uint16(tcp[first:]))
	if last != first {
		replaceSum(tcp[16:18], before[1], binary.BigEndian.Uint16(tcp[last:]))
	}
}

// outerRoom is how long ESP may be so that the outer packet is no longer than mtu.
func outerRoom(mtu int, outer6, encapsulated bool) int {
	room := min(mtu, maxPacket) - ipv4Header
	if outer6 {
		room -= ipv6Header - ipv4Header
	}
	if encapsulated {
		room -= udpHeader
	}
	return room
}

// segmentLimit is the TCP segment size whose packets fit into the ESP that the Sealer makes for the Pair.
func segmentLimit(p ipsec.Pair, mtu int, s *esp.Sealer) uint16 {
	room := s.MaxPayload(outerRoom(mtu, p.Remote.Addr().Is6(), p.Encapsulated())) - tcpHeader
	if p.Mode == ipsec.Tunnel {
		room -= ipv4Header
		if p.Selector.Remote.Addr().Is6() {
			room -= ipv6Header - ipv4Header
		}
	}
	return uint16(min(max(room, minSegment), maxPacket-ipv6Header-tcpHeader))
}
