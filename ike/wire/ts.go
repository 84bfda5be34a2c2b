package wire

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/crypto/cryptobyte"
)

// TS is a Traffic Selector payload (RFC 7296, 3.13), the initiator's or the responder's.
type TS struct {
	Responder bool
	Selectors []TrafficSelector // of the types we know, in their order
	Skipped   int               // selectors of other types: they never match
}

// TrafficSelector is a range of addresses and ports (RFC 7296, 3.13.1). Proto 0 is any. Ports 0 to 65535 are any; 65535 to 0
// is OPAQUE: the protocol has ports that cannot be seen. For ICMP, ICMPv6 and Mobile IPv6 a port holds the type in its
// upper octet and the code in its lower.
type TrafficSelector struct {
	Proto              uint8
	StartPort, EndPort uint16
	Start, End         netip.Addr
}

// The traffic selector types (RFC 7296, 3.13.1) and the length of each.
const (
	tsIPv4     = 7
	tsIPv6     = 8
	tsIPv4Body = 4 + 2*4
	tsIPv6Body = 4 + 2*16
)

// Host returns the selector of all traffic of one address.
func Host(a netip.Addr) TrafficSelector {
	return TrafficSelector{EndPort: 65535, Start: a, End: a}
}

// Opaque reports whether the ports are OPAQUE.
func (t TrafficSelector) Opaque() bool { return t.StartPort == 65535 && t.EndPort == 0 }

func (t TrafficSelector) String() string {
	return fmt.Sprintf("%v-%v:%d-%d/%d", t.Start, t.End, t.StartPort, t.EndPort, t.Proto)
}

// PayloadType is PayloadTSi or PayloadTSr.
func (p *TS) PayloadType() PayloadType {
	if p.Responder {
		return PayloadTSr
	}
	return PayloadTSi
}

// check makes sure that the selector is one: a range of one family, not upside down.
func (t TrafficSelector) check() error {
	switch {
	case !t.Start.IsValid() || !t.End.IsValid() || t.Start.Zone() != "" || t.End.Zone() != "":
		return errors.New("not an address")
	case t.Start.Is4() != t.End.Is4():
		return errors.New("two families")
	case t.End.Less(t.Start):
		return fmt.Errorf("starts at %v, ends at %v", t.Start, t.End)
	case t.StartPort > t.EndPort && !t.Opaque():
		return fmt.Errorf("ports start at %d, end at %d", t.StartPort, t.EndPort)
	}
	return nil
}

func (p *TS) marshal(b *cryptobyte.Builder) {
	if n := len(p.Selectors); n == 0 || n > 255 {
		b.SetError(fmt.Errorf("wire: %d traffic selectors, want 1 to 255", n))
		return
	}
	b.AddUint8(uint8(len(p.Selectors)))
	b.AddUint24(0)
	for _, t := range p.Selectors {
		if err := t.check(); err != nil {
			b.SetError(fmt.Errorf("wire: traffic selector %v: %w", t, err))
			return
		}
		kind := uint8(tsIPv6)
		if t.Start.Is4() {
			kind = tsIPv4
		}
		addCounted(b, kind, t.Proto, func(b *cryptobyte.Builder) {
			b.AddUint16(t.StartPort)
			b.AddUint16(t.EndPort)
			b.AddBytes(t.Start.AsSlice())
			b.AddBytes(t.End.AsSlice())
		})
	}
}

func parseTS(r *reader, responder bool) *TS {
	p := &TS{Responder: responder}
	at := r.offset()
	count := r.u8("number of traffic selectors")
	r.skip("reserved", 3)
	if *r.err == nil && count == 0 {
		r.failAt(at, "number of traffic selectors", errZero)
	}
	for ; count > 0 && *r.err == nil; count-- {
		start := r.offset()
		kind, proto, body := r.counted("traffic selector")
		if *r.err != nil {
			break
		}
		if kind != tsIPv4 && kind != tsIPv6 {
			p.Skipped++
			continue
		}
		t := parseSelector(&body, kind, proto)
		if err := t.check(); err != nil && *r.err == nil {
			r.failAt(start, "traffic selector", err)
		}
		p.Selectors = append(p.Selectors, t)
	}
	return p
}

// parseSelector reads the body of a selector of a known type, whose length follows from the type.
func parseSelector(r *reader, kind, proto uint8) TrafficSelector {
	want, size := tsIPv4Body, 4
	if kind == tsIPv6 {
		want, size = tsIPv6Body, 16
	}
	if len(r.s) != want {
		r.failf("traffic selector length", "%d for type %d, want %d", len(r.s)+genericLen, kind, want+genericLen)
	}
	t := TrafficSelector{Proto: proto, StartPort: r.u16("start port"), EndPort: r.u16("end port")}
	t.Start, _ = netip.AddrFromSlice(r.bytes("starting address", size))
	t.End, _ = netip.AddrFromSlice(r.bytes("ending address", size))
	return t
}
