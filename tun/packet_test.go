package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"tacit/esp"
	"tacit/ipsec"
	"tacit/lab"
)

var (
	alice4 = netip.MustParseAddr("192.0.2.1")
	bob4   = netip.MustParseAddr("192.0.2.2")
	alice6 = netip.MustParseAddr("2001:db8::1")
	bob6   = netip.MustParseAddr("2001:db8::2")
)

func udp(src, dst netip.Addr, size int) []byte {
	return lab.UDPPacket(netip.AddrPortFrom(src, 1000), netip.AddrPortFrom(dst, 2000), make([]byte, size))
}

func TestParsePacket(t *testing.T) {
	for _, c := range []struct{ src, dst netip.Addr }{{alice4, bob4}, {alice6, bob6}} {
		b := udp(c.src, c.dst, 100)
		p, err := parsePacket(append(bytes.Clone(b), 1, 2, 3)) // trailing octets are cut off
		if err != nil || p.src != c.src.As16() || p.dst != c.dst.As16() || p.proto != unix.IPPROTO_UDP || p.v6 != c.src.Is6() ||
			!bytes.Equal(p.data, b) || len(p.data)-p.header != udpHeader+100 || p.fragment || p.transportable() != nil {
			t.Errorf("%v: got %+v, %v", c.src, p, err)
		}
		for i := range b {
			if _, err := parsePacket(b[:i]); err == nil {
				t.Errorf("%v cut to %d octets: parsed", c.src, i)
			}
		}
	}
}

