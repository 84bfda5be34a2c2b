package lab

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

var (
	a4 = netip.MustParseAddr("192.0.2.1")
	b4 = netip.MustParseAddr("192.0.2.2")
	a6 = netip.MustParseAddr("2001:db8::1")
	b6 = netip.MustParseAddr("2001:db8::2")
)

// ether puts an Ethernet header before an IP packet.
func ether(packet []byte) []byte {
	kind := uint16(0x0800)
	if packet[0]>>4 == 6 {
		kind = 0x86dd
	}
	return append(binary.BigEndian.AppendUint16(make([]byte, 12), kind), packet...)
}

func udp(src, dst netip.Addr, sport, dport uint16, payload ...byte) []byte {
	return ether(UDPPacket(netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport), payload))
}

func tcp(sport, dport uint16) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	b[12] = 5 << 4
	return b
}

func ikeMessage(exchange, flags byte) []byte {
	b := make([]byte, 28)
	b[17], b[18], b[19] = 0x20, exchange, flags
	return b
}

// fragment4 turns an IPv4 frame into a fragment: offset in units of 8 bytes.
func fragment4(frame []byte, offset uint16, more bool) []byte {
	f := bytes.Clone(frame)
	if more {
		offset |= 0x2000
	}
	binary.BigEndian.PutUint16(f[14+4:], 77)
	binary.BigEndian.PutUint16(f[14+6:], offset)
	return f
}

func extension6(next byte, upper []byte, chain ...byte) []byte {
	return ether(IPPacket(a6, b6, chain[0], append(append([]byte{next}, chain[1:]...), upper...)))
}

func TestParseFrame(t *testing.T) {
	arp := append(binary.BigEndian.AppendUint16(make([]byte, 12), 0x0806), make([]byte, 28)...)
	arp[18], arp[19] = 6, 4
	copy(arp[28:], a4.AsSlice())
	copy(arp[38:], b4.AsSlice())
	vlan := udp(a4, b4, 1, 2, 0)
	vlan = append(append(bytes.Clone(vlan[:12]), 0x81, 0, 0, 5), vlan[12:]...)
	espBody := []byte{0, 0, 1, 2, 0, 0, 0, 1, 9, 9}
	tests := []struct {
		name  string
		frame []byte
		want  Class
	}{
		{"ESP over IPv4", ether(IPPacket(a4, b4, 50, espBody)), ClassESP},
		{"ESP over IPv6", ether(IPPacket(a6, b6, 50, espBody)), ClassESP},
		{"ESP in UDP", udp(a4, b4, 4500, 4500, espBody...), ClassESPUDP},
		{"ESP in UDP from a NAT", udp(a6, b6, 4500, 33333, espBody...), ClassESPUDP},
		{"IKE on 500", udp(a4, b4, 500, 500, ikeMessage(34, 8)...), ClassIKE},
		{"IKE on 4500", udp(a6, b6, 4500, 4500, append(make([]byte, 4), ikeMessage(35, 0x20)...)...), ClassIKE},
		{"NAT-keepalive", udp(a4, b4, 4500, 4500, 0xff), ClassIKE},
		{"too short for ESP in UDP", udp(a4, b4, 4500, 4500, 1, 2, 3), ClassClear},
		{"ARP", arp, ClassNeighbor},
		{"neighbour solicitation", ether(IPPacket(a6, b6, 58, []byte{135, 0, 0, 0})), ClassNeighbor},
		{"listener report behind a hop-by-hop header", extension6(58, []byte{143, 0}, 0, 0, 5, 2, 0, 0, 0, 0), ClassNeighbor},
		{"ICMPv6 number in IPv4", ether(IPPacket(a4, b4, 58, []byte{135, 0, 0, 0})), ClassClear},
		{"ping6", ether(IPPacket(a6, b6, 58, []byte{128, 0, 0, 0})), ClassClear},
		{"ping", ether(IPPacket(a4, b4, 1, []byte{8, 0, 0, 0})), ClassClear},
		{"DNS over UDP", udp(a4, b4, 4242, 53, 1), ClassDNS},
		{"DNS over TCP", ether(IPPacket(a6, b6, 6, tcp(53, 4242))), ClassDNS},
		{"DNS over TLS", ether(IPPacket(a4, b4, 6, tcp(4242, 853))), ClassDNS},
		{"web", ether(IPPacket(a4, b4, 6, tcp(4242, 80))), ClassClear},
		{"TCP to 4500", ether(IPPacket(a4, b4, 6, tcp(4242, 4500))), ClassClear},
		{"AH", ether(IPPacket(a4, b4, 51, espBody)), ClassClear},
		{"fragment behind the first", fragment4(udp(a4, b4, 500, 500, ikeMessage(34, 8)...), 100, false), ClassClear},
		{"fragment of ESP", fragment4(ether(IPPacket(a4, b4, 50, espBody)), 100, true), ClassESP},
		{"fragment of ESP over IPv6", extension6(50, espBody, 44, 0, 0x10, 1, 0, 0, 0, 1), ClassESP},
		{"VLAN", vlan, ClassClear},
		{"unknown EtherType", append(make([]byte, 12), 0x88, 0xb5, 0, 0), ClassOther},
		{"nothing", nil, ClassOther},
	}
	for _, tt := range tests {
		f := ParseFrame(tt.frame)
		if f.Class != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, f.Class, tt.want)
		}
		for i := range tt.frame { // a frame cut short is no reason to fall
			ParseFrame(tt.frame[:i])
		}
	}
}

