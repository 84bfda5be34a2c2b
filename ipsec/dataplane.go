package ipsec

import (
	"net/netip"
	"time"
)

// Dataplane moves packets: it holds the SAs (RFC 4301, 4.4.2) and the policies on addresses (4.4.1). Its behaviour is
// stated by ipsectest.TestDataplane, which every implementation passes. Errors come back with the operation, and nothing
// is left half-installed. Methods may be called from any goroutine and return when the packet path has acknowledged.
type Dataplane interface {
	// Conn opens IKE's view of a UDP port, 500 or 4500. The data plane takes the ESP that arrives there; Read and Write see
	// IKE messages without the non-ESP marker (RFC 3948, 2.2).
	Conn(local netip.AddrPort) (Conn, error)

	// Prepare does beforehand what the first Pair needs and a later one finds done: IKE has begun, and a Pair is likely to come. Where it fails, InstallInbound
	// or InstallOutbound tries again.
	Prepare() error
	// InstallInbound accepts p.In. Its first valid packet arms the Pair in the packet path: p.Out is used, clear packets from
	// the peer are dropped, FirstPacket is raised. Until then the peer is answered as it asked (TRUST.md R10). For an ID that
	// is up already this is a rekey: both inbound SAs are accepted, and the first valid packet on the new one
	// switches to the new outbound SA (RFC 7296, 2.8).
	InstallInbound(p Pair) error
	// InstallOutbound arms the Pair now. Held packets leave through it. For SAs that are installed already it makes the Pair the
	// one armed last, which outbound packets prefer to others of the same traffic; keys are not needed then.
	InstallOutbound(p Pair) error
	// Retire ends an older inbound SA of the Pair.
	Retire(id uint32, in SPI) error
	// Disarm stops sending with the Pair, for good: outbound packets go by another armed Pair, or as policies and rules say. What comes
	// in on it is still accepted. It is no error if there is none.
	Disarm(id uint32) error
	// Repeat sends again, protected, in its order and once, what left in clear between the Pair's two hosts under a Rule with Watch in the last 3 s: the
	// peer has refused it. What is not repeated is forgotten. Nothing is sent, and it is no error, if there is no such Pair, or none between the two is armed.
	Repeat(id uint32) error
	// Remove ends the Pair. Policies on its addresses stay as SetPolicy left them.
	Remove(id uint32) error
	// Redirect moves the outer addresses of the Pair, after Moved.
	Redirect(id uint32, local, remote netip.AddrPort) error
	// Existing returns the Pairs left by Close(true) or a crash, without their keys.
	Existing() ([]Pair, error)

	// SetPolicy sets what becomes of clear traffic of s until the given time, when the policy ends by itself. It goes before rules, also with
	// Bypass: what waited because of a rule then leaves in clear at once, in its order, and later packets are not asked about.
	SetPolicy(s Selector, a Action, until time.Time) error
	// ClearPolicy ends the policy on s. It is no error if there is none.
	ClearPolicy(s Selector) error
	// SetRules replaces all rules in one step. They stand while the data plane lives, and end by themselves after it died. Loopback, own
	// addresses, multicast, broadcast, link-local addresses, the default gateway, and what IKE, DHCP and IPv6's neighbour discovery
	// need, is subject to none. Packets that wait are judged anew: where nothing holds them any more they leave in clear.
	SetRules(rules []Rule) error

	// Usage returns the counters of a Pair.
	Usage(id uint32) (Usage, error)
	// Used returns the Pairs that packets came or left by, or that were armed, since it was called before, and maybe others: all of them, where nobody
	// but the counters can tell.
	Used() []uint32
	// Events is closed by Close. The reader must keep up: events that find it full are dropped and counted, Acquire is raised again.
	Events() <-chan Event
	// Close ends everything that is ours; with keep it leaves SAs and policies for a restart, where the data plane can.
	Close(keep bool) error
}

// Conn carries IKE messages, and outwards the keepalives of RFC 3948, of one octet. Read returns the local address that the datagram was sent to as well.
type Conn interface {
	Read(b []byte) (n int, local, remote netip.AddrPort, err error)
	Write(b []byte, local, remote netip.AddrPort) error
	Close() error
}

// Usage counts what a Pair carried.
type Usage struct {
	InPackets, OutPackets uint64
	InBytes, OutBytes     uint64 // of the protected packets, without ESP's own
	LastIn, LastOut       time.Time
	Replayed, Invalid     uint64 // inbound packets that the window or the ICV refused
	Armed                 bool
	ClearDropped          uint64 // clear packets from the peer that were dropped
}

// EventKind tells the events of a Dataplane apart.
type EventKind uint8

// The events of a Dataplane.
const (
	Acquire     EventKind = iota + 1 // a packet waits for a Pair, or is watched: Selector
	FirstPacket                      // the first valid packet of an inbound SA: ID, SPI
	Expiring                         // a soft limit (packets, bytes) of an SA: ID, SPI
	Moved                            // valid packets of an encapsulated Pair come from another address: ID, Remote
	ClearSeen                        // clear packets of a protected peer, or of one that a rule holds, were dropped: Selector
)

func (k EventKind) String() string {
	if k < Acquire || k > ClearSeen {
		return "unknown"
	}
	return [...]string{"acquire", "first-packet", "expiring", "moved", "clear-seen"}[k-1]
}

// Event is something that the packet path saw.
type Event struct {
	Kind     EventKind
	ID       uint32
	SPI      SPI
	Selector Selector
	Remote   netip.AddrPort
	Time     time.Time
}
