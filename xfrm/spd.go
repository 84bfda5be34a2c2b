package xfrm

import (
	"fmt"
	"net/netip"

	"tacit/ipsec"
)

// Way is the direction of a policy.
type Way uint8

// The ways of packets.
const (
	In Way = iota
	Out
	Forward
)

func (w Way) String() string {
	if w > Forward {
		return "unknown"
	}
	return [...]string{"in", "out", "fwd"}[w]
}

// Policy is an entry of the kernel's SPD (RFC 4301, 4.4.1).
type Policy struct {
	Selector  Selector
	Way       Way
	Priority  uint32 // lower goes first
	Block     bool
	Mark      Mark
	Templates []Template // none: in clear
	Lifetime  Lifetime

	// What the kernel reports.
	Current Current
	Index   uint32
}

// Template asks for an SA. Zero fields are any.
type Template struct {
	Src, Dst netip.Addr
	Family   uint16
	SPI      ipsec.SPI
	ReqID    uint32
	Mode     ipsec.Mode
	Optional bool // packets without one pass too
}

func (w *writer) template(t Template) {
	w.addr(t.Dst)
	w.be32(uint32(t.SPI))
	w.u8(protoESP, 0, 0, 0)
	w.u16(t.Family)
	w.zero(2)
	w.addr(t.Src)
	w.u32(t.ReqID)
	optional := uint8(0)
	if t.Optional {
		optional = 1
	}
	w.u8(uint8(t.Mode), 0, optional, 0)
	for range 3 {
		w.u32(^uint32(0)) // any algorithm: the SA has it
	}
}

func (r *reader) template() (t Template) {
	dst := r.addr16()
	t.SPI = ipsec.SPI(r.be32())
	proto := r.u8()
	r.skip(3)
	t.Family = r.u16()
	r.skip(2)
	src := r.addr16()
	t.ReqID = r.u32()
	mode := r.u8()
	r.skip(1)
	t.Optional = r.u8() != 0
	r.skip(1 + 12)
	t.Src, t.Dst, t.Mode = addrOf(src, t.Family), addrOf(dst, t.Family), ipsec.Mode(mode)
	if r.err == nil && (proto != protoESP || mode > modeTunnel) {
		t.ReqID = 0 // another daemon's AH, IPComp or BEET: of no concern, and never ours
	}
	return t
}

// MarshalPolicy lays out the body of NEWPOLICY and UPDPOLICY.
func MarshalPolicy(p Policy) []byte {
	w := &writer{b: make([]byte, 0, 256)}
	w.selector(p.Selector)
	w.lifetime(p.Lifetime)
	w.zero(sizeCurrent)
	w.u32(p.Priority)
	w.u32(0) // the index: the kernel's
	block := uint8(0)
	if p.Block {
		block = 1
	}
	w.u8(uint8(p.Way), block, 0, 0)
	w.zero(4)
	if len(p.Templates) > 0 {
		t := &writer{}
		for _, tmpl := range p.Templates {
			t.template(tmpl)
		}
		w.attr(attrTemplate, t.b)
	}
	if p.Mark != (Mark{}) {
		w.attr(attrMark, p.Mark.bytes())
	}
	return w.b
}

// MarshalPolicyID lays out the body of GETPOLICY and DELPOLICY: the kernel finds a policy by selector, way and mark.
func MarshalPolicyID(s Selector, way Way, m Mark) []byte {
	w := &writer{}
	w.selector(s)
	w.u32(0)
	w.u8(uint8(way), 0, 0, 0)
	if m != (Mark{}) {
		w.attr(attrMark, m.bytes())
	}
	return w.b
}

// ParsePolicy reads the body of NEWPOLICY, as GETPOLICY answers.
func ParsePolicy(b []byte) (Policy, error) {
	r := &reader{b: b}
	p := r.policy()
	r.attrs(p.attr)
	if r.err != nil {
		return Policy{}, fmt.Errorf("xfrm: policy: %w", r.err)
	}
	return p, nil
}

// policy reads the fixed part.
func (r *reader) policy() (p Policy) {
	p.Selector = r.selector()
	p.Lifetime = r.lifetime()
	p.Current = r.current()
	p.Priority, p.Index = r.u32(), r.u32()
	way, action := r.u8(), r.u8()
	r.skip(2 + 4)
	if r.err == nil && (way > 5 || action > 1) {
		r.fail(fmt.Errorf("direction %d, action %d: %w", way, action, errUnknown))
	}
	p.Way, p.Block = Way(way), action == 1 // ways above Forward are those of single sockets
	return p
}

func (p *Policy) attr(kind uint16, b []byte) (err error) {
	switch kind {
	case attrTemplate:
		if len(b)%sizeTemplate != 0 {
			return fmt.Errorf("%d octets of templates: %w", len(b), errBad)
		}
		r := reader{b: b}
		for r.at < len(b) && r.err == nil {
			p.Templates = append(p.Templates, r.template())
		}
		err = r.err
	case attrMark:
		p.Mark, err = parseMark(b)
	}
	return err
}
