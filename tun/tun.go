// Package tun is the data plane that works everywhere: ESP in Go (package esp) behind a TUN device, with package guard to divert
// what must be protected. It needs no IPsec in the kernel. It passes ipsectest.TestDataplane.
//
// The way of a packet is in send.go and receive.go, in packet order. Packets are moved by a few goroutines: one reads the device,
// one each of our sockets. They take no lock but for packets that wait and for the inbound SA at hand; what they look up is
// immutable, behind atomic pointers. Everything else is done by the caller of a method, or by the one
// goroutine of maintain.go, under the Plane's lock.
package tun

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"

	"tacit/guard"
	"tacit/ipsec"
	"tacit/plane"
)

// Defaults of a Config.
const (
	DefaultDevice = "tacit0"
	DefaultLinger = 5 * time.Minute
	DefaultTable  = 0x7ac1 // the number of our routing table
	DefaultRule   = 5100   // the priority of our rule: before the main table's
)

// deviceMTU lets whole datagrams through, since transport mode carries no IP fragments.
const deviceMTU = maxPacket

// Config is how a Plane is opened. The zero value is good.
type Config struct {
	Device    string        // name of the TUN device
	Linger    time.Duration // how long what stands in the kernel stays after this process died
	Table     int           // routing table
	Rule      int           // priority of the rule that leads to it
	NoOffload bool          // one packet at a time through the device and the sockets
	Log       *slog.Logger
	Now       func() time.Time
}

func (c Config) withDefaults() Config {
	if c.Device == "" {
		c.Device = DefaultDevice
	}
	if c.Linger <= 0 {
		c.Linger = DefaultLinger
	}
	if c.Table == 0 {
		c.Table = DefaultTable
	}
	if c.Rule == 0 {
		c.Rule = DefaultRule
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// counters count what the packet path did not deliver, and why.
type counters struct {
	stray        atomic.Uint64 // diverted, but no Pair and no Hold
	crowded      atomic.Uint64 // of unknown addresses, while as many wait as may
	released     atomic.Uint64 // let go in clear
	unfit        atomic.Uint64 // cannot travel in transport mode, or is no packet
	held         atomic.Uint64 // held in vain
	unknownSPI   atomic.Uint64
	mismatched   atomic.Uint64 // valid ESP whose packet lies outside the Pair's selector (RFC 4301, 5.2)
	exhausted    atomic.Uint64
	sendErrors   atomic.Uint64
	deviceErrors atomic.Uint64
}

// Plane is an ipsec.Dataplane.
type Plane struct {
	cfg    Config
	log    *slog.Logger
	now    func() time.Time
	run    *plane.Runner
	dev    wgtun.Device
	net    *network
	probe  mtuProbe
	socks  sockets
	conns  plane.Conns
	counts counters
	budget plane.Budget
	copies plane.Budget
	used   atomic.Pointer[pair] // those that Used is to tell of, each behind the one that came later

	flows table[addrKey, *flow]      // read by the path
	spis  table[ipsec.SPI, *inbound] // read by the path

	// mu excludes the methods, the arming of Pairs and maintenance from each other: each changes several tables, nftables
	// and queues as one step, and the caller waits for it. The packet path never takes it.
	mu       sync.Mutex
	policies plane.Policies[*flow]
	pairs    map[uint32]*pair
	left     []ipsec.Pair
	flusher  *sendBatch
	order    uint64 // of the SA installed last
	closed   bool
	waiting  waitList
	unknown  unknown
	clear    clearSender
	routes   *plane.Routes
}

// sockets are ours for as long as the Plane lives; IPv6's are nil where the kernel has no IPv6.
type sockets struct {
	ike, natt, esp [2]*socket
}

func (s *sockets) each(do func(*socket)) {
	for _, pair := range [][2]*socket{s.ike, s.natt, s.esp} {
		for _, sock := range pair {
			if sock != nil {
				do(sock)
			}
		}
	}
}

// Open makes the device, the routes, the table of nftables and the sockets, in the network namespace of the calling
// thread, and starts the packet path. What a dead process left is taken over: its held addresses stay held.
// On an error nothing of it is left.
func Open(cfg Config) (*Plane, error) {
	p := newPlane(cfg.withDefaults())
	if err := p.open(); err != nil {
		p.run.Stop()
		return nil, errors.Join(err, p.undo(p.policies.Inherited())) // what a dead process held stays held
	}
	p.start()
	return p, nil
}

// newPlane makes a Plane with nothing open.
func newPlane(cfg Config) *Plane {
	p := &Plane{cfg: cfg, log: cfg.Log, now: cfg.Now, run: plane.NewRunner(cfg.Now), pairs: make(map[uint32]*pair), probe: mtuProbe{-1, -1}, clear: clearSender{probe: mtuProbe{-1, -1}}}
	p.flusher = newSendBatch(&p.counts)
	p.conns.Send, p.conns.Done = p.sendIKE, p.run.Done()
	p.policies = plane.Policies[*flow]{Linger: cfg.Linger, Now: cfg.Now, Made: p.newFlow,
		Gone: p.forget}
	return p
}

// open makes one thing after another; undo takes what was made. The rule that leads packets into the device comes with the first that is to go there.
func (p *Plane) open() (err error) {
	if p.dev, err = openDevice(p.cfg); err != nil {
		return err
	}
	if p.net, err = openNetwork(p.cfg); err != nil {
		return err
	}
	if p.probe, err = openProbe(); err != nil {
		return err
	}
	if p.routes, err = plane.OpenRoutes(); err != nil {
		return hint("open netlink", err)
	}
	p.policies.Gateways = p.routes.Gateways
	if err := p.clear.open(); err != nil {
		return err
	}
	for i, v6 := range []bool{false, true} {
		for port, at := range map[uint16]**socket{plane.PortIKE: &p.socks.ike[i], plane.PortNATT: &p.socks.natt[i], 0: &p.socks.esp[i]} {
			*at, err = openSocket(port, v6)
			if err != nil && (!v6 || !errors.Is(err, unix.EAFNOSUPPORT)) {
				return err
			}
		}
	}
	var left []guard.Element
	if p.policies.Guard, left, err = guard.Open(guard.Config{Device: p.cfg.Device, Routing: p.net.lead}); err != nil {
		return err
	}
	p.policies.Adopt(left)
	p.left = p.policies.Left(left)
	return p.net.up()
}

// Existing returns, as Pairs with nothing but a Selector and their end, what a dead process protected when this Plane was opened. Their keys
// died with it; until they are keyed anew, or linger is over, their addresses are held.
func (p *Plane) Existing() ([]ipsec.Pair, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]ipsec.Pair(nil), p.left...), nil
}

