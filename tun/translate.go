package tun

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Behind a NAT the peer has assigned an address to us, which stands for our own inside of the tunnel ([ipsec.Pair.Inner]). Here one takes the place of the
// other, as a NAT of our own would do it (RFC 5508 for ICMP), but for ports: nobody else has the address.
//
// A checksum that covers an address is corrected by what has changed (RFC 1624), so that one that was wrong stays wrong. Fragments but the first have none.
// The checksum of the transport that an ICMP error quotes is left as it was: nobody looks at it, and most of what it covers is cut off.

// Where checksums stand.
const (
	sumIPv4   = 10
	sumTCP    = 16
	sumUDP    = 6 // and UDP-Lite's, and DCCP's
	sumICMP   = 2
	icmpQuote = 8 // where an ICMP error quotes the packet that it is about
	minTCP    = sumTCP + 2
	protoDCCP = 33
	protoLite = 136
)

// translate puts an address in the place of the source or of the destination, and in that of the same address in an ICMP error.
func (p *packet) translate(source bool, to [16]byte) {
	at, size := addressAt(p.v6, source)
	field, now := p.data[at:at+size], to[16-size:]
	change := changed(field, now)
	var old [16]byte
	copy(old[:], field)
	copy(field, now)
	if source {
		p.src = to
	} else {
		p.dst = to
	}
	if !p.v6 {
		correct(p.data[sumIPv4:], change)
	}
	p.correctTransport(change)
	p.translateQuoted(source, old[:size], now)
}

// addressAt is where an address stands in the header, and how long it is.
func addressAt(v6, source bool) (at, size int) {
	switch {
	case v6 && source:
		return 8, 16
	case v6:
		return 24, 16
	case source:
		return 12, 4
	}
	return 16, 4
}

// transport is what the packet carries, and where, behind extension headers; ok is false for what is behind the first fragment, or cut.
func (p *packet) transport() (proto uint8, at int, ok bool) {
	if !p.v6 {
		return p.proto, p.header, binary.BigEndian.Uint16(p.data[6:])&0x1fff == 0
	}
	for proto, at = p.proto, p.header; ; {
		rest := p.data[min(at, len(p.data)):]
		switch proto {
		case protoHopByH, protoRouting, unix.IPPROTO_DSTOPTS:
			if len(rest) < 8 {
				return 0, 0, false
			}
			at += 8 + int(rest[1])*8
		case unix.IPPROTO_FRAGMENT:
			if len(rest) < 8 || binary.BigEndian.Uint16(rest[2:])&0xfff8 != 0 {
				return 0, 0, false
			}
			at += 8
		default:
			return proto, at, at <= len(p.data)
		}
		proto = rest[0]
	}
}

// correctTransport corrects the checksum that covers the address as part of a pseudo header.
func (p *packet) correctTransport(change uint32) {
	proto, at, ok := p.transport()
	if !ok {
		return
	}
	b := p.data[at:]
	switch {
	case proto == unix.IPPROTO_TCP && len(b) >= minTCP:
		correct(b[sumTCP:], change)
	case proto == unix.IPPROTO_UDP && len(b) >= udpHeader:
		if b[sumUDP]|b[sumUDP+1] == 0 {
			return // there is none
		}
		if correct(b[sumUDP:], change); b[sumUDP]|b[sumUDP+1] == 0 {
			b[sumUDP], b[sumUDP+1] = 0xff, 0xff
		}
	case (proto == protoLite || proto == protoDCCP) && len(b) >= udpHeader:
		correct(b[sumUDP:], change)
	case proto == unix.IPPROTO_ICMPV6 && len(b) >= sumICMP+2:
		correct(b[sumICMP:], change)
	}
}

// translateQuoted translates the packet that an ICMP error is about: it went the other way.
func (p *packet) translateQuoted(source bool, old, now []byte) {
	proto, at, ok := p.transport()
	if !ok {
		return
	}
	b := p.data[at:]
	header := ipv4Header
	switch {
	case proto == unix.IPPROTO_ICMPV6 && p.v6 && len(b) > 0 && b[0] < 128:
		header = ipv6Header
	case proto == unix.IPPROTO_ICMP && !p.v6 && len(b) > 0 && icmpError(b[0]):
	default:
		return
	}
	if len(b) < icmpQuote+header {
		return
	}
	quoted := b[icmpQuote:]
	from, size := addressAt(p.v6, !source)
	if field := quoted[from : from+size]; string(field) == string(old) {
		change := changed(field, now)
		copy(field, now)
		if !p.v6 { // the quoted header's sum stays 0, so that the ICMP checksum does too
			correct(quoted[sumIPv4:], change)
			return
		}
		correct(b[sumICMP:], change)
	}
}

// icmpError reports whether ICMP of the type quotes a packet (RFC 792; RFC 1122, 3.2.2).
func icmpError(kind uint8) bool {
	return kind == 3 || kind == 4 || kind == 5 || kind == 11 || kind == 12
}

// changed is by what a sum of 16 bit words changes in which now takes the place of old (RFC 1624, 3).
func changed(old, now []byte) (s uint32) {
	for i := 0; i < len(old); i += 2 {
		s += uint32(^binary.BigEndian.Uint16(old[i:])) + uint32(binary.BigEndian.Uint16(now[i:]))
	}
	return s
}

// correct changes a checksum by what its sum has changed by.
func correct(field []byte, change uint32) {
	binary.BigEndian.PutUint16(field, ^fold(uint32(^binary.BigEndian.Uint16(field))+change))
}
