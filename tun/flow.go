package tun

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"tacit/esp"
	"tacit/guard"
	"tacit/ipsec"
)

// Bounds of held packets (TRUST.md I4).
const (
	holdTime        = 3 * time.Second
	holdPerPeer     = 64      // packets
	holdPackets     = 4096    // packets, of all peers
	holdBytes       = 8 << 20 // octets, of all peers
	acquireInterval = time.Second
)

// flow is all traffic between one of our own addresses and a peer's.
type flow struct {
	key guard.Key
	out atomic.Pointer[outbound] // what the packet path seals with; nil: nothing is armed

	// Under the Plane's lock.
	armed   []*pair // the newest last
	pairs   int     // armed or not
	policy  ipsec.Action
	until   time.Time // of the policy; zero: there is none
	verdict guard.Verdict
	renewed time.Time // when the element of the verdict was set

	// Under mu, which the packet path takes only for packets that must wait: the order of held packets, and their flush
	// before later ones, needs one place.
	mu       sync.Mutex
	holding  time.Time // packets wait until then
	queue    []held
	acquired time.Time // the last Acquire

	clearDropped, lastClear atomic.Uint64 // packets; the last counter of the kernel's
}

// held is a packet that waits for a Pair.
type held struct {
	data  []byte
	since time.Time
}

// selector names the flow in events.
func (f *flow) selector() ipsec.Selector { return ipsec.Host(f.key.Own, f.key.Peer) }

// pair is a Child SA as the data plane knows it.
type pair struct {
	id   uint32
	flow *flow

	// Under the Plane's lock.
	spec  ipsec.Pair // without keys; Redirect changes it
	ins   map[ipsec.SPI]*inbound
	out   *outbound // in use, once armed
	armed bool

	// Counters.
	inPackets, outPackets, inBytes, outBytes atomic.Uint64
	lastIn, lastOut                          atomic.Int64 // UnixNano
	replayed, invalid                        atomic.Uint64
	moved                                    atomic.Int64 // UnixNano of the last Moved event
}

// outbound is an outbound SA and where its packets go. It does not change: a change makes another around the same Sealer.
type outbound struct {
	pair     *pair
	order    uint64 // of installation: a later one is never replaced by an earlier one
	spi      ipsec.SPI
	sealer   *esp.Sealer
	expire   uint64 // Expiring is raised at this sequence number
	tunnel   bool
	sock     *socket
	to       sockaddr
	control  []byte
	mtu      int
	fits     int // the longest datagram that is not fragmented
	mss      uint16
	segments atomic.Bool // UDP_SEGMENT works
}

// inbound is an inbound SA.
type inbound struct {
	pair  *pair
	spi   ipsec.SPI
	next  *outbound // its first valid packet makes this one the Pair's; under the Plane's lock
	local netip.Addr
	peer  netip.Addr // the inner addresses
	outer atomic.Pointer[netip.AddrPort]
	mode  ipsec.Mode
	encap bool
	mss   uint16

	live atomic.Bool // the first packet came and protection stands

	// Under mu: an Opener is used by one goroutine at a time, and packets of one SA may arrive on several sockets.
	mu      sync.Mutex
	opener  *esp.Opener
	arming  bool
	waiting [][]byte // packets that came while the first one arms
}

// holdBudget bounds what all flows hold together.
type holdBudget struct{ packets, bytes atomic.Int64 }

// take asks for one packet of n octets.
func (b *holdBudget) take(n int) bool {
	packets, bytes := b.packets.Add(1), b.bytes.Add(int64(n))
	if packets <= holdPackets && bytes <= holdBytes {
		return true
	}
	b.give(n)
	return false
}

// give returns what take gave.
func (b *holdBudget) give(n int) {
	b.packets.Add(-1)
	b.bytes.Add(int64(-n))
}

// enqueue makes a packet wait. acquire says that the event is due; ok is false if the packet must be dropped.
func (f *flow) enqueue(data []byte, now time.Time, b *holdBudget) (acquire, ok bool) {
	if !now.Before(f.holding) {
		return false, false
	}
	if now.Sub(f.acquired) >= acquireInterval {
		f.acquired, acquire = now, true
	}
	if len(f.queue) >= holdPerPeer || !b.take(len(data)) {
		return acquire, false
	}
	f.queue = append(f.queue, held{append([]byte(nil), data...), now})
	return acquire, true
}

// expire drops the packets that waited too long and says how many.
func (f *flow) expire(now time.Time, b *holdBudget) (dropped int) {
	for _, h := range f.queue {
		if now.Sub(h.since) < holdTime && now.Before(f.holding) {
			break
		}
		b.give(len(h.data))
		dropped++
	}
	f.queue = f.queue[dropped:]
	if len(f.queue) == 0 {
		f.queue = nil
	}
	return dropped
}