func TestParseFrameFields(t *testing.T) {
	f := ParseFrame(udp(a6, b6, 4500, 500, append(make([]byte, 4), ikeMessage(35, 0x20)...)...))
	if f.Src != a6 || f.Dst != b6 || f.SrcPort != 4500 || f.DstPort != 500 {
		t.Errorf("got %+v", f)
	}
	f = ParseFrame(udp(a4, b4, 4500, 4500, append(make([]byte, 4), ikeMessage(35, 0x20)...)...))
	h, ok := ParseIKEHeader(f.Payload)
	if !ok || h.Exchange != 35 || !h.Response || h.Initiator {
		t.Errorf("IKE header: got %+v, %v", h, ok)
	}
	first := fragment4(udp(a4, b4, 500, 500, ikeMessage(34, 8)...), 0, true)
	if f = ParseFrame(first); !f.FirstFragment || f.Fragment || f.FragmentID != 77 || f.Class != ClassIKE {
		t.Errorf("first fragment: got %+v", f)
	}
	for i := range 28 {
		if _, ok := ParseIKEHeader(ikeMessage(34, 8)[:i]); ok {
			t.Errorf("an IKE header of %d bytes parses", i)
		}
	}
}

func TestWritePcap(t *testing.T) {
	var b bytes.Buffer
	at := time.Unix(1000, 5)
	if err := writePcap(&b, []Packet{{Time: at, Length: 100, Head: []byte{1, 2, 3}}}); err != nil {
		t.Fatal(err)
	}
	want := []byte{0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0,
		0xe8, 3, 0, 0, 5, 0, 0, 0, 3, 0, 0, 0, 100, 0, 0, 0, 1, 2, 3}
	if !bytes.Equal(b.Bytes(), want) {
		t.Errorf("got % x", b.Bytes())
	}
}

func TestChecksums(t *testing.T) {
	for _, p := range [][]byte{
		UDPPacket(netip.AddrPortFrom(a4, 1), netip.AddrPortFrom(b4, 2), []byte("odd")),
		UDPPacket(netip.AddrPortFrom(a6, 1), netip.AddrPortFrom(b6, 2), []byte("even")),
	} {
		f := ParseFrame(ether(p))
		head := len(p) - 8 - len(f.Payload)
		if got := upperChecksum(f.Src, f.Dst, protoUDP, p[head:]); got != 0 && got != 0xffff {
			t.Errorf("%v: the sum over a datagram with its checksum is %#x", f.Src, got)
		}
	}
}

func FuzzParseFrame(f *testing.F) {
	f.Add(udp(a4, b4, 4500, 4500, 0, 0, 0, 0, 1))
	f.Add(udp(a6, b6, 500, 500, ikeMessage(34, 8)...))
	f.Add(ether(IPPacket(a4, b4, 6, tcp(1, 53))))
	f.Add(extension6(58, []byte{143, 0}, 0, 0, 5, 2, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		fr := ParseFrame(b)
		if int(fr.Class) >= int(classes) || fr.Class == ClassClear && !fr.Src.IsValid() {
			t.Errorf("got %+v", fr)
		}
	})
}

func FuzzParseIKEHeader(f *testing.F) {
	f.Add(ikeMessage(34, 8))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, ok := ParseIKEHeader(b); ok && len(b) < 28 {
			t.Error("too short")
		}
	})
}

func TestExchangeName(t *testing.T) {
	for number, want := range map[uint8]string{34: "IKE_SA_INIT", 43: "IKE_INTERMEDIATE", 44: "IKE_FOLLOWUP_KE", 240: "exchange(240)"} {
		if got := ExchangeName(number); got != want {
			t.Errorf("%d: %s, want %s", number, got, want)
		}
	}
}
