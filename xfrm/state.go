package xfrm

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	"tacit/ipsec"
)

// State is an SA as the kernel has it. Directions are the packet's: Src to Dst.
type State struct {
	Src, Dst  netip.Addr
	SPI       ipsec.SPI
	Mode      ipsec.Mode
	Selector  Selector
	ReqID     uint32
	Alg       Algorithm
	Encap     Encap
	Mark      Mark // which packets it takes; none: all
	Output    Mark // what its packets are marked with afterwards
	Replay    Replay
	Lifetime  Lifetime
	Direction Direction // sent only if set: kernels since 6.10
	Offload   Offload   // sent only if set

	// What the kernel reports.
	Current                           Current
	ReplayDrops, WindowDrops, Invalid uint32 // seen before, too old, wrong ICV
	LastUsed                          uint64 // seconds since 1970
}

// Direction tells an inbound SA from an outbound one (XFRMA_SA_DIR). Encoded and tested as octets only: no kernel at hand knows it.
type Direction uint8

// The directions.
const (
	AnyDirection Direction = iota
	Inbound
	Outbound
)

// Offload gives the SA to a network device (XFRMA_OFFLOAD_DEV). Encoded and tested as octets only: no such device is at hand.
type Offload struct {
	Device  uint32 // its index; 0: none
	Inbound bool
	Packet  bool // not only cryptography, all of ESP
}

// Algorithm is a combined-mode cipher, or a cipher and a MAC, by the kernel's names. Lengths are those of the keys.
type Algorithm struct {
	AEAD         string
	Cipher, Auth string
	Key          ipsec.Secret // with the salt
	AuthKey      ipsec.Secret
	ICV          int // in octets
}

// Redacted reports whether the keys are missing: a kernel under lockdown shows zeros.
func (a Algorithm) Redacted() bool {
	for _, b := range append(bytes.Clone(a.Key), a.AuthKey...) {
		if b != 0 {
			return false
		}
	}
	return true
}

// Encap is ESP in UDP (RFC 3948). The zero value is none.
type Encap struct{ SrcPort, DstPort uint16 }

// Replay is the anti-replay state (RFC 4303, 3.4.3) with a window of any size.
type Replay struct {
	Window  uint32 // packets
	ESN     bool
	Out, In uint64   // the sequence numbers used last; without ESN below 2^32
	Bitmap  []uint32 // nil: empty
}

// Names of the kernel's algorithms. A combined-mode cipher's key has the salt behind it (RFC 4106, 8.1; RFC 7634, 2).
var (
	aeadNames   = map[ipsec.Cipher]string{ipsec.AESGCM16: "rfc4106(gcm(aes))", ipsec.ChaCha20Poly1305: "rfc7539esp(chacha20,poly1305)"}
	cipherNames = map[ipsec.Cipher]string{ipsec.AESCBC: "cbc(aes)"}
	authNames   = map[ipsec.Integrity]string{ipsec.HMACSHA256: "hmac(sha256)", ipsec.HMACSHA384: "hmac(sha384)", ipsec.HMACSHA512: "hmac(sha512)"}
)

// aeadICV is the length of the ICV of every combined-mode cipher, in octets.
const aeadICV = 16

// algorithm is the kernel's name for what IKE negotiated.
func algorithm(sa ipsec.SA) (Algorithm, error) {
	if err := sa.Check(); err != nil {
		return Algorithm{}, err
	}
	if name, ok := aeadNames[sa.Cipher]; ok {
		return Algorithm{AEAD: name, Key: slices.Concat(sa.Key, sa.Salt), ICV: aeadICV}, nil
	}
	a := Algorithm{Cipher: cipherNames[sa.Cipher], Key: sa.Key, Auth: authNames[sa.Integrity], AuthKey: sa.AuthKey, ICV: sa.Integrity.ICVLen()}
	if a.Cipher == "" || a.Auth == "" {
		return Algorithm{}, fmt.Errorf("%v with %v: %w", sa.Cipher, sa.Integrity, errUnknown)
	}
	return a, nil
}

func algName(name string) []byte {
	b := make([]byte, sizeAlgName)
	copy(b[:sizeAlgName-1], name)
	return b
}

