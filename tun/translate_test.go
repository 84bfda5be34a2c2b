package tun

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"tacit/guard"
	"tacit/ipsec"
	"tacit/lab"
	"tacit/plane"
)

var (
	inner4 = netip.MustParseAddr("198.19.255.254")
	inner6 = netip.MustParseAddr("2001:2:0:7ac1:ffff:ffff:ffff:fffe")
)

// icmp builds a message with a right checksum.
func icmp(src, dst netip.Addr, kind byte, body []byte) []byte {
	b := append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, body...)
	proto := uint8(unix.IPPROTO_ICMP)
	s := sum(b)
	if src.Is6() {
		proto = unix.IPPROTO_ICMPV6
		s += sum(src.AsSlice()) + sum(dst.AsSlice()) + uint32(proto) + uint32(len(b))
	}
	binary.BigEndian.PutUint16(b[sumICMP:], ^fold(s))
	return lab.IPPacket(src, dst, proto, b)
}

// sound recomputes all checksums of a packet.
func sound(t *testing.T, what string, data []byte) {
	t.Helper()
	p, err := parsePacket(data)
	if err != nil {
		t.Fatal(err)
	}
	if !p.v6 && fold(sum(data[:p.header])) != 0xffff {
		t.Errorf("%s: the header's checksum is wrong", what)
	}
	proto, at, ok := p.transport()
	if !ok {
		return
	}
	b := data[at:]
	s := sum(b)
	if proto != unix.IPPROTO_ICMP {
		s += sum(p.src[:]) + sum(p.dst[:]) + uint32(proto) + uint32(len(b)) // the prefix of mapped addresses counts twice: it sums up to 0
	}
	if proto == unix.IPPROTO_UDP && b[sumUDP]|b[sumUDP+1] == 0 {
		return
	}
	if fold(s) != 0xffff {
		t.Errorf("%s: the checksum of protocol %d is wrong", what, proto)
	}
}

// quoted is a packet without its end, as an ICMP error has it.
func quoted(b []byte) []byte { return b[:min(len(b), 60)] }

// extended puts an extension header of 8 octets behind an IPv6 header.
func extended(b []byte, kind byte, rest ...byte) []byte {
	out := append(append(bytes.Clone(b[:ipv6Header]), b[6]), append(rest, make([]byte, 7-len(rest))...)...)
	out = append(out, b[ipv6Header:]...)
	out[6] = kind
	binary.BigEndian.PutUint16(out[4:], uint16(len(out)-ipv6Header))
	return out
}

// Our address gives way to the one that the peer has assigned on the way out, and back on the way in: every checksum that covers it is right, and so is what
// an ICMP error quotes. There and back again nothing has changed.
func TestTranslate(t *testing.T) {
	fragment := func(b []byte, field uint16) []byte {
		b = bytes.Clone(b)
		binary.BigEndian.PutUint16(b[6:], field)
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], ^fold(sum(b[:ipv4Header])))
		return b
	}
	noSum := func(b []byte) []byte {
		b = bytes.Clone(b)
		b[ipv4Header+sumUDP], b[ipv4Header+sumUDP+1] = 0, 0
		return b
	}
	for what, c := range map[string]struct {
		data  []byte
		quote bool
		whole bool // the transport's checksum covers what is there
	}{
		"TCP":                         {syn(alice4, bob4, tcpSYN, optMSS, 4, 5, 180), false, true},
		"TCP over IPv6":               {syn(alice6, bob6, 0x10, 1, 1, 1, 0), false, true},
		"UDP":                         {udp(alice4, bob4, 1201), false, true},
		"UDP over IPv6":               {udp(alice6, bob6, 33), false, true},
		"UDP without a checksum":      {noSum(udp(alice4, bob4, 10)), false, true},
		"first fragment":              {fragment(udp(alice4, bob4, 24), 0x2000), false, true},
		"a later fragment":            {fragment(udp(alice4, bob4, 24), 0x2003), false, false},
		"an echo":                     {icmp(alice4, bob4, 8, []byte("abcdef")), false, true},
		"an echo over IPv6":           {icmp(alice6, bob6, 128, []byte("abcdef")), false, true},
		"port unreachable":            {icmp(alice4, bob4, 3, quoted(udp(bob4, alice4, 600))), true, true},
		"port unreachable, IPv6":      {icmp(alice6, bob6, 1, quoted(udp(bob6, alice6, 600))), true, true},
		"an error about others":       {icmp(alice4, bob4, 11, quoted(udp(bob4, bob4.Next(), 600))), false, true},
		"an error that is cut":        {icmp(alice4, bob4, 3, udp(bob4, alice4, 6)[:19]), false, true},
		"IPv6 with options":           {extended(udp(alice6, bob6, 33), unix.IPPROTO_DSTOPTS), false, true},
		"IPv6, first fragment":        {extended(udp(alice6, bob6, 33), unix.IPPROTO_FRAGMENT, 0, 0, 1), false, true},
		"IPv6, a later fragment":      {extended(udp(alice6, bob6, 33), unix.IPPROTO_FRAGMENT, 0, 0, 9), false, false},
		"a protocol without checksum": {lab.IPPacket(alice4, bob4, 132, make([]byte, 20)), false, false},
	} {
		own, inner := alice4, inner4
		if c.data[0]>>4 == 6 {
			own, inner = alice6, inner6
		}
		p, err := parsePacket(bytes.Clone(c.data))
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		p.translate(true, inner.As16())
		again, err := parsePacket(p.data)
		if err != nil || again.src != inner.As16() || p.src != inner.As16() || again.dst != p.dst || p.dst == p.src {
			t.Errorf("%s: got %+v, %v", what, again, err)
		}
		if c.whole {
			sound(t, what, p.data)
		}
		if n := bytes.Count(p.data, inner.AsSlice()); n != 1 && !c.quote || c.quote && n != 2 || bytes.Contains(p.data, own.AsSlice()) {
			t.Errorf("%s: the new address stands there %d times\n%x", what, n, p.data)
		}
		if c.quote && !p.v6 && fold(sum(p.data[28:48])) != 0xffff {
			t.Errorf("%s: the quoted header's checksum is wrong", what)
		}
		p.translate(true, own.As16())
		if !bytes.Equal(p.data, c.data) {
			t.Errorf("%s: there and back again\n%x is\n%x", what, c.data, p.data)
		}
	}
}