// Events is closed by Close.
func (p *Plane) Events() <-chan ipsec.Event { return p.run.Events() }

// Close ends the packet path and everything that is ours; with keep, addresses that are protected or held stay shut until their
// time is over, so that the next process takes them over.
func (p *Plane) Close(keep bool) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.mu.Unlock()
	p.run.Stop()
	err := p.undo(keep)
	p.run.End()
	return err
}

// undo closes what is open, the latest first. With keep it first gives the elements their whole linger.
func (p *Plane) undo(keep bool) error {
	var errs []error
	if g := p.policies.Guard; g != nil {
		p.mu.Lock()
		if keep {
			errs = append(errs, p.policies.Renew(p.now()), p.policies.RenewRules())
		}
		errs = append(errs, g.Close(keep))
		p.mu.Unlock()
	}
	if p.net != nil {
		errs = append(errs, p.net.close(keep))
	}
	if p.dev != nil {
		errs = append(errs, p.dev.Close())
	}
	p.socks.each(func(s *socket) { errs = append(errs, s.file.Close()) })
	p.probe.close()
	p.clear.close()
	p.routes.Close()
	return errors.Join(errs...)
}

// hint names an operation and what usually helps.
func hint(op string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("tun: %s: %w (needs CAP_NET_ADMIN and CAP_NET_RAW)", op, err)
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("tun: %s: %w (another IKE daemon, or another tacit, has it)", op, err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("tun: %s: %w (is the module tun loaded, and /dev/net/tun there?)", op, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("tun: %s: %w (another tacit is running here)", op, err)
	}
	return fmt.Errorf("tun: %s: %w", op, err)
}