func (w *writer) algorithm(a Algorithm) {
	if a.AEAD != "" {
		v := writer{algName(a.AEAD)}
		v.u32(uint32(8 * len(a.Key)))
		v.u32(uint32(8 * a.ICV))
		v.u8(a.Key...)
		w.attr(attrAlgAEAD, v.b)
		return
	}
	if a.Auth != "" {
		v := writer{algName(a.Auth)}
		v.u32(uint32(8 * len(a.AuthKey)))
		v.u32(uint32(8 * a.ICV))
		v.u8(a.AuthKey...)
		w.attr(attrAlgAuthTrunc, v.b)
	}
	if a.Cipher != "" {
		v := writer{algName(a.Cipher)}
		v.u32(uint32(8 * len(a.Key)))
		v.u8(a.Key...)
		w.attr(attrAlgCrypt, v.b)
	}
}

// parseAlg reads a name, a key length, perhaps the length of the ICV (both in bits), and the key.
func parseAlg(b []byte, icv bool) (name string, key ipsec.Secret, icvLen int, err error) {
	r := reader{b: b}
	raw := r.take(sizeAlgName)
	end := bytes.IndexByte(raw, 0)
	if end < 0 {
		return "", nil, 0, fmt.Errorf("name without an end: %w", errBad)
	}
	bits := r.u32()
	if icv {
		icvLen = int(r.u32()) / 8
	}
	if uint64(bits) > 8*uint64(len(b)) || icvLen > 64 {
		return "", nil, 0, fmt.Errorf("key of %d bits: %w", bits, errBad)
	}
	key = append(key, r.take(int(bits+7)/8)...)
	return string(raw[:end]), key, icvLen, r.err
}

// MarshalState lays out the body of NEWSA and UPDSA.
func MarshalState(s State) []byte {
	w := &writer{b: make([]byte, 0, 512)}
	w.selector(s.Selector)
	w.addr(s.Dst)
	w.be32(uint32(s.SPI))
	w.u8(protoESP, 0, 0, 0)
	w.addr(s.Src)
	w.lifetime(s.Lifetime)
	w.zero(sizeCurrent + 12 + 4) // counters, statistics, sequence number of an ACQUIRE
	w.u32(s.ReqID)
	w.u16(familyOf(s.Dst))
	flags := uint8(0)
	if s.Replay.ESN {
		flags = flagESN
	}
	w.u8(uint8(s.Mode), 0, flags, 0, 0, 0, 0, 0, 0, 0) // the window is in its attribute
	w.algorithm(s.Alg)
	w.attr(attrReplayESN, s.Replay.bytes())
	if s.Encap != (Encap{}) {
		e := &writer{}
		e.u16(espInUDP)
		e.be16(s.Encap.SrcPort)
		e.be16(s.Encap.DstPort)
		e.zero(2 + 16)
		w.attr(attrEncap, e.b)
	}
	if s.Mark != (Mark{}) {
		w.attr(attrMark, s.Mark.bytes())
	}
	if s.Output != (Mark{}) {
		w.attr32(attrSetMark, s.Output.Value)
		w.attr32(attrSetMarkMask, s.Output.Mask)
	}
	if s.Direction != AnyDirection {
		w.attr(attrDirection, []byte{uint8(s.Direction)})
	}
	if s.Offload.Device != 0 {
		w.attr(attrOffload, s.Offload.bytes())
	}
	return w.b
}

func (o Offload) bytes() []byte {
	w := &writer{}
	w.u32(o.Device)
	flags := uint8(0)
	if o.Inbound {
		flags |= 2
	}
	if o.Packet {
		flags |= 4
	}
	w.u8(flags, 0, 0, 0)
	return w.b
}

func (p Replay) bytes() []byte {
	w := &writer{}
	words := int(p.Window+31) / 32
	w.u32(uint32(words))
	w.u32(uint32(p.Out))
	w.u32(uint32(p.In))
	w.u32(uint32(p.Out >> 32))
	w.u32(uint32(p.In >> 32))
	w.u32(p.Window)
	for i := range words {
		if p.Bitmap == nil {
			break // the kernel makes an empty one
		}
		if i < len(p.Bitmap) {
			w.u32(p.Bitmap[i])
		} else {
			w.u32(0)
		}
	}
	return w.b
}

func parseReplay(b []byte) (p Replay, err error) {
	r := reader{b: b}
	words := r.u32()
	outLow, inLow, outHigh, inHigh := r.u32(), r.u32(), r.u32(), r.u32()
	p.Out, p.In = uint64(outHigh)<<32|uint64(outLow), uint64(inHigh)<<32|uint64(inLow)
	p.Window = r.u32()
	if r.err == nil && len(b) == sizeReplayHead {
		return p, nil
	}
	if r.err != nil || uint64(len(b)) != sizeReplayHead+4*uint64(words) {
		return p, fmt.Errorf("replay state of %d octets for %d words: %w", len(b), words, errBad)
	}
	for range words {
		p.Bitmap = append(p.Bitmap, r.u32())
	}
	return p, r.err
}

