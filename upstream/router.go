// Package upstream has the ways to the DNS that a validator asks by: the host's forwarders over UDP and TCP (RFC 1035, 5452, 6891, 7766, 7873) or TLS
// (RFC 7858), and at last the authorities themselves, from the root down (RFC 1034, 5.3.3; RFC 9156, 9609). It gets answers whole, from whom it asked,
// and believes none.
package upstream

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
	"tacit/fair"
)

// The measures of exchanges.
const (
	udpSize       = 1232                   // octets, EDNS: the DNS flag day's; answers above it come by TCP
	maxUDPReply   = 4096                   // octets read, whatever we said that we take
	firstTimeout  = 400 * time.Millisecond // until the next try begins; doubled after every round over the servers
	maxTimeout    = 2 * time.Second
	directTimeout = 800 * time.Millisecond // the same before the authorities are asked
	tcpTimeout    = time.Second            // the server has the answer by then: it has said so over UDP
	maxTries      = 8
	maxExchanges  = 1024             // under way at once, of all users; one has half
	exchangeBound = 10 * time.Second // for a caller without a deadline
	oneWayBound   = 2 * time.Second  // where one forwarder is asked and no other
)

// Config is what a Router needs.
type Config struct {
	Servers []Server // forwarders, in order of preference
	// Iterate has the authorities asked where the forwarders do not bring what DNSSEC needs. Hints are where their tree begins; nil: the Internet's root servers.
	Iterate bool
	// TrustAD leaves AD as it is in the answers of servers on this host's loopback (RFC 6840, 5.8). It is cleared in all others.
	TrustAD bool
	Hints   []Hint
	// Probed is the zone whose records are asked for to see what passes, one with a trust anchor; empty: the root.
	Probed string
	// Roots are who may sign the certificates of servers that are asked over TLS; nil: whom the system trusts.
	Roots *x509.CertPool
	// Control is called on each socket before it is bound or connected, as in net.Dialer: to set a mark. May be nil.
	Control func(network, address string, c syscall.RawConn) error
	// Learned is told where a server that is given by name has proven it, before it is asked. May be nil.
	Learned func(addr netip.Addr)
	Log     *slog.Logger
}

// Router asks the host's forwarders, and where these do not bring what DNSSEC needs, the authorities: a dnssec.Rerouter. Safe for concurrent use.
type Router struct {
	log       *slog.Logger
	ways      []*way                 // in order of preference, the authorities last
	preferred atomic.Int32           // the forwarder that answered last
	since     atomic.Pointer[string] // why it is not the first one
	places    *fair.Pool             // for exchanges
	probed    string
	again     chan struct{} // has Run probe soon
	soonest   time.Duration // between two probes, whatever fails

	mu   sync.Mutex // guards told, which is seldom used
	told map[string]bool
}

// carrier gets answers by one way.
type carrier interface {
	ask(ctx context.Context, q *dns.Msg) (*dns.Msg, error)
	renew() // forgets what was learned by way of another network
}

// way is one way to the DNS.
type way struct {
	carrier
	name     string
	direct   bool // to the authorities
	believed bool // its AD is left as it is
	found    atomic.Pointer[findings]
}

// Direct is the name of the way to the authorities.
const Direct = "iteration from the root"

// New is a Router that asks the given servers.
func New(c Config) (*Router, error) {
	r := &Router{log: c.Log, places: fair.New(maxExchanges), probed: dns.CanonicalName(c.Probed), again: make(chan struct{}, 1), soonest: probeSoonest, told: map[string]bool{}}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	dial := dialer{c.Control}
	for _, s := range c.Servers {
		if s.Port == 0 || !s.TLS && !s.Addr.IsValid() {
			return nil, fmt.Errorf("%v is no address with a port", s)
		}
		var to carrier
		switch {
		case !s.TLS:
			to = newPlain(dial, s.Addr.String())
		case s.Addr.IsValid():
			to = newSecret(dial, s, c.Roots, nil)
		default:
			named := newSecret(dial, s, c.Roots, r.addresses)
			named.learned = c.Learned
			to = named
		}
		r.ways = append(r.ways, &way{carrier: to, name: s.String(), believed: c.TrustAD && !s.TLS && s.Addr.Addr().IsLoopback()})
	}
	if c.Iterate {
		r.ways = append(r.ways, &way{carrier: newAuthorities(dial, c.Hints), name: Direct, direct: true})
	}
	if len(r.ways) == 0 {
		return nil, errors.New("no upstream is configured, and the host has none")
	}
	if !slices.ContainsFunc(r.ways, func(w *way) bool { return !w.needsName() }) {
		return nil, errors.New("nobody to ask for the address of a server that is given by name: write tls://ADDRESS#NAME")
	}
	return r, nil
}

