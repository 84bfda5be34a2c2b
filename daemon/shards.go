package daemon

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/bits"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"tacit/ike"
	"tacit/ipsec"
)

// shards are the loops among which peers are divided, by their addresses: all that is known of an address is in one loop, and its IKE SAs
// never move. What comes is handed to the loop that it is for: a lookup and an initiator's first message by the address, other messages and the
// data plane's events by the number of the shard in our SPIs and Pair ids.
type shards struct {
	*shared
	loops []*loop
	seed  maphash.Seed
}

// shared is what all loops use at once.
type shared struct {
	d       *Daemon
	log     *slog.Logger
	now     func() time.Time
	dp      ipsec.Dataplane
	conns   map[netip.AddrPort]ipsec.Conn // by our unspecified address and port; they never change
	grants  *grants                       // what lookups may read
	signers chan struct{}                 // a seat each
	known   atomic.Int64                  // peers
	panics  atomic.Uint64                 // that were contained; each is a bug
	masks   [32]byte                      // see mask
	used    used
	nudge   func(local, remote netip.Addr) error
	routed  func(remote netip.Addr) error // whether the kernel has a way to an address

	shutting sync.WaitGroup // rules for packets that a loop has asked for
}

const (
	maxDatagram = 65535
	maxShards   = 64
	initSends   = 3 // to an address where nobody may be (TRUST.md A-20)
)

// shardCount is one for each processor, as far as that is a power of two.
func shardCount() int {
	return min(1<<(bits.Len(uint(runtime.GOMAXPROCS(0)))-1), maxShards)
}

// warm uses a key once. A process computes the tables of Ed25519 when it needs them first: nearly a millisecond, which is not to be the first peer's.
func warm(key crypto.Signer) {
	var message [32]byte
	if signature, err := key.Sign(rand.Reader, message[:], crypto.Hash(0)); err == nil {
		ed25519.Verify(key.Public().(ed25519.PublicKey), message[:], signature)
	}
}

// newShards opens IKE's ports and makes n loops, a power of two.
func newShards(d *Daemon, n int) (*shards, error) {
	s := &shards{seed: maphash.MakeSeed(), shared: &shared{
		d: d, log: d.log, now: d.now, dp: d.cfg.Dataplane, conns: map[netip.AddrPort]ipsec.Conn{},
		grants: newGrants(d.started), signers: make(chan struct{}, max(4, n)), nudge: nudge, routed: routed,
	}}
	rand.Read(s.masks[:])
	if m, err := recall(d.cfg.Proofs); err == nil && len(m.Masks) == len(s.masks) {
		copy(s.masks[:], m.Masks)
	}
	warm(s.mask(netip.IPv6Loopback(), netip.IPv6Loopback()))
	f := d.cfg.File
	c := ike.Config{
		Rand: rand.Reader, Encapsulate: d.cfg.Encapsulate, Inner: d.cfg.Inner, Outside: f.NATAddresses, IKELifetime: f.IKELifetime, ChildLifetime: f.ChildLifetime,
		Liveness:   f.Linger / 2,
		InitSends:  initSends,
		Retransmit: []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 3 * time.Second},
		FirstPair:  uint32(d.started.Unix()) &^ 0xfff, // differs from the ids of a process before us
		Shards:     n, CrashSecret: d.cfg.CrashSecret, AskKeys: true, Census: newCensus(),
	}
	c.PostQuantum = map[string]ike.PostQuantum{"after": ike.After, "before": ike.Before, "off": ike.Off}[f.PostQuantum]
	if d.cfg.Signer != nil {
		c.Name, c.Public = f.Name, d.cfg.Signer.Public()
	}
	for c.Shard = range n {
		l := newLoop(s.shared, ike.New(c))
		l.shard, l.packets = c.Shard, newPackets(n)
		s.used.of = append(s.used.of, map[uint32]bool{})
		s.loops = append(s.loops, l)
	}
	for _, p := range ports() {
		conn, err := s.dp.Conn(p)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("IKE on %v: %w", p, err)
		}
		s.conns[p] = conn
	}
	return s, nil
}

// close closes IKE's ports.
func (s *shards) close() {
	for _, c := range s.conns {
		_ = c.Close()
	}
}

// of is the loop of an address.
func (s *shards) of(remote netip.Addr) *loop {
	return s.loops[maphash.Comparable(s.seed, remote.Unmap())%uint64(len(s.loops))]
}

// ofDatagram is the queue of an IKE message.
func (s *shards) ofDatagram(d ike.Datagram) chan<- ike.Datagram {
	if i, ok := ike.ShardOf(d.Data, len(s.loops)); ok {
		return s.loops[i].datagrams
	}
	return s.of(d.Remote.Addr()).strangers
}

// ofEvent is the loop of what the packet path saw: of a Pair's, or else of its address's.
func (s *shards) ofEvent(e ipsec.Event) *loop {
	if e.Kind == ipsec.Acquire || e.Kind == ipsec.ClearSeen {
		return s.of(e.Selector.Remote.Addr())
	}
	return s.loops[int(e.ID)%len(s.loops)]
}

// run runs the loops until ctx ends; they take leave of their peers, and IKE's ports close.
func (s *shards) run(ctx context.Context) error {
	var readers sync.WaitGroup
	for p, c := range s.conns {
		readers.Go(func() { s.read(p, c) })
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.route(ctx) })
	for _, l := range s.loops {
		g.Go(func() error { return l.run(ctx) })
	}
	err := g.Wait()
	s.shutting.Wait()
	s.close()
	readers.Wait()
	return err
}

// route hands the data plane's events out.
func (s *shards) route(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-s.dp.Events():
			if !ok {
				return errors.New("the data plane ended")
			}
			l := s.ofEvent(e)
			select {
			case l.events <- e:
			case <-l.ended:
			}
		}
	}
}

// read carries the datagrams of one socket to the loops until it is closed.
func (s *shards) read(at netip.AddrPort, c ipsec.Conn) {
	b := make([]byte, maxDatagram)
	for {
		n, local, remote, err := c.Read(b)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			s.log.Warn("reading IKE", "at", at, "err", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		d := ike.Datagram{Local: local, Remote: remote, Data: append([]byte(nil), b[:n]...)}
		select {
		case s.ofDatagram(d) <- d:
		default: // overload: the peer sends again
		}
	}
}
