// Package ipsec holds the nouns of the IPsec architecture (RFC 4301) and the one interface through which tacit moves
// packets: [Dataplane]. It is pure: no sockets, no clock, no goroutine.
package ipsec

import (
	"fmt"
	"net/netip"
	"time"
)

// SPI is a Security Parameters Index (RFC 4301, 4.1; RFC 4303, 2.1). 0 to 255 are reserved and never used.
type SPI uint32

func (s SPI) String() string { return fmt.Sprintf("%08x", uint32(s)) }

// Mode is how ESP carries a packet (RFC 4301, 3.2).
type Mode uint8

const (
	// Transport protects the payload of the packet; the outer header is the packet's own.
	Transport Mode = iota
	// Tunnel protects the whole packet inside a new header.
	Tunnel
)

func (m Mode) String() string {
	if m == Tunnel {
		return "tunnel"
	}
	return "transport"
}

// Selector describes traffic (RFC 4301, 4.4.1.1), seen from this host. Proto, LocalPort and RemotePort 0 mean any.
// For Proto ICMP and ICMPv6 the ports are 0.
type Selector struct {
	Local, Remote         netip.Prefix
	Proto                 uint8
	LocalPort, RemotePort uint16
}

// Host returns the selector of all traffic between two addresses.
func Host(local, remote netip.Addr) Selector {
	return Selector{
		Local:  netip.PrefixFrom(local, local.BitLen()),
		Remote: netip.PrefixFrom(remote, remote.BitLen()),
	}
}

// Matches reports whether a packet of this flow falls under the selector.
func (s Selector) Matches(local, remote netip.Addr, proto uint8, localPort, remotePort uint16) bool {
	return s.Local.Contains(local) && s.Remote.Contains(remote) &&
		(s.Proto == 0 || s.Proto == proto) &&
		(s.LocalPort == 0 || s.LocalPort == localPort) &&
		(s.RemotePort == 0 || s.RemotePort == remotePort)
}

func (s Selector) String() string {
	return fmt.Sprintf("%v:%d<->%v:%d/%d", s.Local, s.LocalPort, s.Remote, s.RemotePort, s.Proto)
}

// Action is what becomes of clear traffic that a policy selects (RFC 4301, 4.4.1).
type Action uint8

const (
	// Bypass lets it pass in clear.
	Bypass Action = iota
	// Hold lets no clear packet pass either way; ours wait (bounded, at most 3 s) and raise Acquire.
	Hold
	// Block refuses ours at once and drops theirs.
	Block
	// Trap makes ours wait as Hold does and lets theirs pass in clear. It is an action of a Rule only.
	Trap
	// Watch lets both pass in clear, and raises Acquire. Of ours a copy is kept (bounded, 3 s), which Repeat may send again. It is an action of a Rule only.
	Watch
)

func (a Action) String() string { return [...]string{"bypass", "hold", "block", "trap", "watch"}[a] }

// Rule is what becomes of clear traffic between any of this host's own unicast addresses and those of a prefix for which
// nothing narrower stands: no armed Pair and no policy on exactly the two addresses. Of several rules the longest prefix counts.
type Rule struct {
	Remote netip.Prefix
	Action Action
	// ClearPorts stay in clear whatever stands on the address, Pairs included: packets to such a port of the peer and to such a port of ours,
	// and what answers them.
	ClearPorts []Port
	// ProtectDNS takes the exemption of ports 53 and 853 away; that of our own queries stays.
	ProtectDNS bool
}

// Port is a port of TCP or UDP, by the protocol's number.
type Port struct {
	Proto  uint8
	Number uint16
}

// Pair is a Child SA: one SA inbound, one outbound, for the traffic of one Selector. ID stays the same when the SAs are
// rekeyed. When Remote.Port() is 0 the ESP is IP protocol 50, otherwise it travels in UDP (RFC 3948) from Local to Remote
// (which then both carry ports).
type Pair struct {
	ID            uint32
	Local, Remote netip.AddrPort
	Mode          Mode
	Selector      Selector
	// Inner is the address that the peer has assigned to us since we are behind a NAT (RFC 7296, 2.19): inside of the ESP, which is in Tunnel mode, it
	// stands for Selector.Local, and the data plane translates. Not valid: nothing is translated.
	Inner   netip.Addr
	In, Out SA
	// Authenticated says that the peer proved a key. Outbound packets prefer an authenticated Pair, then the one armed last:
	// a Pair with nobody never displaces one with somebody (TRUST.md A-19).
	Authenticated bool
	// Until is when what a dead process left ends by itself, of what Existing returns; zero otherwise.
	Until time.Time
}

// Encapsulated reports whether the Pair's ESP travels in UDP.
func (p Pair) Encapsulated() bool { return p.Remote.Port() != 0 }

// WithoutKeys is the Pair as it may be kept: its keys stay where packets are sealed and opened.
func (p Pair) WithoutKeys() Pair {
	for _, sa := range []*SA{&p.In, &p.Out} {
		sa.Key, sa.Salt, sa.AuthKey = nil, nil, nil
	}
	return p
}