// The way in: the destination is translated, and an error that is about what we have sent.
func TestTranslateBack(t *testing.T) {
	for what, data := range map[string][]byte{
		"UDP": udp(bob4, inner4, 100), "UDP over IPv6": udp(bob6, inner6, 100),
		"an error": icmp(bob4, inner4, 3, quoted(udp(inner4, bob4, 100))), "an error over IPv6": icmp(bob6, inner6, 3, quoted(udp(inner6, bob6, 100))),
	} {
		own, inner := alice4, inner4
		if data[0]>>4 == 6 {
			own, inner = alice6, inner6
		}
		p, _ := parsePacket(data)
		p.translate(false, own.As16())
		sound(t, what, data)
		if bytes.Contains(data, inner.AsSlice()) || p.dst != own.As16() {
			t.Errorf("%s: %x", what, data)
		}
	}
}

// RFC 4301, 5.2: what comes out of the tunnel goes from the peer to the address that it has assigned, and is for our own then. All else is dropped: what is for our
// own address, too, which the peer does not know.
func TestOnlyToTheInnerAddress(t *testing.T) {
	for _, c := range []struct {
		what     string
		src, dst netip.Addr
		next     uint8
		ok       bool
	}{
		{"what is meant", bob4, inner4, unix.IPPROTO_IPIP, true},
		{"our own address", bob4, alice4, unix.IPPROTO_IPIP, false},
		{"another's", bob4, inner4.Next(), unix.IPPROTO_IPIP, false},
		{"from another", alice4, inner4, unix.IPPROTO_IPIP, false},
		{"as another protocol", bob4, inner4, unix.IPPROTO_IPV6, false},
		{"of the other family", bob6, inner6, unix.IPPROTO_IPV6, false},
	} {
		p, inner := &Plane{}, inner4.As16()
		in := &inbound{mode: ipsec.Tunnel, pair: &pair{inner: &inner, flow: &flow{Flow: plane.Flow{Key: guard.Key{Own: alice4, Peer: bob4}}}}}
		out, pkt, ok := p.unwrap(in, append(make([]byte, deviceOffset), udp(c.src, c.dst, 10)...), c.next, control{})
		if ok != c.ok || ok && (pkt.dst != alice4.As16() || !bytes.Equal(out[deviceOffset:], udp(bob4, alice4, 10))) {
			t.Errorf("%s: taken %v, %+v", c.what, ok, pkt)
		}
	}
}

// A checksum of UDP that comes out as 0 is written as ffff: 0 would be none (RFC 768).
func TestTranslateToNoChecksum(t *testing.T) {
	for i := range 1 << 16 {
		data := lab.UDPPacket(netip.AddrPortFrom(alice4, 1000), netip.AddrPortFrom(bob4, 2000), []byte{byte(i >> 8), byte(i)})
		p, _ := parsePacket(data)
		before := binary.BigEndian.Uint16(data[ipv4Header+sumUDP:])
		p.translate(true, inner4.As16())
		if got := binary.BigEndian.Uint16(data[ipv4Header+sumUDP:]); got == 0xffff {
			return
		} else if got == 0 {
			t.Fatalf("%x became %x", before, got)
		}
	}
	t.Error("no packet has come out so: the test tests nothing")
}

func TestTranslateAllocatesNothing(t *testing.T) {
	data, to := icmp(alice6, bob6, 1, quoted(udp(bob6, alice6, 600))), inner6.As16()
	p, _ := parsePacket(data)
	if n := testing.AllocsPerRun(100, func() { p.translate(true, to) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// Whatever the packet: nothing but addresses and checksums changes, and it comes back as it was.
func FuzzTranslate(f *testing.F) {
	for _, b := range [][]byte{udp(alice4, bob4, 9), udp(alice6, bob6, 9), syn(alice4, bob4, tcpSYN), icmp(alice6, bob6, 1, udp(bob6, alice6, 9)),
		extended(udp(alice6, bob6, 33), unix.IPPROTO_FRAGMENT, 0, 0, 1), icmp(alice4, bob4, 3, udp(bob4, alice4, 9))} {
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, data []byte, source bool) {
		p, err := parsePacket(bytes.Clone(data))
		if err != nil {
			return
		}
		to, back := inner4.As16(), p.dst
		if p.v6 {
			to = inner6.As16()
		}
		if source {
			back = p.src
		}
		p.translate(source, to)
		q, err := parsePacket(p.data)
		if err != nil || q.src != p.src || q.dst != p.dst || q.proto != p.proto || len(q.data) != len(p.data) {
			t.Fatalf("%x became %x: %v", data, p.data, err)
		}
		p.translate(source, back)
		different := 0
		for i := range p.data {
			if p.data[i] != data[i] {
				different++
			}
		}
		if different > 6 { // three checksums, in which 0 and ffff are the same
			t.Errorf("%x came back as %x", data, p.data)
		}
	})
}