// needsName says whether somebody else has to be asked for the way's address.
func (w *way) needsName() bool {
	s, ok := w.carrier.(*secret)
	return ok && s.find != nil
}

// addresses are those of a host, for the making of a connection on which it proves its name: nothing else is believed of them.
func (r *Router) addresses(ctx context.Context, name string) (all []netip.AddrPort, err error) {
	for _, w := range r.ways {
		if w.needsName() {
			continue
		}
		for _, rrtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			q := new(dns.Msg)
			q.SetQuestion(dns.Fqdn(name), rrtype)
			q.SetEdns0(udpSize, false)
			tctx, cancel := context.WithTimeout(ctx, oneWayBound/2)
			m, aerr := w.ask(tctx, q)
			cancel()
			if aerr != nil {
				err = aerr
				continue
			}
			for _, rr := range m.Answer {
				if a, ok := addrOf(rr); ok {
					all = append(all, netip.AddrPortFrom(a, 0))
				}
			}
		}
		if len(all) > 0 {
			return all, nil
		}
	}
	return nil, err
}

// forwarders is how many of the ways are to forwarders.
func (r *Router) forwarders() int {
	if r.ways[len(r.ways)-1].direct {
		return len(r.ways) - 1
	}
	return len(r.ways)
}

// Ways are all ways that may have a proof which the preferred one has not: the numbers count from 1.
func (r *Router) Ways() []int {
	var fit, rest []int
	first := -1 // what Exchange has asked for everything, if it is fit for everything
	if n := int(r.preferred.Load()); r.ways[n].fit(dns.TypeIPSECKEY) {
		first = n
	}
	for i, w := range r.ways {
		switch {
		case i == first:
		case w.fit(dns.TypeIPSECKEY):
			fit = append(fit, i+1)
		case !w.direct:
			rest = append(rest, i+1)
		}
	}
	return append(fit, rest...)
}

// Chosen logs, once for a zone, that a proof came another way than the preferred.
func (r *Router) Chosen(name string, rrtype uint16, n int, why string) {
	if n < 1 || n > len(r.ways) {
		return
	}
	zone := name
	if i, end := dns.NextLabel(name, 0); !end {
		zone = name[i:]
	}
	level := slog.LevelDebug
	if key := fmt.Sprint(zone, " ", n); r.tell(key) {
		level = slog.LevelInfo
	}
	r.log.Log(context.Background(), level, "another way to the DNS", "name", name, "type", dns.TypeToString[rrtype], "way", r.ways[n-1].name, "why", why)
}

// maxTold bounds what is remembered of the log.
const maxTold = 1024

// tell says whether something is worth a line of the log: it was not said yet.
func (r *Router) tell(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.told[key] {
		return false
	}
	if len(r.told) >= maxTold {
		clear(r.told)
	}
	r.told[key] = true
	return true
}

// order are the ways to ask for records of a type, best first, by their index. Those that probes found unfit come last; the authorities are asked for what
// DNSSEC alone asks for, or where there is no forwarder.
func (r *Router) order(rrtype uint16) []int {
	var fit, unfit []int
	n, first := r.forwarders(), int(r.preferred.Load())
	for k := range n {
		i := (first + k) % n
		if r.ways[i].fit(rrtype) {
			fit = append(fit, i)
		} else {
			unfit = append(unfit, i)
		}
	}
	if n < len(r.ways) && (n == 0 || dnssec.Crucial(rrtype)) {
		if r.ways[n].fit(rrtype) {
			fit = append(fit, n)
		} else {
			unfit = append(unfit, n)
		}
	}
	return append(fit, unfit...)
}

// Exchange asks the preferred server, and the next one when it fails or is slow, until an answer came or ctx ended; or it goes the way that dnssec.Reroute
// says. If all say SERVFAIL or the like, that is the answer. The answer has q's id and question; TC is never set.
func (r *Router) Exchange(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	return r.exchange(ctx, q, nil)
}

