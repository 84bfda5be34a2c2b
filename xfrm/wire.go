package xfrm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Message types of NETLINK_XFRM (linux/xfrm.h).
const (
	msgNewSA uint16 = 0x10 + iota
	msgDelSA
	msgGetSA
	msgNewPolicy
	msgDelPolicy
	msgGetPolicy
	msgAllocSPI
	msgAcquire
	msgExpire
	msgUpdPolicy
	msgUpdSA
	msgPolExpire
	msgMapping uint16 = 0x26
)

// Multicast groups.
const (
	groupAcquire uint32 = 1
	groupExpire  uint32 = 2
	groupMapping uint32 = 8
)

// Attributes. Those above SETMARK came with later kernels and are sent only when asked for.
const (
	attrAlgAuth      = 1
	attrAlgCrypt     = 2
	attrEncap        = 4
	attrTemplate     = 5
	attrSA           = 6
	attrPolicy       = 7
	attrSrcAddr      = 13
	attrLastUsed     = 15
	attrAlgAEAD      = 18
	attrAlgAuthTrunc = 20
	attrMark         = 21
	attrReplayESN    = 23
	attrOffload      = 28
	attrSetMark      = 29
	attrSetMarkMask  = 30
	attrDirection    = 33
)

const (
	familyIPv4 uint16 = 2
	familyIPv6 uint16 = 10

	protoESP uint8 = 50
	protoTCP uint8 = 6
	protoUDP uint8 = 17

	modeTransport uint8 = 0
	modeTunnel    uint8 = 1

	flagESN = 0x80

	espInUDP = 2 // UDP_ENCAP_ESPINUDP: RFC 3948

	// Forever is a lifetime without an end.
	Forever = ^uint64(0)
)

// Sizes of the kernel's structures on 64 bit systems; 32 bit ones that align to 4 octets differ at the ends, and have never run this.
const (
	sizeID         = 24
	sizeSelector   = 56
	sizeLifetime   = 64
	sizeCurrent    = 32
	sizeSA         = 224
	sizeSAID       = 24
	sizePolicy     = 168
	sizePolicyID   = 64
	sizeTemplate   = 64
	sizeExpire     = 232
	sizePolExpire  = 176
	sizeAcquire    = 280
	sizeMapping    = 64
	sizeEncap      = 24
	sizeAlgName    = 64
	sizeReplayHead = 24
)

var (
	errShort   = errors.New("too short")
	errBad     = errors.New("contradictory")
	errUnknown = errors.New("unknown")
)

var native, big = binary.NativeEndian, binary.BigEndian

// writer lays structures out in the kernel's order.
type writer struct{ b []byte }

func (w *writer) u8(v ...uint8) { w.b = append(w.b, v...) }
func (w *writer) u16(v uint16)  { w.b = native.AppendUint16(w.b, v) }
func (w *writer) u32(v uint32)  { w.b = native.AppendUint32(w.b, v) }
func (w *writer) u64(v uint64)  { w.b = native.AppendUint64(w.b, v) }
func (w *writer) be16(v uint16) { w.b = big.AppendUint16(w.b, v) }
func (w *writer) be32(v uint32) { w.b = big.AppendUint32(w.b, v) }
func (w *writer) zero(n int)    { w.b = append(w.b, make([]byte, n)...) }

// addr is 16 octets whatever the family.
func (w *writer) addr(a netip.Addr) {
	n := len(w.b)
	w.b = append(w.b, a.AsSlice()...)
	w.zero(16 - (len(w.b) - n))
}

// attr appends an attribute (a length, a type, octets, padding to 4).
func (w *writer) attr(kind uint16, data []byte) {
	w.u16(uint16(4 + len(data)))
	w.u16(kind)
	w.u8(data...)
	w.zero(-len(data) & 3)
}

func (w *writer) attr32(kind uint16, v uint32) { w.attr(kind, native.AppendUint32(nil, v)) }

// reader is the inverse: the first thing that does not fit is the error, and everything after it reads as zero.
type reader struct {
	b   []byte
	at  int
	err error
}

func (r *reader) take(n int) []byte {
	if r.err != nil || len(r.b)-r.at < n {
		if r.err == nil {
			r.err = fmt.Errorf("offset %d: want %d octets, have %d: %w", r.at, n, len(r.b)-r.at, errShort)
		}
		return make([]byte, n)
	}
	r.at += n
	return r.b[r.at-n : r.at]
}

func (r *reader) u8() uint8    { return r.take(1)[0] }
func (r *reader) u16() uint16  { return native.Uint16(r.take(2)) }
func (r *reader) u32() uint32  { return native.Uint32(r.take(4)) }
func (r *reader) u64() uint64  { return native.Uint64(r.take(8)) }
func (r *reader) be16() uint16 { return big.Uint16(r.take(2)) }
func (r *reader) be32() uint32 { return big.Uint32(r.take(4)) }
func (r *reader) skip(n int)   { r.take(n) }

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = fmt.Errorf("offset %d: %w", r.at, err)
	}
}

