package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// InjectFrame sends a whole Ethernet frame from the host's link, whatever it says.
func (h *Host) InjectFrame(frame []byte) error {
	return h.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: h.link.Attrs().Index, Halen: 6})
	})
}

// Inject sends an IP packet, with whatever source address it bears, from the host's link to the link of the host it is
// addressed to, without asking the kernel's routes or neighbours.
func (h *Host) Inject(packet []byte) error {
	dst, kind, err := packetTarget(packet)
	if err != nil {
		return err
	}
	to, ok := h.lab.HostOf(dst)
	if !ok {
		return fmt.Errorf("inject: no host has %v", dst)
	}
	frame := append(append(append([]byte(nil), to.mac...), h.mac...), kind[:]...)
	return h.InjectFrame(append(frame, packet...))
}

func packetTarget(b []byte) (netip.Addr, [2]byte, error) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(b[16:20])), [2]byte{0x08, 0x00}, nil
	case len(b) >= 40 && b[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(b[24:40])), [2]byte{0x86, 0xdd}, nil
	}
	return netip.Addr{}, [2]byte{}, fmt.Errorf("inject: not an IP packet")
}

// UDPPacket builds an IP packet that holds a UDP datagram, with its checksums, for Inject.
func UDPPacket(src, dst netip.AddrPort, payload []byte) []byte {
	u := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(u, src.Port())
	binary.BigEndian.PutUint16(u[2:], dst.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(8+len(payload)))
	u = append(u, payload...)
	sum := upperChecksum(src.Addr(), dst.Addr(), protoUDP, u)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(u[6:], sum)
	return IPPacket(src.Addr(), dst.Addr(), protoUDP, u)
}

// TCPPacket puts an IP header before a TCP segment, whose checksum it makes, for Inject.
func TCPPacket(src, dst netip.Addr, segment []byte) []byte {
	s := append([]byte(nil), segment...)
	s[16], s[17] = 0, 0
	binary.BigEndian.PutUint16(s[16:], upperChecksum(src, dst, protoTCP, s))
	return IPPacket(src, dst, protoTCP, s)
}

// IPPacket puts an IP header before the payload.
func IPPacket(src, dst netip.Addr, proto uint8, payload []byte) []byte {
	if src.Is4() {
		h := make([]byte, 20, 20+len(payload))
		h[0], h[8], h[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
		copy(h[12:], src.AsSlice())
		copy(h[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(h[10:], checksum(0, h))
		return append(h, payload...)
	}
	h := make([]byte, 40, 40+len(payload))
	h[0], h[6], h[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], src.AsSlice())
	copy(h[24:], dst.AsSlice())
	return append(h, payload...)
}

// upperChecksum is the checksum of UDP, TCP and ICMPv6 over the pseudo-header and b.
func upperChecksum(src, dst netip.Addr, proto uint8, b []byte) uint16 {
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = append(pseudo, 0, proto)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(b)))
	return checksum(sum16(0, pseudo), b)
}

func sum16(sum uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func checksum(sum uint32, b []byte) uint16 {
	sum = sum16(sum, b)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