// exchange is Exchange; begun, unless it is nil, is the first try, which was sent already.
func (r *Router) exchange(ctx context.Context, q *dns.Msg, begun *shot) (*dns.Msg, error) {
	if len(q.Question) != 1 {
		return nil, errors.New("upstream: not one question")
	}
	rrtype, n := q.Question[0].Qtype, dnssec.Way(ctx)
	order, bound := []int{n - 1}, oneWayBound
	switch {
	case n <= 0 || n > len(r.ways):
		n, order, bound = 0, r.order(rrtype), exchangeBound
	case r.ways[n-1].direct:
		bound = exchangeBound
	}
	if _, ok := ctx.Deadline(); !ok || n != 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, bound)
		defer stop()
	}
	user := dnssec.User(ctx)
	if err := r.places.Take(ctx, user); err != nil {
		return nil, fmt.Errorf("upstream: %d queries under way: %w", r.places.Used(), err)
	}
	defer r.places.Give(user)
	tries := r.tries(order)
	won, bad, ok := race{
		tries: len(tries), round: len(order),
		patience: func(i int) time.Duration {
			if r.ways[tries[i+1]].direct {
				return directTimeout
			}
			return min(maxTimeout, firstTimeout<<(i/len(order)))
		},
		try: func(ctx context.Context, i int) (*dns.Msg, error) {
			if w := r.ways[tries[i]]; i > 0 || begun == nil || begun.way != w {
				return w.ask(ctx, q)
			}
			return begun.resume(ctx)
		},
		good: func(m *dns.Msg) bool { return usable(m.Rcode) },
	}.run(ctx)
	if !ok {
		return bad.give(ctx, r.ways[tries[bad.try]].name)
	}
	i := tries[won.try]
	won.msg.AuthenticatedData = won.msg.AuthenticatedData && r.ways[i].believed
	if i != tries[0] {
		r.disappointed(tries[0], rrtype, bad)
	}
	// What does not pass for one name or type is no reason for all the others to go another way.
	stay := n != 0 || r.ways[i].direct || dnssec.Crucial(rrtype) || errors.Is(bad.err, errNoTCP)
	if w := r.ways[i]; !stay && r.preferred.Swap(int32(i)) != int32(i) {
		why := r.ways[tries[0]].name + ": " + bad.reason()
		r.since.Store(&why)
		r.log.Info("upstream changed", "peer", w.name, "why", why)
	}
	dnssec.Carried(ctx, r.ways[i].name, r.detour(i, tries[0], rrtype, bad))
	return won.msg, nil
}

// tries are the ways of order again and again. The authorities take their time and try again themselves: they are asked once.
func (r *Router) tries(order []int) (all []int) {
	for i := 0; len(all) < maxTries; i++ {
		k := order[i%len(order)]
		if i < len(order) || !r.ways[k].direct {
			all = append(all, k)
		} else if len(order) == 1 {
			break
		}
	}
	return all
}

// detour says why an answer came by way i and not by the first one that is configured.
func (r *Router) detour(i, first int, rrtype uint16, bad outcome) string {
	switch {
	case i != first:
		return r.ways[first].name + ": " + bad.reason()
	case i == 0:
		return ""
	case r.ways[0].fit(rrtype):
		if why := r.since.Load(); why != nil {
			return *why
		}
		return ""
	}
	return r.ways[0].name + ": " + r.ways[0].found.Load().why
}

// disappointed is told that a way did not bring what another one did.
func (r *Router) disappointed(i int, rrtype uint16, bad outcome) {
	if dnssec.Crucial(rrtype) || bad.msg == nil {
		r.Reprobe()
	}
}

// usable says whether another server is not worth asking.
func usable(rcode int) bool {
	return rcode == dns.RcodeSuccess || rcode == dns.RcodeNameError || rcode == dns.RcodeYXDomain
}

func (o outcome) reason() string {
	switch {
	case o.msg != nil:
		return dns.RcodeToString[o.msg.Rcode]
	case o.err != nil:
		return brief(o.err)
	}
	return "no answer in time"
}

// brief is an error without the addresses and ports of sockets, so that it is the same the next time.
func brief(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	if errors.Is(err, context.DeadlineExceeded) || strings.HasSuffix(err.Error(), "i/o timeout") {
		return "no answer in time"
	}
	return err.Error()
}

// give is what remains to be said where no way answered well; from is the one whose outcome it is.
func (o outcome) give(ctx context.Context, from string) (*dns.Msg, error) {
	switch {
	case o.msg != nil:
		return o.msg, nil
	case o.err != nil:
		return nil, fmt.Errorf("%s: %w", from, o.err)
	}
	return nil, fmt.Errorf("%s: no answer: %w", from, ctx.Err())
}