// addr reads an address whose family stands elsewhere. The zero address of a family is the invalid Addr: "any".
func addrOf(b [16]byte, family uint16) netip.Addr {
	var a netip.Addr
	switch family {
	case familyIPv4:
		a = netip.AddrFrom4([4]byte(b[:4]))
	case familyIPv6:
		a = netip.AddrFrom16(b)
	}
	if !a.IsValid() || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

func (r *reader) addr16() (b [16]byte) {
	copy(b[:], r.take(16))
	return b
}

// attrs walks the attributes that fill the rest of a message. What follows a last attribute is at most its padding.
func (r *reader) attrs(each func(kind uint16, data []byte) error) {
	for r.err == nil && r.at < len(r.b) {
		start := r.at
		length, kind := int(r.u16()), r.u16()&0x3fff
		if r.err != nil {
			return
		}
		if length < 4 {
			r.fail(fmt.Errorf("attribute of length %d: %w", length, errBad))
			return
		}
		data := r.take(length - 4)
		if r.err != nil {
			return
		}
		if err := each(kind, data); err != nil {
			r.err = fmt.Errorf("offset %d, attribute %d: %w", start, kind, err)
			return
		}
		r.at = min(len(r.b), r.at+(-length&3))
	}
}

func familyOf(a netip.Addr) uint16 {
	if a.Is4() {
		return familyIPv4
	}
	return familyIPv6
}

// Mark is a value and the bits of it that count.
type Mark struct{ Value, Mask uint32 }

func (m Mark) bytes() []byte { return native.AppendUint32(native.AppendUint32(nil, m.Value), m.Mask) }

func parseMark(b []byte) (Mark, error) {
	if len(b) != 8 {
		return Mark{}, fmt.Errorf("mark of %d octets: %w", len(b), errBad)
	}
	return Mark{native.Uint32(b), native.Uint32(b[4:])}, nil
}

// Selector is traffic as the kernel selects it: prefixes, a protocol and ports (or an ICMP type in the source port's place).
type Selector struct {
	Src, Dst         netip.Prefix // both of Family, or both invalid: any
	Proto            uint8
	SrcPort, DstPort uint16
	Family           uint16
}

func (w *writer) selector(s Selector) {
	w.addr(s.Dst.Addr())
	w.addr(s.Src.Addr())
	mask := func(p uint16) uint16 {
		if p == 0 {
			return 0
		}
		return 0xffff
	}
	w.be16(s.DstPort)
	w.be16(mask(s.DstPort))
	w.be16(s.SrcPort)
	w.be16(mask(s.SrcPort))
	w.u16(s.Family)
	w.u8(uint8(max(s.Dst.Bits(), 0)), uint8(max(s.Src.Bits(), 0)), s.Proto, 0, 0, 0)
	w.zero(8) // the interface, the user
}

func (r *reader) selector() Selector {
	var s Selector
	dst, src := r.addr16(), r.addr16()
	s.DstPort = r.be16()
	r.skip(2)
	s.SrcPort = r.be16()
	r.skip(2)
	s.Family = r.u16()
	dstBits, srcBits := int(r.u8()), int(r.u8())
	s.Proto = r.u8()
	r.skip(3 + 8)
	prefix := func(b [16]byte, bits int) netip.Prefix {
		a := netip.AddrFrom16(b)
		if s.Family == familyIPv4 {
			a = netip.AddrFrom4([4]byte(b[:4]))
		}
		if bits > a.BitLen() {
			r.fail(fmt.Errorf("prefix of %d bits: %w", bits, errBad))
		}
		if bits == 0 && a.IsUnspecified() {
			return netip.Prefix{}
		}
		return netip.PrefixFrom(a, bits)
	}
	if s.Family != 0 {
		s.Dst, s.Src = prefix(dst, dstBits), prefix(src, srcBits)
	}
	return s
}

// Lifetime bounds an SA or a policy: octets, packets, and seconds since it was added.
type Lifetime struct {
	SoftBytes, HardBytes, SoftPackets, HardPackets uint64 // Forever: no limit
	SoftSeconds, HardSeconds                       uint64 // 0: no limit
}

// NoLimit is a Lifetime that does not end.
var NoLimit = Lifetime{SoftBytes: Forever, HardBytes: Forever, SoftPackets: Forever, HardPackets: Forever}

func (w *writer) lifetime(l Lifetime) {
	for _, v := range []uint64{l.SoftBytes, l.HardBytes, l.SoftPackets, l.HardPackets, l.SoftSeconds, l.HardSeconds, 0, 0} {
		w.u64(v)
	}
}

func (r *reader) lifetime() (l Lifetime) {
	for _, v := range []*uint64{&l.SoftBytes, &l.HardBytes, &l.SoftPackets, &l.HardPackets, &l.SoftSeconds, &l.HardSeconds} {
		*v = r.u64()
	}
	r.skip(16)
	return l
}

// Current is what an SA or a policy carried.
type Current struct{ Bytes, Packets, Added, Used uint64 } // times in seconds since 1970

func (r *reader) current() Current { return Current{r.u64(), r.u64(), r.u64(), r.u64()} }
