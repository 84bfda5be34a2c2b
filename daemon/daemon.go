// Package daemon is the only part of tacit that acts. Loops, one for each processor, own the peers and their IKE SAs; what blocks
// (lookups, the data plane, signatures) runs beside them and reports back.
package daemon

import (
	"context"
	"crypto"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"tacit/config"
	"tacit/control"
	"tacit/dnssec"
	"tacit/flows"
	"tacit/ipsec"
	"tacit/pad"
	"tacit/policy"
	"tacit/resolver"
	"tacit/upstream"
)

// Config is what a Daemon is made of.
type Config struct {
	File    *config.Config
	Load    func() (*config.Config, error) // reads the file again, for ReloadFile
	Anchors *dnssec.Anchors
	// TrustPoint is to be followed through its roll-overs, its state kept by SaveTrust; nil: the anchors stay as they are.
	TrustPoint *dnssec.TrustPoint
	SaveTrust  func(state []byte) error
	Hints      []upstream.Hint // the root servers; nil: the Internet's
	Signer     crypto.Signer   // our identity; nil: we stay anonymous and nobody can prove us
	// CrashSecret outlives the process, so that peers believe at once that it was started anew (RFC 6290); empty: they find out by themselves.
	CrashSecret []byte
	// Proofs is what SaveProofs saved, as it is written to it, when a process before us did not end in good order; SaveProofs(nil) forgets it. nil: nothing is kept.
	Proofs     []byte
	SaveProofs func(write func(io.Writer) error) error
	Dataplane  ipsec.Dataplane
	// Flows lists the connections of this host, which are ended before they go on in clear; nil: they are left alone.
	Flows func() ([]flows.Flow, error)
	// Owner is the user of this host behind a client of the DNS listeners; nil: all clients are one.
	Owner func(tcp bool, client, server netip.AddrPort) (uid uint32, err error)
	// DataplaneName and DataplaneWhy are for status: which data plane, and why this one.
	DataplaneName, DataplaneWhy string
	Encapsulate                 bool // the data plane prefers ESP in UDP
	Inner                       bool // the data plane translates (ipsec.Pair.Inner)
	DNSMark                     int  // SO_MARK of our DNS sockets; 0: none
	Observe                     bool // decide and log, touch nothing: no data plane, no IKE
	Version                     string
	Log                         *slog.Logger
	Now                         func() time.Time // nil: time.Now
}

// Daemon is a running tacit.
type Daemon struct {
	cfg      Config
	now      func() time.Time
	log      *slog.Logger
	rules    atomic.Pointer[policy.Table] // another after a reload
	identify atomic.Pointer[string]
	// published is what our name publishes; nil: it is not known yet.
	published atomic.Pointer[published]
	changing  sync.Mutex // of the rules
	host      *host
	shards    *shards // nil when observing
	resolver  *resolver.Server
	upstream  *upstream.Router
	pins      map[calling]*config.Peer // endpoints with an address of their own
	// find is what DNS says of the name that an initiator at an address tells: findClaim.
	find func(name string, remote netip.Addr) (c pad.Claim, why string)
	// reverse is what the reverse zone of an address says: reversed.
	reverse  func(remote netip.Addr) reversed
	rollover *dnssec.Rollover // nil without a TrustPoint
	started  time.Time
	trail    trail
	handing  atomic.Bool // HandOver
	lodging  atomic.Bool // a client behind a NAT was assigned an address, now or before
}

// New opens everything that can fail for a reason of the administrator's: listeners and IKE's ports.
func New(cfg Config) (*Daemon, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	d := &Daemon{cfg: cfg, now: cfg.Now, log: cfg.Log, started: cfg.Now()}
	d.pins = pinsOf(cfg.File.Peer)
	h, err := newHost(cfg.File)
	if err != nil {
		return nil, err
	}
	d.host = h
	if !cfg.Observe {
		if d.shards, err = newShards(d, shardCount()); err != nil {
			return nil, err
		}
	}
	if err = d.openResolver(); err == nil {
		if err = d.obey(cfg.File); err != nil { // the last that may fail: what a process before us left stands until then
			d.resolver.Close()
		}
	}
	if err != nil {
		if d.shards != nil {
			d.shards.close()
		}
		return nil, err
	}
	return d, nil
}

