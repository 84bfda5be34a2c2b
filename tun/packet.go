package tun

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Sizes and offsets of IP headers.
const (
	ipv4Header   = 20
	ipv6Header   = 40
	tcpHeader    = 20
	udpHeader    = 8
	maxPacket    = 65535
	defaultHops  = 64
	flagDF       = 0x40
	protoNoNext  = 59 // RFC 4303, 2.6: a dummy packet, dropped
	protoHopByH  = 0
	protoRouting = 43
)

var (
	errShort    = errors.New("packet too short")
	errVersion  = errors.New("not IPv4 or IPv6")
	errLength   = errors.New("length field disagrees with the packet")
	errOptions  = errors.New("IPv4 options in transport mode")
	errFragment = errors.New("fragment in transport mode")
	errExtend   = errors.New("IPv6 extension header in transport mode")
)

// addrKey is the pair (own address, peer's address) as the flow table looks it up: IPv4 addresses are mapped.
type addrKey struct{ own, peer [16]byte }

func keyOf(own, peer netip.Addr) addrKey { return addrKey{own.As16(), peer.As16()} }

// packet is what the path needs to know of an IP packet. It refers to the bytes it was parsed from.
type packet struct {
	data     []byte // the packet, without trailing bytes
	v6       bool
	src, dst [16]byte // IPv4 addresses are mapped
	proto    uint8    // protocol, or the first next header
	header   int      // octets before the protocol
	hops     uint8    // TTL, Hop Limit
	tos      uint8    // type of service, traffic class
	fragment bool     // one of several
}

var mappedPrefix = [12]byte{10: 0xff, 11: 0xff}

// parsePacket reads the headers of an IP packet.
func parsePacket(b []byte) (packet, error) {
	if len(b) < ipv4Header {
		return packet{}, errShort
	}
	switch b[0] >> 4 {
	case 4:
		return parse4(b)
	case 6:
		return parse6(b)
	}
	return packet{}, errVersion
}

// parse4 reads an IPv4 header (RFC 791, 3.1). The kernel made or checked the checksum.
func parse4(b []byte) (packet, error) {
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < ipv4Header || total < header || total > len(b) {
		return packet{}, errLength
	}
	p := packet{data: b[:total], proto: b[9], header: header, hops: b[8], tos: b[1]}
	p.fragment = binary.BigEndian.Uint16(b[6:])&0x3fff != 0 // more fragments, or an offset
	copy(p.src[:], mappedPrefix[:])
	copy(p.dst[:], mappedPrefix[:])
	copy(p.src[12:], b[12:16])
	copy(p.dst[12:], b[16:20])
	return p, nil
}

// parse6 reads an IPv6 header (RFC 8200, 3); extension headers stay part of what follows.
func parse6(b []byte) (packet, error) {
	if len(b) < ipv6Header {
		return packet{}, errShort
	}
	total := ipv6Header + int(binary.BigEndian.Uint16(b[4:]))
	if total > len(b) {
		return packet{}, errLength
	}
	p := packet{data: b[:total], v6: true, proto: b[6], header: ipv6Header, hops: b[7]}
	p.tos = b[0]<<4 | b[1]>>4
	p.fragment = p.proto == unix.IPPROTO_FRAGMENT
	p.src, p.dst = [16]byte(b[8:24]), [16]byte(b[24:40])
	return p, nil
}

// transportable says why a packet cannot travel in transport mode. "Transport mode ESP is applied only to whole IP
// datagrams (not to IP fragments)" (RFC 4303, 3.3.4); options and extension headers that routers read would have to stay
// outside (3.1.1), and no application of ours sends them.
func (p *packet) transportable() error {
	switch {
	case p.fragment:
		return errFragment
	case !p.v6 && p.header != ipv4Header:
		return errOptions
	case p.v6 && (p.proto == protoHopByH || p.proto == protoRouting):
		return errExtend
	}
	return nil
}

// putHeader writes the IP header of a packet that arrived in transport mode: b has room for the header and is followed
// by payload octets. The addresses are the Pair's, so that the checksums of TCP and UDP hold; what the packet came with counts for it (RFC 5082 asks for
// its hops).
func putHeader(b []byte, local, remote netip.Addr, proto uint8, c control, payload int) {
	tos := c.tos
	if len(b) == ipv6Header {
		b[0], b[1], b[2], b[3] = 0x60|tos>>4, tos<<4, 0, 0
		binary.BigEndian.PutUint16(b[4:], uint16(payload))
		b[6], b[7] = proto, c.hops
		src, dst := remote.As16(), local.As16()
		copy(b[8:], src[:])
		copy(b[24:], dst[:])
		return
	}
	b[0], b[1] = 0x45, tos
	binary.BigEndian.PutUint16(b[2:], uint16(ipv4Header+payload))
	b[4], b[5], b[6], b[7] = 0, 0, flagDF, 0
	b[8], b[9], b[10], b[11] = c.hops, proto, 0, 0
	src, dst := remote.As4(), local.As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[10:], ^fold(sum(b[:ipv4Header])))
}

// sum is the unfolded Internet checksum of b (RFC 1071).
func sum(b []byte) uint32 {
	var s uint32
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

// fold adds the carries of a sum.
func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// decapsulateECN carries congestion that the outer header reports into the inner one of a tunnel (RFC 6040, 4.2).
// It reports false if the packet must be dropped: congestion was marked on a packet whose sender does not know of it.
func decapsulateECN(inner []byte, outer uint8) bool {
	const ce = 3
	if outer&ce != ce {
		return true
	}
	if inner[0]>>4 == 6 {
		if inner[1]>>4&ce == 0 {
			return false
		}
		inner[1] |= ce << 4
		return true
	}
	if inner[1]&ce == 0 {
		return false
	}
	old := binary.BigEndian.Uint16(inner)
	inner[1] |= ce
	replaceSum(inner[10:12], old, binary.BigEndian.Uint16(inner))
	return true
}

// replaceSum corrects a checksum for one 16 bit word that changed (RFC 1624).
func replaceSum(field []byte, old, now uint16) {
	s := uint32(^binary.BigEndian.Uint16(field)) + uint32(^old) + uint32(now)
	binary.BigEndian.PutUint16(field, ^fold(s))
}
