package tun

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"tacit/esp"
	"tacit/ipsec"
	"tacit/plane"
)

// flow is all traffic between one of our own addresses and a peer's.
type flow struct {
	plane.Flow
	plane *Plane
	out   atomic.Pointer[outbound] // what the packet path seals with; nil: nothing is armed

	// Under the Plane's lock.
	armed []*pair // the newest last
	pairs int     // armed or not

	// Under mu, which the packet path takes only for packets that must wait: the order of held packets, and their flush
	// before later ones, needs one place.
	mu    sync.Mutex
	queue plane.Queue[[]byte]
}

// Used reports whether a Pair carries the flow.
func (f *flow) Used() bool { return f.pairs > 0 }

// Armed reports whether an armed Pair does: for as long as we live.
func (f *flow) Armed() (bool, time.Time) { return len(f.armed) > 0, time.Time{} }

// Settle says what becomes of packets that find no SA.
func (f *flow) Settle(fate plane.Fate, until time.Time, then plane.Fate) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.queue.Settle(fate, until, then)
	if fate != plane.Release && fate != plane.Copy {
		f.plane.counts.held.Add(uint64(len(out)))
		return
	}
	for _, h := range out {
		f.plane.sendClear(h.Packet)
	}
}

// pair is a Child SA as the data plane knows it.
type pair struct {
	id   uint32
	flow *flow

	// Under the Plane's lock.
	local, remote netip.AddrPort // outer; Redirect changes them
	mode          ipsec.Mode
	inner         *[16]byte // what stands for our own address inside of the ESP; nil: it stands for itself. It does not change.
	authenticated bool
	ins           []*inbound
	out           *outbound // in use, once armed
	armed         bool
	parting       bool // it was disarmed, for good

	// Counters.
	inPackets, outPackets, inBytes, outBytes atomic.Uint64
	lastIn, lastOut                          atomic.Int64 // UnixNano
	replayed, invalid                        atomic.Uint64
	moved                                    atomic.Int64 // UnixNano of the last Moved event

	inUsed   atomic.Bool // it is in Plane.used
	nextUsed *pair       // behind it there
}

// spec is the Pair as it was installed, without its SAs.
func (pr *pair) spec() ipsec.Pair {
	spec := ipsec.Pair{ID: pr.id, Local: pr.local, Remote: pr.remote, Mode: pr.mode, Selector: pr.flow.Selector(), Authenticated: pr.authenticated}
	if pr.inner != nil {
		spec.Inner = netip.AddrFrom16(*pr.inner).Unmap()
	}
	return spec
}

// inbound finds an inbound SA; nil: it has none of that SPI.
func (pr *pair) inbound(spi ipsec.SPI) *inbound {
	for _, in := range pr.ins {
		if in.spi == spi {
			return in
		}
	}
	return nil
}

// hosts are the inner addresses.
func (in *inbound) hosts() (local, peer netip.Addr) {
	return in.pair.flow.Key.Own, in.pair.flow.Key.Peer
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
	mtu      int32
	fits     int32 // the longest datagram that is not fragmented
	mss      uint16
	segments atomic.Bool // UDP_SEGMENT works
}

// inbound is an inbound SA.
type inbound struct {
	pair  *pair
	spi   ipsec.SPI
	next  *outbound // its first valid packet makes this one the Pair's; under the Plane's lock
	outer atomic.Pointer[netip.AddrPort]
	mode  ipsec.Mode
	encap bool
	mss   uint16 // once it is live

	live atomic.Bool // the first packet came and protection stands

	// Under mu: an Opener is used by one goroutine at a time, and packets of one SA may arrive on several sockets.
	mu      sync.Mutex
	opener  *esp.Opener
	arming  bool
	waiting [][]byte // packets that came while the first one arms
}
