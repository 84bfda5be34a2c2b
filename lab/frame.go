package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Class says what a frame on the cable is.
type Class uint8

// The classes. Everything that is none of the others is ClassClear.
const (
	ClassOther    Class = iota // not IP and not ARP, or too short to say
	ClassESP                   // IP protocol 50
	ClassESPUDP                // ESP in UDP (RFC 3948)
	ClassIKE                   // UDP 500; UDP 4500 with the non-ESP marker; NAT-keepalives
	ClassNeighbor              // ARP, neighbour discovery (ICMPv6 133-137), multicast listener reports
	ClassDNS                   // port 53 or 853, UDP or TCP
	ClassClear                 // everything else between two addresses
	classes       = iota
)

var classNames = [classes]string{"other", "esp", "esp-in-udp", "ike", "neighbor", "dns", "clear"}

func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// Frame is what ParseFrame sees in an Ethernet frame. For ARP the addresses are the protocol addresses.
type Frame struct {
	Src, Dst         netip.Addr
	Class            Class
	Proto            uint8 // IP protocol after the extension headers
	SrcPort, DstPort uint16
	Fragment         bool   // a fragment behind the first: Class is to be taken from the first, ClassClear until then
	FirstFragment    bool   // the first of several
	FragmentID       uint32 // joins the fragments of a packet
	Payload          []byte // behind the last header that was understood; aliases the input
}

const (
	protoICMP, protoTCP, protoUDP, protoESP, protoICMPv6 = 1, 6, 17, 50, 58

	portIKE, portNAT = 500, 4500
)

// ParseFrame classifies an Ethernet frame, whole or cut short. It never fails: what it does not understand is ClassOther
// if it names no addresses, and ClassClear if it does.
func ParseFrame(b []byte) Frame {
	if len(b) < 14 {
		return Frame{}
	}
	kind, b := binary.BigEndian.Uint16(b[12:]), b[14:]
	if kind == 0x8100 && len(b) >= 4 { // a VLAN tag
		kind, b = binary.BigEndian.Uint16(b[2:]), b[4:]
	}
	switch kind {
	case 0x0800:
		return parseIPv4(b)
	case 0x86dd:
		return parseIPv6(b)
	case 0x0806:
		return parseARP(b)
	}
	return Frame{}
}

func parseARP(b []byte) Frame {
	if len(b) < 28 || b[4] != 6 || b[5] != 4 {
		return Frame{Class: ClassNeighbor}
	}
	return Frame{Class: ClassNeighbor, Src: netip.AddrFrom4([4]byte(b[14:18])), Dst: netip.AddrFrom4([4]byte(b[24:28]))}
}

func parseIPv4(b []byte) Frame {
	if len(b) < 20 {
		return Frame{}
	}
	f := Frame{Class: ClassClear, Src: netip.AddrFrom4([4]byte(b[12:16])), Dst: netip.AddrFrom4([4]byte(b[16:20])), Proto: b[9]}
	header := int(b[0]&15) * 4
	if b[0]>>4 != 4 || header < 20 || header > len(b) {
		return f
	}
	if total := int(binary.BigEndian.Uint16(b[2:])); total >= header && total < len(b) {
		b = b[:total] // Ethernet pads short frames
	}
	frag := binary.BigEndian.Uint16(b[6:])
	f.FragmentID = uint32(binary.BigEndian.Uint16(b[4:]))
	f.Fragment = frag&0x1fff != 0
	f.FirstFragment = !f.Fragment && frag&0x2000 != 0
	f.upper(b[header:])
	return f
}

