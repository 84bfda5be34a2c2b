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

// allowed is what a peer may ask for: Authorization.Selector, or all between our outer address and its own, or the one assigned to it.
func allowed(a Authorization, local, remote netip.Addr) ipsec.Selector {
	if a.Inner.IsValid() {
		remote = a.Inner
	}
	if a.Selector != (ipsec.Selector{}) {
		return a.Selector
	}
	return ipsec.Host(local.Unmap(), remote.Unmap())
}

// narrow finds, as a responder, what of the peer's traffic selectors we allow (RFC 7296, 2.9): the widest choice that is
// within want and that an ipsec.Selector can say. Where we allow the peer's first selectors, which are those of the packet that
// started it all, the choice includes them. Addresses are never wider than those of want (TRUST.md A-28). There is always one choice
// that we may make, so that we have no use for SINGLE_PAIR_REQUIRED.
func narrow(want ipsec.Selector, remote, local []wire.TrafficSelector) (ipsec.Selector, bool) {
	if len(remote) == 0 || len(local) == 0 {
		return ipsec.Selector{}, false
	}
	r0, l0 := remote[0], local[0]
	var best ipsec.Selector
	found, includes := false, false
	for _, r := range remote {
		for _, l := range local {
			s, ok := meet(want, r, l, r0, l0)
			if !ok {
				continue
			}
			first := includesFlow(s, want, r0, l0)
			if !found || first && !includes || first == includes && wider(s, best) {
				best, found, includes = s, true, first
			}
		}
	}
	return best, found
}

// meet intersects one pair of traffic selectors with want. Where the result must be less than the intersection, for an ipsec.Selector has
// prefixes and single ports, it is about what the first selectors r0 and l0 are about.
func meet(want ipsec.Selector, r, l, r0, l0 wire.TrafficSelector) (ipsec.Selector, bool) {
	s := want
	var okL, okR bool
	s.Local, okL = within(want.Local, l, l0)
	s.Remote, okR = within(want.Remote, r, r0)
	if !okL || !okR || !same(&s.Proto, r.Proto) || !same(&s.Proto, l.Proto) {
		return ipsec.Selector{}, false
	}
	icmp := s.Proto == 1 || s.Proto == 58 // types and codes, which an ipsec.Selector has not
	if !port(&s.RemotePort, r, r0, icmp) || !port(&s.LocalPort, l, l0, icmp) {
		return ipsec.Selector{}, false
	}
	if s.Proto == 0 && (s.LocalPort != 0 || s.RemotePort != 0) {
		return ipsec.Selector{}, false // ports of no protocol
	}
	return s, true
}

// clip returns the part of t's addresses that is in p.
func clip(t wire.TrafficSelector, p netip.Prefix) (first, last netip.Addr, ok bool) {
	first, last = p.Masked().Addr(), lastAddr(p)
	if t.Start.BitLen() != first.BitLen() {
		return first, last, false
	}
	if first.Less(t.Start) {
		first = t.Start
	}
	if t.End.Less(last) {
		last = t.End
	}
	return first, last, !last.Less(first)
}

// within is the widest prefix of p in t: if that is not all of p, the one around the first address of t0.
func within(p netip.Prefix, t, t0 wire.TrafficSelector) (netip.Prefix, bool) {
	first, last, ok := clip(t, p)
	if !ok {
		return netip.Prefix{}, false
	}
	around := first
	if t0.Start.BitLen() == first.BitLen() && !t0.Start.Less(first) && !last.Less(t0.Start) {
		around = t0.Start
	}
	for bits := p.Bits(); ; bits++ { // ends with one address, which is in
		q := netip.PrefixFrom(around, bits).Masked()
		if !q.Addr().Less(first) && !last.Less(lastAddr(q)) {
			return q, true
		}
	}
}

// same intersects two protocols, of which 0 is any.
func same(v *uint8, with uint8) bool {
	if *v == 0 {
		*v = with
	}
	return with == 0 || *v == with
}

// port intersects v, of which 0 is any, with the ports of t. Of a range it takes the port that t0 has.
func port(v *uint16, t, t0 wire.TrafficSelector, icmp bool) bool {
	only := *v
	if only == 0 && t0.StartPort == t0.EndPort {
		only = t0.StartPort
	}
	switch {
	case t.StartPort == 0 && t.EndPort == 65535:
		return true
	case icmp || t.Opaque():
		return false
	case *v == 0 && t.StartPort == t.EndPort && t.StartPort != 0:
		*v = t.StartPort
		return true
	}
	*v = only
	return only != 0 && t.StartPort <= only && only <= t.EndPort
}

// includesFlow reports whether s selects what want leaves of the flow from l to r.
func includesFlow(s, want ipsec.Selector, r, l wire.TrafficSelector) bool {
	holds := func(p, of netip.Prefix, t wire.TrafficSelector) bool {
		first, last, ok := clip(t, of)
		return ok && p.Contains(first) && p.Contains(last)
	}
	is := func(v uint16, t wire.TrafficSelector) bool { return v == 0 || v == t.StartPort && v == t.EndPort }
	return holds(s.Local, want.Local, l) && holds(s.Remote, want.Remote, r) && (s.Proto == 0 || s.Proto == l.Proto && s.Proto == r.Proto) &&
		is(s.LocalPort, l) && is(s.RemotePort, r)
}

// wider reports whether a selects more than b: by addresses, then by the rest.
func wider(a, b ipsec.Selector) bool {
	if x, y := a.Local.Bits()+a.Remote.Bits(), b.Local.Bits()+b.Remote.Bits(); x != y {
		return x < y
	}
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
	return meet(want, r, l, r, l)
}
