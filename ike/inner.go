package ike

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// An initiator behind a NAT has no address that its responder could send to, and may have the same as the next one behind the same NAT. So the responder
// assigns it one (RFC 7296, 2.19), which stands for it inside of a tunnel and nowhere else: the initiator's data plane puts it in the place of its own.
//
//	IDi, AUTH, CP(CFG_REQUEST), SA, TSi = any, TSr = the responder  ──►
//	                          ◄──  IDr, AUTH, CP(CFG_REPLY), SA, TSi = what is assigned, TSr = the responder
//
// The address stays for the life of the IKE SA and of its heirs. In this package a Child SA's selector has it, on both ends; to an initiator's data plane it
// is ipsec.Pair.Inner, and the selector has the host's own address (sa.pairOf).

// inner is what stands for an address inside of a tunnel.
type inner struct {
	theirs netip.Addr // for the initiator's: we have assigned it
	ours   netip.Addr // for ours: the responder has assigned it, or it is a NAT's that leads to us (outside.go)
}

// inside is the IKE SA's inner, to be changed.
func (s *sa) inside() *inner {
	if s.inner == nil {
		s.inner = &inner{}
	}
	return s.inner
}

// single is the prefix of one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// translates reports whether another address is to stand for ours: a NAT is before us. Who goes by a gateway has none.
func (s *sa) translates() bool {
	return s.e.cfg.Inner && s.nat.supported && s.nat.local && s.hs.auth.Selector == (ipsec.Selector{})
}

// askInner is the request, for which the offer of the Child SA leaves our address open.
func (s *sa) askInner(n *negotiation) *wire.Config {
	own := s.local.Addr().Unmap()
	n.inner, n.mode, n.selector.Local = true, ipsec.Tunnel, netip.PrefixFrom(own, 0).Masked()
	return &wire.Config{Type: wire.ConfigRequest, Addresses: []wire.InternalAddress{{V6: own.Is6()}}}
}

// takeInner reads the address that the responder has assigned. What could be taken for somebody else's traffic is none.
func (s *sa) takeInner(ps []wire.Payload) error {
	own := s.local.Addr().Unmap()
	var found []netip.Addr
	if cp := get[*wire.Config](ps); cp != nil && cp.Type == wire.ConfigReply {
		for _, a := range cp.Addresses {
			if a.V6 == own.Is6() && a.Addr.IsValid() {
				found = append(found, a.Addr)
			}
		}
	}
	if len(found) != 1 {
		return fmt.Errorf("%w: we are %w, and it has assigned %d addresses to us, not one", ErrProtocol, ErrNAT, len(found))
	}
	a := found[0]
	if !a.IsGlobalUnicast() || a.Is4In6() || a == own || a == s.remote.Addr().Unmap() { // global but for its scope: private ones are
		return fmt.Errorf("%w: we are %w, and it has assigned %v to us", ErrProtocol, ErrNAT, a)
	}
	s.inside().ours = a
	return nil
}

// wantsInner reports whether an initiator is behind a NAT and asks for an address of the family that we speak with it.
func (s *sa) wantsInner() bool {
	a := &s.hs.auths
	ps := a.request
	if a.offer != nil {
		ps = a.offer
	}
	cp := get[*wire.Config](ps)
	return cp != nil && cp.Type == wire.ConfigRequest && s.nat.supported && s.nat.remote && !a.childless &&
		slices.ContainsFunc(cp.Addresses, func(x wire.InternalAddress) bool { return x.V6 == s.local.Addr().Unmap().Is6() })
}

// lodges reports whether the peer is at an address that we have assigned.
func (s *sa) lodges() bool { return s.inner != nil && s.inner.theirs.IsValid() }

// replyInner tells the initiator its address.
func (s *sa) replyInner() []wire.Payload {
	if !s.lodges() {
		return nil
	}
	return []wire.Payload{&wire.Config{Type: wire.ConfigReply, Addresses: []wire.InternalAddress{{V6: s.inner.theirs.Is6(), Addr: s.inner.theirs}}}}
}

// Follow tells that valid ESP of the SA comes from another address: the NAT before the peer has forgotten the last one. Who is not at an address that we have
// assigned is not followed by his ESP (TRUST.md A-30). Redirected follows for each of the SA's Pairs, also if we knew: then the data plane does not.
func (e *Endpoint) Follow(now time.Time, id SAID, remote netip.AddrPort) Output {
	return e.with(now, id, func(s *sa) {
		if s.lodges() && remote.Addr().Is4() == s.remote.Addr().Unmap().Is4() {
			s.remote = remote
			s.redirect()
		}
	})
}

// moveTo notes where the peer is, and has its Pairs follow if a NAT is before it.
func (s *sa) moveTo(remote netip.AddrPort) {
	if s.remote != remote {
		s.remote = remote
		s.redirect()
	}
}

// redirect has the Pairs of a peer behind a NAT follow it.
func (s *sa) redirect() {
	if !s.lodges() || !s.open() {
		return
	}
	for _, p := range s.child.all {
		if x := p.newest(); x != nil {
			s.emit(Redirected{s.id, s.pairOf(p, x)})
		}
	}
}
