package ike

import (
	"net/netip"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// tsOf is the traffic selector of one side of a selector: prefix, protocol and port.
func tsOf(p netip.Prefix, proto uint8, port uint16) wire.TrafficSelector {
	t := wire.TrafficSelector{Proto: proto, EndPort: 65535, Start: p.Masked().Addr(), End: lastAddr(p)}
	if port != 0 {
		t.StartPort, t.EndPort = port, port
	}
	return t
}

// lastAddr is the highest address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// tsPayloads are TSi and TSr for a selector of ours. initiator is that of the exchange.
func tsPayloads(s ipsec.Selector, initiator bool) []wire.Payload {
	local, remote := tsOf(s.Local, s.Proto, s.LocalPort), tsOf(s.Remote, s.Proto, s.RemotePort)
	if !initiator {
		local, remote = remote, local
	}
	return []wire.Payload{
		&wire.TS{Selectors: []wire.TrafficSelector{local}},
		&wire.TS{Responder: true, Selectors: []wire.TrafficSelector{remote}},
	}
}

// allowed is what a peer may ask for: Authorization.Selector, or all between the two outer addresses.
func allowed(a Authorization, local, remote netip.Addr) ipsec.Selector {
	if a.Selector != (ipsec.Selector{}) {
		return a.Selector
	}
	return ipsec.Host(local.Unmap(), remote.Unmap())
}

// covers reports whether t holds all addresses of p.
func covers(t wire.TrafficSelector, p netip.Prefix) bool {
	first, last := p.Masked().Addr(), lastAddr(p)
	return t.Start.BitLen() == first.BitLen() && !first.Less(t.Start) && !t.End.Less(last)
}

// ports returns the one port of t, 0 for any. ok is false for what an ipsec.Selector cannot say.
func ports(t wire.TrafficSelector) (port uint16, ok bool) {
	switch {
	case t.StartPort == 0 && t.EndPort == 65535:
		return 0, true
	case t.StartPort == t.EndPort && t.StartPort != 0:
		return t.StartPort, true
	}
	return 0, false
}

// narrow finds, as a responder, what of the peer's traffic selectors we allow (RFC 7296, 2.9): the widest choice that is
// within want and that an ipsec.Selector can say. The first selector may be that of the packet that started it all;
// it is no more than one of the choices. Addresses are narrowed to those of want and never wider (TRUST.md A-28).
func narrow(want ipsec.Selector, remote, local []wire.TrafficSelector) (ipsec.Selector, bool) {
	var best ipsec.Selector
	found := false
	for _, r := range remote {
		for _, l := range local {
			s, ok := meet(want, r, l)
			if ok && (!found || wider(s, best)) {
				best, found = s, true
			}
		}
	}
	return best, found
}

// meet intersects one pair of traffic selectors with want.
func meet(want ipsec.Selector, r, l wire.TrafficSelector) (ipsec.Selector, bool) {
	rp, okR := ports(r)
	lp, okL := ports(l)
	if !okR || !okL || !covers(r, want.Remote) || !covers(l, want.Local) {
		return ipsec.Selector{}, false
	}
	s := want
	if !same8(&s.Proto, r.Proto) || !same8(&s.Proto, l.Proto) || !same16(&s.RemotePort, rp) || !same16(&s.LocalPort, lp) {
		return ipsec.Selector{}, false
	}
	if s.Proto == 0 && (s.LocalPort != 0 || s.RemotePort != 0) {
		return ipsec.Selector{}, false // ports of no protocol
	}
	return s, true
}

// same8 and same16 intersect two values of which 0 is any.
func same8(v *uint8, with uint8) bool {
	if *v == 0 {
		*v = with
	}
	return with == 0 || *v == with
}

func same16(v *uint16, with uint16) bool {
	if *v == 0 {
		*v = with
	}
	return with == 0 || *v == with
}

// wider reports whether a selects more than b; both have the same addresses.
func wider(a, b ipsec.Selector) bool {
	count := func(s ipsec.Selector) (n int) {
		for _, any := range []bool{s.Proto == 0, s.LocalPort == 0, s.RemotePort == 0} {
			if any {
				n++
			}
		}
		return n
	}
	return count(a) > count(b)
}

// accept reads, as an initiator, what the responder made of our proposal: it may be narrower in protocol and ports, and must
// have our addresses.
func accept(want ipsec.Selector, tsi, tsr *wire.TS) (ipsec.Selector, bool) {
	if len(tsi.Selectors) != 1 || len(tsr.Selectors) != 1 || tsi.Skipped+tsr.Skipped != 0 {
		return ipsec.Selector{}, false
	}
	l, r := tsi.Selectors[0], tsr.Selectors[0]
	exact := func(t wire.TrafficSelector, p netip.Prefix) bool {
		return t.Start == p.Masked().Addr() && t.End == lastAddr(p)
	}
	if !exact(l, want.Local) || !exact(r, want.Remote) {
		return ipsec.Selector{}, false
	}
	return meet(want, r, l)
}
