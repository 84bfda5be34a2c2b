package ike

import (
	"bytes"
	"net/netip"

	"tacit/ike/wire"
)

// A NAT may lead the ports 500 and 4500 of one of its addresses to us. That address is ours then to whoever is before it: it stands for our own in traffic selectors, and in the
// packets inside of a tunnel, which our data plane translates as it does with one that is assigned (inner.go). RFC 7296, 2.23.1 has both ends of transport mode do so with what
// they see; a tunnel says it in so many words, and what is inside of it has no checksum that a NAT has made wrong.
//
// Only the administrator knows that the NAT leads to us (Config.Outside). The one before a client does as well, for as long as it remembers the client, and others speak from its address.

// seenOutside finds out whether the peer sees us at such an address: then its hash of where it sends to is of that, with our own port. It follows detect.
func (s *sa) seenOutside(ps []wire.Payload, spiR uint64, local netip.AddrPort) {
	if !s.translates() {
		return
	}
	for _, a := range s.e.cfg.Outside {
		hash := natHash(s.spiI, spiR, netip.AddrPortFrom(a, local.Port()))
		for _, p := range ps {
			if n, ok := p.(*wire.Notify); ok && n.Type == wire.NATDetectionDestinationIP && bytes.Equal(n.Data, hash) {
				s.inside().ours = a
				return
			}
		}
	}
}

// own is the address that is ours to the peer.
func (s *sa) own() netip.Addr {
	if s.inner != nil && s.inner.ours.IsValid() {
		return s.inner.ours
	}
	return s.local.Addr()
}

// outside reports whether that is not the one that we have.
func (s *sa) outside() bool { return s.own() != s.local.Addr() }