// MarshalStateID lays out the body of GETSA and DELSA.
func MarshalStateID(dst netip.Addr, spi ipsec.SPI) []byte {
	w := &writer{}
	w.addr(dst)
	w.be32(uint32(spi))
	w.u16(familyOf(dst))
	w.u8(protoESP, 0)
	return w.b
}

// ParseState reads the body of NEWSA, as GETSA answers. SAs of other protocols than ESP are errUnknown.
func ParseState(b []byte) (State, error) {
	r := &reader{b: b}
	s, err := r.state()
	if err != nil {
		return State{}, fmt.Errorf("xfrm: state: %w", err)
	}
	r.attrs(s.attr)
	if r.err != nil {
		return State{}, fmt.Errorf("xfrm: state %v: %w", s.SPI, r.err)
	}
	return s, nil
}

// state reads the fixed part.
func (r *reader) state() (State, error) {
	var s State
	s.Selector = r.selector()
	dst := r.addr16()
	s.SPI = ipsec.SPI(r.be32())
	proto := r.u8()
	r.skip(3)
	src := r.addr16()
	s.Lifetime = r.lifetime()
	s.Current = r.current()
	s.WindowDrops, s.ReplayDrops, s.Invalid = r.u32(), r.u32(), r.u32()
	r.skip(4)
	s.ReqID = r.u32()
	family, mode := r.u16(), r.u8()
	window, flags := r.u8(), r.u8()
	r.skip(7)
	switch {
	case r.err != nil:
		return s, r.err
	case proto != protoESP || mode > modeTunnel:
		return s, fmt.Errorf("protocol %d, mode %d: %w", proto, mode, errUnknown)
	case family != familyIPv4 && family != familyIPv6:
		return s, fmt.Errorf("family %d: %w", family, errUnknown)
	}
	s.Src, s.Dst, s.Mode = addrOf(src, family), addrOf(dst, family), ipsec.Mode(mode)
	s.Replay = Replay{Window: uint32(window), ESN: flags&flagESN != 0}
	return s, nil
}

func (s *State) attr(kind uint16, b []byte) (err error) {
	switch kind {
	case attrAlgAEAD:
		s.Alg.AEAD, s.Alg.Key, s.Alg.ICV, err = parseAlg(b, true)
	case attrAlgAuthTrunc:
		s.Alg.Auth, s.Alg.AuthKey, s.Alg.ICV, err = parseAlg(b, true)
	case attrAlgCrypt:
		s.Alg.Cipher, s.Alg.Key, _, err = parseAlg(b, false)
	case attrReplayESN:
		esn := s.Replay.ESN
		s.Replay, err = parseReplay(b)
		s.Replay.ESN = esn
	case attrEncap:
		r := reader{b: b}
		if t := r.u16(); t != espInUDP {
			return fmt.Errorf("encapsulation %d: %w", t, errUnknown)
		}
		s.Encap = Encap{r.be16(), r.be16()}
		r.skip(18)
		err = r.err
	case attrMark:
		s.Mark, err = parseMark(b)
	case attrSetMark, attrSetMarkMask:
		if len(b) != 4 {
			return fmt.Errorf("%d octets: %w", len(b), errBad)
		}
		if kind == attrSetMark {
			s.Output.Value = native.Uint32(b)
		} else {
			s.Output.Mask = native.Uint32(b)
		}
	case attrLastUsed:
		if len(b) != 8 {
			return fmt.Errorf("%d octets: %w", len(b), errBad)
		}
		s.LastUsed = native.Uint64(b)
	case attrDirection:
		if len(b) != 1 || b[0] == 0 || b[0] > uint8(Outbound) {
			return fmt.Errorf("direction %x: %w", b, errBad)
		}
		s.Direction = Direction(b[0])
	case attrOffload:
		if len(b) < 5 {
			return fmt.Errorf("%d octets: %w", len(b), errBad)
		}
		s.Offload = Offload{Device: native.Uint32(b), Inbound: b[4]&2 != 0, Packet: b[4]&4 != 0}
	}
	return err
}