func TestTransportable(t *testing.T) {
	v4, v6 := udp(alice4, bob4, 8), udp(alice6, bob6, 8)
	change := func(b []byte, at int, v byte) []byte {
		b = bytes.Clone(b)
		b[at] = v
		return b
	}
	options := append(append(change(v4[:20], 0, 0x46), 0, 0, 0, 0), v4[20:]...)
	binary.BigEndian.PutUint16(options[2:], uint16(len(options)))
	for name, c := range map[string]struct {
		packet []byte
		want   error
	}{
		"v4":                {v4, nil},
		"v4 DF":             {change(v4, 6, 0x40), nil},
		"v4 more fragments": {change(v4, 6, 0x20), errFragment},
		"v4 offset":         {change(v4, 7, 1), errFragment},
		"v4 options":        {options, errOptions},
		"v6":                {v6, nil},
		"v6 fragment":       {change(v6, 6, unix.IPPROTO_FRAGMENT), errFragment},
		"v6 hop by hop":     {change(v6, 6, protoHopByH), errExtend},
		"v6 routing":        {change(v6, 6, protoRouting), errExtend},
		"v6 destination":    {change(v6, 6, unix.IPPROTO_DSTOPTS), nil},
	} {
		p, err := parsePacket(c.packet)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := p.transportable(); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestPutHeader(t *testing.T) {
	for _, c := range []struct{ local, remote netip.Addr }{{alice4, bob4}, {alice6, bob6}} {
		room := ipv4Header
		if c.local.Is6() {
			room = ipv6Header
		}
		b := make([]byte, room+50)
		putHeader(b[:room], c.local, c.remote, unix.IPPROTO_TCP, control{tos: 0xb9, hops: 255}, 50)
		p, err := parsePacket(b)
		if err != nil || p.src != c.remote.As16() || p.dst != c.local.As16() || p.proto != unix.IPPROTO_TCP || p.tos != 0xb9 || p.hops != 255 || len(p.data) != len(b) {
			t.Errorf("%v: got %+v, %v", c.local, p, err)
		}
		if !p.v6 && fold(sum(b[:room])) != 0xffff {
			t.Errorf("checksum of %x is wrong", b[:room])
		}
	}
}

func TestDecapsulateECN(t *testing.T) {
	for _, addr := range [][2]netip.Addr{{alice4, bob4}, {alice6, bob6}} {
		for _, c := range []struct {
			inner, outer, want uint8
			ok                 bool
		}{{0, 0, 0, true}, {2, 2, 2, true}, {2, 3, 3, true}, {1, 3, 3, true}, {3, 3, 3, true}, {0, 3, 0, false}, {3, 0, 3, true}} {
			room := ipv4Header
			if addr[0].Is6() {
				room = ipv6Header
			}
			b := make([]byte, room)
			putHeader(b, addr[0], addr[1], unix.IPPROTO_TCP, control{tos: 0x20 | c.inner}, 0)
			ok := decapsulateECN(b, c.outer)
			p, err := parsePacket(b)
			if ok != c.ok || err != nil || p.tos != 0x20|c.want || !p.v6 && fold(sum(b)) != 0xffff {
				t.Errorf("%+v, %v: got %v, %+v, %v", c, addr[0], ok, p, err)
			}
		}
	}
}

// syn builds a TCP segment with the options, and a right checksum.
func syn(src, dst netip.Addr, flags byte, options ...byte) []byte {
	for len(options)%4 != 0 {
		options = append(options, optEnd)
	}
	tcp := make([]byte, tcpHeader, tcpHeader+len(options))
	tcp[12], tcp[13] = byte((tcpHeader+len(options))/4)<<4, flags
	tcp = append(tcp, options...)
	binary.BigEndian.PutUint16(tcp[16:], ^fold(tcpSum(src, dst, tcp)))
	return lab.IPPacket(src, dst, unix.IPPROTO_TCP, tcp)
}

func tcpSum(src, dst netip.Addr, tcp []byte) uint32 {
	return sum(src.AsSlice()) + sum(dst.AsSlice()) + unix.IPPROTO_TCP + uint32(len(tcp)) + sum(tcp)
}

func TestClampMSS(t *testing.T) {
	for name, c := range map[string]struct {
		flags   byte
		options []byte
		at      int // of the value, in the options; -1: there is none
		want    uint16
	}{
		"lowered":        {tcpSYN, []byte{optMSS, 4, 0x05, 0xb4}, 2, 1400},
		"syn ack":        {tcpSYN | 0x10, []byte{optMSS, 4, 0x05, 0xb4}, 2, 1400},
		"small enough":   {tcpSYN, []byte{optMSS, 4, 0x02, 0x18}, 2, 536},
		"not first":      {tcpSYN, []byte{4, 2, optNop, optNop, optMSS, 4, 0xff, 0xff}, 6, 1400},
		"odd offset":     {tcpSYN, []byte{optNop, optMSS, 4, 0x05, 0xb4}, 3, 1400},
		"no syn":         {0x10, []byte{optMSS, 4, 0x05, 0xb4}, 2, 1460},
		"after the end":  {tcpSYN, []byte{optEnd, 0, 0, 0, optMSS, 4, 0x05, 0xb4}, 6, 1460},
		"cut":            {tcpSYN, []byte{optNop, optNop, optNop, optMSS}, -1, 0},
		"length 0":       {tcpSYN, []byte{8, 0, 0, 0, optMSS, 4, 0x05, 0xb4}, 6, 1460},
		"length beyond":  {tcpSYN, []byte{8, 40, 0, 0}, -1, 0},
		"no option here": {tcpSYN, nil, -1, 0},
	} {
		for _, a := range [][2]netip.Addr{{alice4, bob4}, {alice6, bob6}} {
			b := syn(a[0], a[1], c.flags, c.options...)
			p, err := parsePacket(b)
			if err != nil {
				t.Fatal(err)
			}
			clampMSS(&p, 1400)
			tcp := p.data[p.header:]
			if c.at >= 0 {
				if got := binary.BigEndian.Uint16(tcp[tcpHeader+c.at:]); got != c.want {
					t.Errorf("%s: got %d, want %d", name, got, c.want)
				}
			}
			if fold(tcpSum(a[0], a[1], tcp)) != 0xffff {
				t.Errorf("%s: the checksum is wrong", name)
			}
		}
	}
}

func TestSegmentLimit(t *testing.T) {
	pair := func(local, remote netip.Addr, port uint16, m ipsec.Mode) ipsec.Pair {
		return ipsec.Pair{Local: netip.AddrPortFrom(local, port), Remote: netip.AddrPortFrom(remote, port), Mode: m,
			Selector: ipsec.Host(local, remote)}
	}
	cbc := func(i ipsec.Integrity) ipsec.SA {
		return ipsec.SA{SPI: 1000, Cipher: ipsec.AESCBC, Key: make([]byte, 16), Integrity: i, AuthKey: make([]byte, i.KeyLen())}
	}
	for _, c := range []struct {
		pair ipsec.Pair
		sa   ipsec.SA
		mtu  int
		want uint16
	}{
		{pair(alice4, bob4, 0, ipsec.Transport), testSA(1000), 1500, 1426},    // 1448 - 2 - 20
		{pair(alice4, bob4, 4500, ipsec.Transport), testSA(1000), 1500, 1418}, // 1440 - 2 - 20
		{pair(alice4, bob4, 0, ipsec.Tunnel), testSA(1000), 1500, 1406},
		{pair(alice6, bob6, 0, ipsec.Transport), testSA(1000), 1500, 1406},
		{pair(alice6, bob6, 4500, ipsec.Tunnel), testSA(1000), 1500, 1358},
		{pair(alice4, bob4, 0, ipsec.Transport), testSA(1000), 200, minSegment},
		{pair(alice4, bob4, 0, ipsec.Transport), testSA(1000), 65536, 65458},
		// 1500 - 20 - 8 - 16 - 16 = 1440 = 90 blocks of 16; with UDP 89, with an ICV of 24 or 32 too
		{pair(alice4, bob4, 0, ipsec.Transport), cbc(ipsec.HMACSHA256), 1500, 1418},
		{pair(alice4, bob4, 4500, ipsec.Transport), cbc(ipsec.HMACSHA256), 1500, 1402},
		{pair(alice4, bob4, 0, ipsec.Transport), cbc(ipsec.HMACSHA384), 1500, 1402},
		{pair(alice4, bob4, 0, ipsec.Transport), cbc(ipsec.HMACSHA512), 1500, 1402},
		{pair(alice6, bob6, 4500, ipsec.Tunnel), cbc(ipsec.HMACSHA512), 1500, 1330}, // 87 blocks - 2 - 20 - 40
	} {
		s, err := esp.NewSealer(c.sa)
		if err != nil {
			t.Fatal(err)
		}
		got := segmentLimit(c.pair, c.mtu, s)
		if got != c.want {
			t.Errorf("%v, %v, mtu %d: got %d, want %d", c.pair.Local, c.sa.Integrity, c.mtu, got, c.want)
		}
		// A segment more no longer fits, one like this does: measured at packets that were sealed.
		inner := tcpHeader
		if c.pair.Mode == ipsec.Tunnel {
			inner += map[bool]int{false: ipv4Header, true: ipv6Header}[c.pair.Selector.Remote.Addr().Is6()]
		}
		room := outerRoom(c.mtu, c.pair.Remote.Addr().Is6(), c.pair.Encapsulated())
		if got == minSegment {
			continue
		}
		for more, fits := range []bool{true, false} {
			packet, err := s.Seal(nil, unix.IPPROTO_TCP, make([]byte, inner+int(got)+more))
			if err != nil && fits || (len(packet) <= room) != fits && err == nil {
				t.Errorf("%v: a segment of %d becomes %d octets of ESP, there is room for %d (%v)", c.pair.Local, int(got)+more, len(packet), room, err)
			}
		}
	}
}

func FuzzParsePacket(f *testing.F) {
	f.Add(udp(alice4, bob4, 10))
	f.Add(udp(alice6, bob6, 10))
	f.Add(syn(alice4, bob4, tcpSYN, optNop, optMSS, 4, 0xff, 0xff))
	f.Add(syn(alice6, bob6, tcpSYN, optMSS, 4, 0xff))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePacket(b)
		if err != nil {
			return
		}
		if p.header > len(p.data) || len(p.data) > len(b) {
			t.Fatalf("header %d, data %d of %d", p.header, len(p.data), len(b))
		}
		_ = p.transportable()
		clampMSS(&p, 1400)
		decapsulateECN(p.data, 3)
		if again, err := parsePacket(p.data); err != nil || again.header != p.header || again.src != p.src {
			t.Fatalf("after changes: got %+v, %v", again, err)
		}
	})
}
