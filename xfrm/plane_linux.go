package xfrm

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"tacit/guard"
	"tacit/ipsec"
	"tacit/plane"
)

// Defaults of a Config.
const (
	DefaultLinger = 5 * time.Minute
	DefaultSALife = 3 * time.Hour
	DefaultQueue  = 0x7ac1 // the number of our nfnetlink_queue
)

// Config is how a Plane is opened. The zero value is good.
type Config struct {
	Linger time.Duration // how long policies stay after this process died
	SALife time.Duration // when the kernel ends an SA of itself: longer than the daemon's own lifetimes
	Queue  uint16        // where packets wait
	Log    *slog.Logger
	Now    func() time.Time

	fault func(op string) error // tests make a request to the kernel fail
}

func (c Config) withDefaults() Config {
	if c.Linger <= 0 {
		c.Linger = DefaultLinger
	}
	if c.SALife <= 0 {
		c.SALife = DefaultSALife
	}
	if c.Queue == 0 {
		c.Queue = DefaultQueue
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// Plane is an ipsec.Dataplane.
type Plane struct {
	cfg    Config
	log    *slog.Logger
	now    func() time.Time
	run    *plane.Runner
	kernel *kernel
	news   *netlink.Conn     // what the kernel tells by itself
	queue  *netlink.Conn     // packets that wait
	early  []netlink.Message // of the queue, that came while it was opened
	socks  sockets
	conns  plane.Conns
	budget plane.Budget
	copies plane.Budget
	raw    plane.Raw // sends copies

	// mu excludes methods, queued packets, the kernel's news and maintenance from each other: each changes the kernel's SAs and
	// policies and nftables as one step, and the caller waits for it. Packets take it only if they must wait, or are the first of an SA.
	mu       sync.Mutex
	policies plane.Policies[*flow]
	pairs    map[uint32]*pair
	ins      map[ipsec.SPI]*inbound
	reqID    uint32
	reqIDs   map[uint32]bool
	order    uint64
	waiting  map[*flow]struct{} // with packets in their queues
	orphans  []*outbound
	unrouted map[*flow]struct{} // whose policy could not be set
	unended  []func() error     // what could not be ended
	left     []ipsec.Pair
	counts   counters
	routes   *plane.Routes
	owner    bool // of what is ours in the kernel: Open got so far
	closed   bool
}

// counters count what was not delivered, and why.
type counters struct {
	stray, heldInVain, resyncs uint64
}

// Open opens the Plane in the network namespace of the calling thread. What a dead process or Close(true) left is taken over: see
// Existing. On an error nothing of it is left. Where the kernel lacks what it needs, the error is ErrUnavailable.
func Open(cfg Config) (*Plane, error) {
	cfg = cfg.withDefaults()
	p := &Plane{cfg: cfg, log: cfg.Log, now: cfg.Now, run: plane.NewRunner(cfg.Now), pairs: make(map[uint32]*pair),
		ins: make(map[ipsec.SPI]*inbound), reqIDs: make(map[uint32]bool), waiting: make(map[*flow]struct{}), unrouted: make(map[*flow]struct{})}
	p.conns.Send, p.conns.Done = p.sendIKE, p.run.Done()
	p.policies = plane.Policies[*flow]{Linger: cfg.Linger, Now: cfg.Now, Made: p.newFlow}
	if err := p.open(); err != nil {
		p.run.Stop()
		return nil, errors.Join(err, p.undo(p.policies.Inherited())) // what a dead process held stays held
	}
	for _, loop := range []func(){p.queueLoop, p.newsLoop, p.maintenance} {
		p.run.Go(loop)
	}
	for _, s := range p.socks {
		p.run.Go(func() { p.readLoop(s) })
	}
	return p, nil
}

func (p *Plane) open() (err error) {
	if err := Available(); err != nil {
		return err
	}
	if p.kernel, err = dialKernel(); err != nil {
		return err
	}
	p.kernel.fault = p.cfg.fault
	if p.queue, p.early, err = openQueue(p.cfg.Queue); err != nil {
		return err
	}
	if err := p.openSockets(); err != nil {
		return err
	}
	if p.news, err = openNews(); err != nil {
		return err
	}
	if err := p.raw.Open(0); err != nil {
		return hint("send packets again", err)
	}
	if p.routes, err = plane.OpenRoutes(); err != nil {
		return hint("open netlink", err)
	}
	p.policies.Gateways = p.routes.Gateways
	var left []guard.Element
	if p.policies.Guard, left, err = guard.Open(guard.Config{Queue: p.cfg.Queue, Fault: p.cfg.fault}); err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("%w: nftables cannot queue packets: %w", ErrUnavailable, err)
		}
		return err
	}
	p.owner = true
	if err := p.adopt(left); err != nil {
		return err
	}
	return p.exempt()
}

// exempt renews the policies that stand before ours.
func (p *Plane) exempt() error {
	for _, policy := range exemptions(p.seconds()) {
		if err := p.kernel.setPolicy(policy); err != nil {
			return err
		}
	}
	return nil
}

func openNews() (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_XFRM, nil)
	if err != nil {
		return nil, hint("open netlink", err)
	}
	_ = conn.SetReadBuffer(4 << 20) // more is better, less is no error
	for _, group := range []uint32{groupAcquire, groupExpire, groupMapping} {
		if err := conn.JoinGroup(group); err != nil {
			_ = conn.Close()
			return nil, hint("listen to the kernel", err)
		}
	}
	return conn, nil
}

// Events is closed by Close.
func (p *Plane) Events() <-chan ipsec.Event { return p.run.Events() }

// Close ends everything that is ours; with keep, SAs, policies and what is held stay until their time is over, so that packets
// flow on, protected, while the next process starts.
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

// undo closes what is open. With keep it first gives everything its whole linger; else policies go last, so that nothing passes in
// clear that was on its way.
func (p *Plane) undo(keep bool) error {
	var errs []error
	p.mu.Lock()
	if g := p.policies.Guard; g != nil {
		if keep {
			errs = append(errs, p.policies.Renew(p.now()), p.policies.RenewRules(), p.renewPolicies())
		}
		errs = append(errs, g.Close(keep))
	}
	p.mu.Unlock()
	for _, conn := range []*netlink.Conn{p.queue, p.news} {
		if conn != nil {
			errs = append(errs, conn.Close())
		}
	}
	if p.kernel != nil {
		if !keep && p.owner { // else it may be another tacit's that runs here
			errs = append(errs, p.kernel.sweep())
		}
		errs = append(errs, p.kernel.close())
	}
	for _, s := range p.socks {
		errs = append(errs, s.close())
	}
	p.raw.Close()
	p.routes.Close()
	return errors.Join(errs...)
}
