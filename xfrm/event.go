package xfrm

import (
	"fmt"
	"net/netip"

	"tacit/ipsec"
)

// Expire is the end, or with Hard unset the coming end, of an SA's life.
type Expire struct {
	State State
	Hard  bool
}

// ParseExpire reads the body of EXPIRE.
func ParseExpire(b []byte) (Expire, error) {
	r := &reader{b: b}
	s, err := r.state()
	if err != nil {
		return Expire{}, fmt.Errorf("xfrm: expire: %w", err)
	}
	e := Expire{State: s, Hard: r.u8() != 0}
	r.skip(sizeExpire - sizeSA - 1)
	r.attrs(e.State.attr)
	if r.err != nil {
		return Expire{}, fmt.Errorf("xfrm: expire: %w", r.err)
	}
	return e, nil
}

// PolicyExpire is the end of a policy's life.
type PolicyExpire struct {
	Policy Policy
	Hard   bool
}

// ParsePolicyExpire reads the body of POLEXPIRE.
func ParsePolicyExpire(b []byte) (PolicyExpire, error) {
	r := &reader{b: b}
	e := PolicyExpire{Policy: r.policy()}
	e.Hard = r.u8() != 0
	r.skip(sizePolExpire - sizePolicy - 1)
	r.attrs(e.Policy.attr)
	if r.err != nil {
		return PolicyExpire{}, fmt.Errorf("xfrm: policy expire: %w", r.err)
	}
	return e, nil
}

// Acquired is the kernel's own ACQUIRE: a packet met a policy whose SA is missing.
type Acquired struct {
	Src, Dst netip.Addr // of the SA that is wanted
	Selector Selector   // of the packet
	Policy   Policy
	Sequence uint32
}

// ParseAcquire reads the body of ACQUIRE.
func ParseAcquire(b []byte) (Acquired, error) {
	r := &reader{b: b}
	dst := r.addr16()
	r.skip(sizeID - 16)
	src := r.addr16()
	a := Acquired{Selector: r.selector(), Policy: r.policy()}
	r.skip(12)
	a.Sequence = r.u32()
	r.attrs(a.Policy.attr)
	if r.err != nil {
		return Acquired{}, fmt.Errorf("xfrm: acquire: %w", r.err)
	}
	a.Src, a.Dst = addrOf(src, a.Selector.Family), addrOf(dst, a.Selector.Family)
	return a, nil
}

// Mapping says that valid ESP in UDP of an inbound SA comes from another address than before (RFC 3948, 5).
type Mapping struct {
	SPI      ipsec.SPI
	Dst      netip.Addr
	ReqID    uint32
	Old, New netip.AddrPort
}

// ParseMapping reads the body of MAPPING.
func ParseMapping(b []byte) (Mapping, error) {
	r := &reader{b: b}
	dst := r.addr16()
	m := Mapping{SPI: ipsec.SPI(r.be32())}
	family := r.u16()
	r.skip(2)
	m.ReqID = r.u32()
	before, now := r.addr16(), r.addr16()
	beforePort, nowPort := r.be16(), r.be16()
	switch {
	case r.err != nil:
	case family != familyIPv4 && family != familyIPv6:
		r.fail(fmt.Errorf("family %d: %w", family, errUnknown))
	}
	if r.err != nil {
		return Mapping{}, fmt.Errorf("xfrm: mapping: %w", r.err)
	}
	m.Dst = addrOf(dst, family)
	m.Old = netip.AddrPortFrom(addrOf(before, family), beforePort)
	m.New = netip.AddrPortFrom(addrOf(now, family), nowPort)
	return m, nil
}
