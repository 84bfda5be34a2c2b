package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// ipPacket makes a UDP packet of ours with a payload of n octets.
func ipPacket(v6 bool, n int, df bool) []byte {
	b := make([]byte, ipv4Header)
	b[0], b[9] = 0x45, unix.IPPROTO_UDP
	copy(b[12:], []byte{192, 0, 2, 1, 192, 0, 2, 2})
	if df {
		b[6] = flagDF
	}
	if v6 {
		b = make([]byte, ipv6Header)
		b[0], b[6], b[7], b[8], b[24] = 0x60, unix.IPPROTO_UDP, defaultHops, 0x20, 0x20
		binary.BigEndian.PutUint16(b[4:], uint16(n))
	} else {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)+n))
	}
	for i := range n {
		b = append(b, byte(i*7))
	}
	return b
}

// Fragments fit, lie side by side, carry one identification, and are the packet when put together.
func TestFragment(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, n := range []int{1472, 1473, 1480, 3000, 8000, 60000} {
			data := ipPacket(v6, n, false)
			pkt, err := parsePacket(data)
			if err != nil {
				t.Fatal(err)
			}
			parts, err := fragment(&pkt, 1500, 0x12340)
			if err != nil || len(parts) < 1 {
				t.Fatalf("%d octets: %v", n, err)
			}
			var got []byte
			for i, b := range parts {
				p, err := parsePacket(b)
				if err != nil || len(b) > 1500 || len(p.data) != len(b) {
					t.Fatalf("%d octets, part %d of %d octets: %v", n, i, len(b), err)
				}
				offset, more, id, body := binary.BigEndian.Uint16(b[6:])&0x1fff*8, b[6]&0x20 != 0, uint32(binary.BigEndian.Uint16(b[4:])), b[ipv4Header:]
				if v6 {
					word := binary.BigEndian.Uint16(b[ipv6Header+2:])
					offset, more, id, body = word&^7, word&1 != 0, binary.BigEndian.Uint32(b[ipv6Header+4:]), b[ipv6Header+fragmentHeader:]
					if b[6] != unix.IPPROTO_FRAGMENT || b[ipv6Header] != unix.IPPROTO_UDP {
						t.Fatalf("part %d: next headers %d, %d", i, b[6], b[ipv6Header])
					}
				}
				if int(offset) != len(got) || more != (i < len(parts)-1) || id == 0 || v6 && id != 0x12340 || !v6 && id != 0x2341 {
					t.Fatalf("%d octets, part %d: offset %d, more %v, id %x", n, i, offset, more, id)
				}
				got = append(got, body...)
			}
			if !bytes.Equal(got, data[len(data)-n:]) {
				t.Errorf("%d octets: put together they are others", n)
			}
		}
	}
	for name, data := range map[string][]byte{"must not be fragmented": ipPacket(false, 3000, true)} {
		pkt, _ := parsePacket(data)
		if parts, err := fragment(&pkt, 1500, 1); !errors.Is(err, errDontFragment) {
			t.Errorf("%s: %d parts, %v", name, len(parts), err)
		}
	}
}
