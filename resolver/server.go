package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"tacit/dnssec"
	"tacit/fair"
)

// The bounds of a server (TRUST.md, I4 and I5).
const (
	defaultHold    = 2 * time.Second
	maxInFlight    = 4096 // queries being answered at once, of all users; one has half (fair.Pool), and more get SERVFAIL
	maxFlights     = 8192 // lookups under way at once, the same
	maxTCPConns    = 256  // the same
	maxTCPPipeline = 64   // queries of one connection being answered at once
	tcpIdle        = 10 * time.Second
	maxUDPReply    = 4096
)

// Lookuper looks a name up and validates the answer; *dnssec.Validator is the real one.
type Lookuper interface {
	Lookup(ctx context.Context, name string, rrtype uint16) (dnssec.Answer, error)
}

// Config is what a Server needs.
type Config struct {
	Listen   []netip.AddrPort // UDP and TCP on each; port 0 draws one
	Lookup   Lookuper
	Upstream dnssec.Exchanger // for RRSIG, which nobody can validate; nil: such queries get SERVFAIL
	Watcher  Watcher          // nil: validate and answer, no key is asked
	Hold     time.Duration    // bound of every answer; 0 is 2 s
	Log      *slog.Logger
	Now      func() time.Time
	// TimeServer says of a name that this host may set its clock by it: while the clock is known to be wrong and nothing can be proven, its addresses are
	// given all the same, to be asked in clear. Nil: of none.
	TimeServer func(name string) bool
	// Who names the user behind a client, so that none of them takes what the others need. It is asked only while much is under way. Nil: all are one.
	Who     func(tcp bool, client, server netip.AddrPort) string
	Observe bool // decide and log, hold and withhold nothing
}

// Server is the host's DNS server. It owns its sockets, cache and lookups under way.
type Server struct {
	cfg    Config
	log    *slog.Logger
	now    func() time.Time
	base   context.Context // ends with Close: lookups and queries hang on it
	cancel context.CancelFunc
	udp    []*batch
	tcp    []*net.TCPListener
	slots  *fair.Pool // a place for each query being answered
	under  *fair.Pool // a place for each lookup under way
	conns  *fair.Pool // a place for each TCP connection
	stats  counters
	zones  breaker
	wg     sync.WaitGroup // lookups, background watches and TCP handlers

	// Queries run in goroutines of their own and meet in the cache only, for less time than a message to an owner
	// would take; so a mutex.
	mu      sync.Mutex
	cache   *cache
	flights map[owned]*flight
	closed  bool
}

// New opens the listeners, so that an address in use is an error here, with the address in it. Serve answers.
func New(cfg Config) (*Server, error) {
	if cfg.Lookup == nil {
		return nil, errors.New("resolver: no Lookuper")
	}
	s := newServer(cfg)
	for _, a := range cfg.Listen {
		us, t, err := listen(a)
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("resolver: %w", err)
		}
		s.udp, s.tcp = append(s.udp, us...), append(s.tcp, t)
	}
	return s, nil
}

// newServer is New without sockets.
func newServer(cfg Config) *Server {
	if cfg.Hold <= 0 {
		cfg.Hold = defaultHold
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		cfg: cfg, log: cfg.Log, now: cfg.Now,
		slots:   fair.New(maxInFlight),
		under:   fair.New(maxFlights),
		conns:   fair.New(maxTCPConns),
		cache:   newCache(),
		flights: map[owned]*flight{},
	}
	s.zones.rest = 2 * cfg.Hold
	s.base, s.cancel = context.WithCancel(context.Background())
	return s
}

// Addrs is where the server listens, with the drawn port where the configuration says 0.
func (s *Server) Addrs() []netip.AddrPort {
	var as []netip.AddrPort
	for _, t := range s.tcp {
		a := t.Addr().(*net.TCPAddr).AddrPort()
		as = append(as, netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
	}
	return as
}

// Serve answers until ctx ends, then closes everything and returns nil. Held queries are answered SERVFAIL then. An error is a
// listener that broke.
func (s *Server) Serve(ctx context.Context) error {
	errs := make(chan error, len(s.udp)+len(s.tcp))
	for _, u := range s.udp {
		go func() { errs <- s.serveUDP(u) }()
	}
	for _, t := range s.tcp {
		go func() { errs <- s.serveTCP(t) }()
	}
	running := len(s.udp) + len(s.tcp)
	var err error
	select {
	case <-ctx.Done():
	case <-s.base.Done():
	case err = <-errs:
		running--
	}
	// Order matters: queries that are held answer now, the readers stop, the last answers are written, the sockets close.
	s.cancel()
	past := time.Unix(1, 0)
	for _, u := range s.udp {
		u.stop()
	}
	for _, t := range s.tcp {
		_ = t.SetDeadline(past)
	}
	for ; running > 0; running-- {
		if e := <-errs; err == nil {
			err = e
		}
	}
	s.Close()
	if err != nil {
		return fmt.Errorf("resolver: %w", err)
	}
	return nil
}

// Close ends lookups under way and closes the listeners. Serve does it too.
func (s *Server) Close() {
	// After this no lookup begins, so that the wait below has an end.
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	for _, u := range s.udp {
		u.close()
	}
	for _, t := range s.tcp {
		t.Close()
	}
	s.wg.Wait()
}