func parseIPv6(b []byte) Frame {
	if len(b) < 40 {
		return Frame{}
	}
	f := Frame{Class: ClassClear, Src: netip.AddrFrom16([16]byte(b[8:24])), Dst: netip.AddrFrom16([16]byte(b[24:40])), Proto: b[6]}
	if b[0]>>4 != 6 {
		return f
	}
	rest := b[40:]
	if n := int(binary.BigEndian.Uint16(b[4:])); n < len(rest) {
		rest = rest[:n]
	}
	for {
		switch f.Proto {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if len(rest) < 8 || len(rest) < 8+int(rest[1])*8 {
				return f
			}
			f.Proto, rest = rest[0], rest[8+int(rest[1])*8:]
		case 44: // fragment
			if len(rest) < 8 {
				return f
			}
			frag := binary.BigEndian.Uint16(rest[2:])
			f.Fragment = frag&0xfff8 != 0
			f.FirstFragment = !f.Fragment && frag&1 != 0
			f.FragmentID = binary.BigEndian.Uint32(rest[4:])
			f.Proto, rest = rest[0], rest[8:]
		default:
			f.upper(rest)
			return f
		}
		if f.Fragment {
			f.upper(rest)
			return f
		}
	}
}

// upper classifies what IP carries.
func (f *Frame) upper(b []byte) {
	f.Payload = b
	switch {
	case f.Proto == protoESP:
		f.Class = ClassESP
	case f.Fragment:
		// no ports here
	case f.Proto == protoICMPv6 && f.Src.Is6() && len(b) > 0:
		if t := b[0]; t >= 133 && t <= 137 || t >= 130 && t <= 132 || t == 143 {
			f.Class = ClassNeighbor
		}
	case (f.Proto == protoUDP || f.Proto == protoTCP) && len(b) >= 8:
		f.SrcPort, f.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		f.port(b)
	}
}

func (f *Frame) port(b []byte) {
	is := func(p uint16) bool { return f.SrcPort == p || f.DstPort == p }
	if is(53) || is(853) {
		f.Class = ClassDNS
	}
	if f.Proto == protoTCP {
		if n := int(b[min(12, len(b)-1)]>>4) * 4; len(b) >= 20 && n >= 20 && n <= len(b) {
			f.Payload = b[n:]
		}
		return
	}
	f.Payload = b[8:]
	switch {
	case is(portIKE):
		f.Class = ClassIKE
	case is(portNAT):
		p := f.Payload
		switch {
		case len(p) == 1 && p[0] == 0xff: // NAT-keepalive (RFC 3948, 2.3)
			f.Class = ClassIKE
		case len(p) >= 4 && binary.BigEndian.Uint32(p) == 0: // non-ESP marker (RFC 3948, 2.2)
			f.Class, f.Payload = ClassIKE, p[4:]
		case len(p) >= 8:
			f.Class = ClassESPUDP
		}
	}
}

// IKEHeader is the fixed header of an IKE message (RFC 7296, 3.1).
type IKEHeader struct {
	InitiatorSPI, ResponderSPI uint64
	Exchange                   uint8
	Response, Initiator        bool
	MessageID                  uint32
}

// ParseIKEHeader reads the header of an IKE message, without the non-ESP marker; false if it is none of version 2.
func ParseIKEHeader(b []byte) (IKEHeader, bool) {
	if len(b) < 28 || b[17]>>4 != 2 {
		return IKEHeader{}, false
	}
	return IKEHeader{
		InitiatorSPI: binary.BigEndian.Uint64(b), ResponderSPI: binary.BigEndian.Uint64(b[8:]), Exchange: b[18],
		Response: b[19]&0x20 != 0, Initiator: b[19]&0x08 != 0, MessageID: binary.BigEndian.Uint32(b[20:]),
	}, true
}

// ExchangeName is the name of an exchange type (RFC 7296, 3.1; RFC 9242; RFC 9370).
func ExchangeName(t uint8) string {
	names := map[uint8]string{34: "IKE_SA_INIT", 35: "IKE_AUTH", 36: "CREATE_CHILD_SA", 37: "INFORMATIONAL", 43: "IKE_INTERMEDIATE", 44: "IKE_FOLLOWUP_KE"}
	if n, ok := names[t]; ok {
		return n
	}
	return fmt.Sprintf("exchange(%d)", t)
}
