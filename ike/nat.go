package ike

import (
	"bytes"
	"fmt"
	"net/netip"
	"time"

	"tacit/ike/wire"
)

// The ports of IKE (RFC 7296, 2.23).
const (
	portIKE  = 500
	portNATT = 4500
)

// nat is what NAT detection found (RFC 7296, 2.23).
type nat struct {
	supported bool // the peer sent both hashes
	local     bool // we are behind a NAT
	remote    bool // the peer is, or says so to have its ESP in UDP
	wish      bool // it does, and its address is what it says: no more than its port is another
}

// facts are what the caller learns of it.
func (n nat) facts() NAT { return NAT{Local: n.supported && n.local, Remote: n.supported && n.remote} }

// detect compares the peer's hashes with the addresses that its message has come from and to.
func detect(ps []wire.Payload, spiI, spiR uint64, local, remote netip.AddrPort) nat {
	var sources, dests int
	n := nat{local: true, remote: true}
	for _, p := range ps {
		m, ok := p.(*wire.Notify)
		if !ok {
			continue
		}
		switch m.Type {
		case wire.NATDetectionSourceIP: // several are allowed: the peer may not know its own address
			sources++
			switch {
			case bytes.Equal(m.Data, natHash(spiI, spiR, remote)):
				n.remote = false
			case bytes.Equal(m.Data, natHash(spiI, spiR, netip.AddrPortFrom(remote.Addr(), 0))):
				n.wish = true
			}
		case wire.NATDetectionDestinationIP:
			dests++
			if bytes.Equal(m.Data, natHash(spiI, spiR, local)) {
				n.local = false
			}
		}
	}
	if sources == 0 || dests == 0 {
		return nat{}
	}
	n.supported = true
	return n
}

// refused is a refusal of what we asked for as an initiator. The addresses that an end behind a NAT has are not those that the other sees: traffic
// selectors with them are none for it, it may have no other to assign (inner.go), and whose port is another than IKE's it does not let in. That its end
// is behind one is the peer's word alone, so that it explains no more than the selectors.
func (s *sa) refused(n wire.NotifyType) error {
	err := NotifyError{n}
	switch {
	case s.nat.facts().Local && (n == wire.TSUnacceptable || n == wire.AuthenticationFailed || n == wire.InternalAddressFailure || n == wire.FailedCPRequired):
		if !s.e.cfg.Inner {
			return fmt.Errorf("%w: we are %w, and our data plane does not translate", err, ErrNAT)
		}
		return fmt.Errorf("%w: we are %w", err, ErrNAT)
	case s.nat.facts().Remote && !s.nat.wish && n == wire.TSUnacceptable:
		return fmt.Errorf("%w: it is %w", err, ErrNAT)
	}
	return err
}

// natPayloads are our hashes. With Config.Encapsulate the source's is of port 0, which no datagram comes from: the peer then
// takes us to be behind a NAT and encapsulates as well.
func (e *Endpoint) natPayloads(spiI, spiR uint64, local, remote netip.AddrPort) []wire.Payload {
	source := local
	if e.cfg.Encapsulate {
		source = netip.AddrPortFrom(local.Addr(), 0)
	}
	return []wire.Payload{
		status(wire.NATDetectionSourceIP, natHash(spiI, spiR, source)),
		status(wire.NATDetectionDestinationIP, natHash(spiI, spiR, remote)),
	}
}

// float moves a port 500 to 4500 (RFC 7296, 2.23).
func float(a netip.AddrPort) netip.AddrPort {
	if a.Port() == portIKE {
		return netip.AddrPortFrom(a.Addr(), portNATT)
	}
	return a
}

// keepAliveEvery is "a default of 20 seconds" (RFC 3948, 4).
const keepAliveEvery = 20 * time.Second

// Spoke notes that ESP of the SA has left at that time: a NAT has seen it, and needs no keepalive so soon.
func (e *Endpoint) Spoke(id SAID, at time.Time) {
	if s := e.find(id); s != nil && s.encapsulates() {
		s.timer.spoke = max(s.timer.spoke, e.moment(at))
	}
}

// keepAliveDue is when a NAT that we are behind must see something of us, to keep our port: a keepalive is sent "if no other packet to
// the peer has been sent in M seconds" (RFC 3948, 4).
func (s *sa) keepAliveDue() moment {
	if !s.open() || s.quiet || !s.nat.local || s.local.Port() == portIKE {
		return 0
	}
	return s.timer.spoke.Add(keepAliveEvery)
}

// keepAlive sends "a one-octet-long payload with the value 0xFF" (RFC 3948, 2.3).
func (s *sa) keepAlive() {
	if due(s.keepAliveDue(), s.e.now) {
		s.e.transmit(s, []byte{0xff})
	}
}

// follow takes the source of a fresh authenticated message as the peer's: any port of its address, but another address only of a peer that is known by the one
// that we have assigned (RFC 7296, 2.23; TRUST.md A-30). What others may have, and how much of it, goes by where they are, and that a NAT is before them is
// their word alone.
func (s *sa) follow(d Datagram) {
	if d.Remote.Addr() == s.remote.Addr() || s.lodges() {
		s.moveTo(d.Remote)
	}
	if d.Local.Addr() == s.local.Addr() {
		s.local = d.Local
	}
}