// openResolver wires upstream, validator and listeners.
func (d *Daemon) openResolver() error {
	f := d.cfg.File
	up, err := upstream.New(upstream.Config{
		Servers: f.DNS.Upstream, Iterate: f.DNS.Iterate && !f.DNS.TrustAD, TrustAD: f.DNS.TrustAD, Hints: d.cfg.Hints, Probed: d.cfg.Anchors.Top(), Control: d.dnsControl(), Learned: d.host.learned, Log: d.log})
	if err != nil {
		return fmt.Errorf("dns.upstream: %w", err)
	}
	d.upstream = up
	v := dnssec.New(up, d.cfg.Anchors, Judgement(f)...)
	v.Now = d.now
	if d.cfg.TrustPoint != nil {
		d.rollover = v.Follow(d.cfg.TrustPoint, d.cfg.SaveTrust)
	}
	who := d.who
	if d.cfg.Owner == nil {
		who = nil
	}
	d.resolver, err = resolver.New(resolver.Config{
		Listen: f.DNS.Listen, Lookup: v, Upstream: up, Watcher: (*watcher)(d),
		Hold: f.DNS.Hold, Log: d.log, Now: d.now, Observe: d.cfg.Observe, TimeServer: d.timeServer, Who: who,
	})
	d.find, d.reverse = d.findClaim, d.reversed
	return err
}

// Judgement is how the configuration wants answers to be validated.
func Judgement(f *config.Config) []dnssec.Option {
	options := []dnssec.Option{dnssec.WithUnsigned(f.DNS.NegativeAnchors...)}
	if f.DNS.TrustAD {
		options = append(options, dnssec.WithDelegation())
	}
	return options
}

// Validation says for people who validates.
func Validation(f *config.Config) string {
	if !f.DNS.TrustAD {
		return "own"
	}
	var by []string
	for _, s := range f.DNS.Upstream {
		by = append(by, s.String())
	}
	return "delegated to " + strings.Join(by, " ") + " (trust-ad)"
}

// dnsControl marks our own DNS sockets, so that no policy of ours catches them.
func (d *Daemon) dnsControl() func(string, string, syscall.RawConn) error {
	if d.cfg.DNSMark == 0 {
		return nil
	}
	return markSocket(d.cfg.DNSMark)
}

// Run serves until ctx ends, then ends the SAs and gives everything back.
func (d *Daemon) Run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	if d.shards != nil {
		g.Go(func() error { return d.shards.run(gctx) })
		go d.warmUp()
		if err := d.takeOver(gctx); err != nil { // it ends by itself
			d.log.Warn("what a process before us left is not taken over", "err", err)
		}
	}
	if d.shards != nil && d.cfg.SaveProofs != nil {
		if len(d.cfg.Proofs) > 0 {
			if err := d.restore(gctx, d.cfg.Proofs); err != nil { // what is in the kernel still holds the addresses
				d.log.Warn("what was proven before is not restored", "err", err)
			}
		}
		g.Go(func() error { d.remember(gctx); return nil })
	}
	g.Go(func() error { return d.resolver.Serve(gctx) })
	g.Go(func() error { return control.Serve(gctx, d.cfg.File.Socket, handler{d}) })
	g.Go(func() error { d.host.watch(gctx, d.log, d.moved); return nil })
	g.Go(func() error { d.upstream.Run(gctx); return nil })
	g.Go(func() error { settle(gctx); return nil })
	if d.cfg.File.Name != "" {
		g.Go(func() error { d.followName(gctx); return nil })
	}
	if d.shards != nil {
		for _, p := range d.cfg.File.Peer {
			if p.Start == "now" {
				g.Go(func() error { d.keep(gctx, p); return nil })
			}
		}
	}
	if d.rollover != nil {
		g.Go(func() error { d.rollover.Run(gctx, d.probed); return nil })
	}
	d.log.Info("ready", "name", d.cfg.File.Name, "dataplane", d.cfg.DataplaneName, "why", d.cfg.DataplaneWhy,
		"dns", d.resolver.Addrs(), "observe", d.cfg.Observe)
	err := g.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// warmUp has the kernel list connections once: it loads modules for that, which takes longer than anything else about the first address that ends.
func (d *Daemon) warmUp() {
	if _, err := listed(d.cfg.Flows); err != nil {
		d.log.Debug("listing connections", "err", err)
	}
}

// probed reports how a probe of the trust anchors ended.
func (d *Daemon) probed(err error) {
	if err != nil {
		d.log.Warn("trust anchors not confirmed", "err", err)
		return
	}
	d.log.Debug("trust anchors confirmed")
}

// Close gives back what New took, after Run or without it.
func (d *Daemon) Close() error {
	d.resolver.Close()
	if d.shards == nil {
		return nil
	}
	d.shards.close()
	return d.shards.end()
}

// ports are where IKE listens, in every family that the host has.
func ports() []netip.AddrPort {
	var ps []netip.AddrPort
	for _, port := range []uint16{500, 4500} {
		ps = append(ps, netip.AddrPortFrom(netip.IPv4Unspecified(), port))
		if hasIPv6() {
			ps = append(ps, netip.AddrPortFrom(netip.IPv6Unspecified(), port))
		}
	}
	return ps
}

// hasIPv6 reports whether the kernel has IPv6 at all.
func hasIPv6() bool {
	c, err := net.ListenPacket("udp6", "[::]:0")
	if err != nil {
		return false
	}
	c.Close()
	return true
}
