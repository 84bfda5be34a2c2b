package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"

	"tacit/dnssec"
)

// The measures of iteration. What a lookup may cost in all is dnssec's to say: dnssec.Spend.
const (
	maxSends      = 40                     // questions to authorities, for one question of ours
	maxSteps      = 40                     // referrals and shortened names of one descent
	maxLookedUp   = 3                      // servers' names looked up for one cut and one question (NXNSAttack, CVE-2020-12662)
	maxHostsInAll = 6                      // the same for one question, of all cuts
	maxAsked      = 6                      // servers asked for one step
	stepTimeout   = 3 * time.Second        // for one step
	serverFirst   = 300 * time.Millisecond // until the next server is asked, where nothing is known of the one before
	serverMost    = 800 * time.Millisecond
	serverRest    = 30 * time.Second // how long a server that did not answer is asked last
	fullSteps     = 4                // RFC 9156, 2.3: MINIMISE_ONE_LAB
	shortenedMax  = 10               // the same: MAX_MINIMISE_COUNT
)

// What ends a descent.
var (
	errLame    = errors.New("no server of the zone answers for it")
	errNowhere = errors.New("no address of a server of the zone is known")
)

// authorities is the way to the servers of the zones, from the root down, by referral (RFC 1034, 5.3.3), with names no longer than each has to know
// (RFC 9156). It gets whatever they say: it is the validator who believes, or does not. Safe for concurrent use.
type authorities struct {
	dialer
	hints []Hint
	port  uint16 // 53; another one in tests
	now   func() time.Time
	local bool // the root is on this host, as in a test: others may be too

	known
	steps singleflight.Group // by zone, name and type: a question to the zone's servers

	// The mutex guards servers: each step reads and writes it in passing.
	smu     sync.Mutex
	servers map[netip.Addr]*authority
	noRoute [2]atomic.Int64 // by family (IPv4, IPv6): when it was last found to have no route, Unix nanoseconds
}

// authority is a server and how it has been so far.
type authority struct {
	*plain
	rtt  atomic.Int64 // smoothed, nanoseconds; 0: not known
	rest atomic.Int64 // asked last until then, Unix nanoseconds
}

func newAuthorities(d dialer, hints []Hint) *authorities {
	if len(hints) == 0 {
		hints = rootServers
	}
	a := &authorities{dialer: d, hints: hints, port: portDNS, now: time.Now, servers: map[netip.Addr]*authority{}}
	a.local = slices.ContainsFunc(hints, func(h Hint) bool { return slices.ContainsFunc(h.Addrs, netip.Addr.IsLoopback) })
	a.forget()
	return a
}

func (a *authorities) renew() {
	a.forget()
	a.smu.Lock()
	defer a.smu.Unlock()
	a.servers = map[netip.Addr]*authority{}
	for i := range a.noRoute {
		a.noRoute[i].Store(0)
	}
}

// ask answers a question from the root down.
func (a *authorities) ask(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	d := &descent{authorities: a}
	d.sends.Store(maxSends)
	name := dns.CanonicalName(q.Question[0].Name)
	z, m, err := d.resolve(ctx, name, q.Question[0].Qtype, nil)
	if err != nil {
		return nil, err
	}
	return scrub(z.zone, name, q, m), nil
}

// descent is the way down for one question, with the descents within it for the addresses of servers. One goroutine has it at a time.
type descent struct {
	*authorities
	sends atomic.Int64   // left
	names map[string]int // servers' names looked up, by cut
	hosts int            // in all
}

// resolve asks the servers of the deepest zone that is known to hold the name, and those that they refer to. within are the servers whose addresses are being
// looked up: none is looked up to find itself.
func (d *descent) resolve(ctx context.Context, name string, rrtype uint16, seeking []string) (*cut, *dns.Msg, error) {
	place := name
	if rrtype == dns.TypeDS { // the parent's to say (RFC 4035, 2.4)
		place = parent(name)
	}
	z := d.closest(place, d.now())
	if z == nil {
		var err error
		if z, err = d.prime(ctx); err != nil {
			return nil, nil, err
		}
	}
	s := shortener{zone: z.zone, full: name}
	for range maxSteps {
		asked, whole := s.next()
		kind := rrtype
		if !whole {
			kind = dns.TypeA // RFC 9156, 2.1: as common a type as there is
		}
		m, err := d.askZone(ctx, z, asked, kind, seeking)
		switch {
		case err != nil && (whole || errors.Is(err, dnssec.ErrSpent) || ctx.Err() != nil):
			return nil, nil, fmt.Errorf("%s: %w", z.zone, err)
		case err != nil: // RFC 9156, 2.3: a server that fails on a shortened name may know the whole one
			s.stop()
			continue
		}
		if next := referral(z, asked, m, d.now()); next != nil {
			if !within(place, next.zone) { // a DS, and its parent's server sends us to the child
				return nil, nil, fmt.Errorf("%s: %w", z.zone, errLame)
			}
			d.putCut(next)
			z, s = next, shortener{zone: next.zone, full: name, count: s.count, stopped: s.stopped}
			continue
		}
		if whole {
			return z, m, nil
		}
		if m.Rcode != dns.RcodeSuccess || has(m.Answer, dns.TypeDNAME) { // that it ends here, the whole name has to prove
			s.stop()
		}
	}
	return nil, nil, fmt.Errorf("%s: more than %d steps", z.zone, maxSteps)
}

// shortener gives the names to ask a zone's servers for: one label more each time, and some more where there are many (RFC 9156, 2.3).
type shortener struct {
	zone, full string
	labels     int // of the last one; 0: none yet
	count      int // names so far, of all zones
	stopped    bool
}

// stop has the whole name asked for from now on.
func (s *shortener) stop() { s.stopped = true }

// next is the name to ask for, and whether it is the whole one.
func (s *shortener) next() (name string, whole bool) {
	all := dns.CountLabel(s.full)
	s.labels = max(s.labels, dns.CountLabel(s.zone))
	left := all - s.labels
	step := 1
	if s.count >= fullSteps {
		step = (left + shortenedMax - s.count - 1) / max(shortenedMax-s.count, 1)
	}
	s.count++
	s.labels += max(step, 1)
	if s.stopped || s.count > shortenedMax || s.labels >= all {
		return s.full, true
	}
	name = s.full
	for range all - s.labels {
		name = parent(name)
	}
	return name, false
}

// prime asks the servers of the hints for those of the root (RFC 9609).
func (d *descent) prime(ctx context.Context) (*cut, error) {
	start := &cut{zone: ".", glue: map[string][]netip.Addr{}}
	for _, h := range d.hints {
		start.names = append(start.names, h.Name)
		start.glue[h.Name] = h.Addrs
	}
	m, err := d.askZone(ctx, start, ".", dns.TypeNS, nil)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	root := &cut{zone: ".", glue: map[string][]netip.Addr{}}
	ttl := maxCutTTL
	for _, rr := range m.Answer {
		if ns, ok := rr.(*dns.NS); ok && ns.Hdr.Name == "." && len(root.names) < maxNS {
			root.names = append(root.names, dns.CanonicalName(ns.Ns))
			ttl = min(ttl, time.Duration(ns.Hdr.Ttl)*time.Second)
		}
	}
	root.takeGlue(".", m.Extra)
	for _, h := range d.hints { // RFC 9609, 3.3: the answer need not have all addresses
		if slices.Contains(root.names, h.Name) && len(root.glue[h.Name]) == 0 {
			root.glue[h.Name] = h.Addrs
		}
	}
	if len(root.glue) == 0 { // they do not say where they are: the hints do
		root.names, root.glue = start.names, start.glue
	}
	root.until = d.now().Add(max(ttl, minHostTTL))
	d.putCut(root)
	return root, nil
}

// askZone asks servers of a zone until one answers that serves it.
func (d *descent) askZone(ctx context.Context, z *cut, name string, rrtype uint16, seeking []string) (*dns.Msg, error) {
	var tried []netip.Addr
	err := errNowhere
	for {
		addrs := d.addrsOf(z, tried)
		if len(addrs) == 0 {
			more, lerr := d.lookUp(ctx, z, seeking)
			if lerr != nil {
				return nil, lerr
			}
			if !more {
				return nil, err
			}
			continue
		}
		m, serr := d.step(ctx, z, name, rrtype, addrs)
		if serr == nil {
			return m, nil
		}
		if errors.Is(serr, dnssec.ErrSpent) || ctx.Err() != nil {
			return nil, serr
		}
		err, tried = serr, append(tried, addrs...)
	}
}

// addrsOf are addresses of the zone's servers that were not tried yet, the best first.
func (d *descent) addrsOf(z *cut, tried []netip.Addr) []netip.Addr {
	if len(tried) >= maxAsked {
		return nil
	}
	now := d.now()
	var all []netip.Addr
	for _, name := range z.names {
		found := z.glue[name]
		if h, ok := d.host(name, now); ok {
			found = slices.Concat(found, h.addrs)
		}
		for _, a := range found {
			if (d.local || !a.IsLoopback()) && !slices.Contains(all, a) && !slices.Contains(tried, a) {
				all = append(all, a)
			}
		}
	}
	rank := map[netip.Addr]int64{}
	for _, a := range all {
		if rank[a] = d.rank(a, now); z.shunned(a, now) {
			rank[a] += 40_000
		}
	}
	slices.SortFunc(all, func(a, b netip.Addr) int { return int(rank[a] - rank[b]) })
	return all[:min(len(all), maxAsked-len(tried))]
}

// rank orders servers: those that answer fast first, those that are not known in between, those that did not answer last. Within 100 ms it is chance, so
// that no forger knows whom we ask.
func (a *authorities) rank(addr netip.Addr, now time.Time) int64 {
	s := a.server(addr)
	rtt := time.Duration(s.rtt.Load())
	if rtt == 0 {
		rtt = 50 * time.Millisecond
	}
	r := int64(rtt/time.Millisecond) + rand.Int64N(100)
	if now.UnixNano() < s.rest.Load() {
		r += 10_000
	}
	if now.UnixNano()-a.noRoute[family(addr)].Load() < int64(serverRest) {
		r += 20_000
	}
	return r
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func (a *authorities) server(addr netip.Addr) *authority {
	a.smu.Lock()
	defer a.smu.Unlock()
	s := a.servers[addr]
	if s == nil {
		if len(a.servers) >= maxServers {
			a.servers = map[netip.Addr]*authority{}
		}
		s = &authority{plain: newPlain(a.dialer, netip.AddrPortFrom(addr, a.port).String())}
		s.foreign = !a.local
		a.servers[addr] = s
	}
	return s
}

// lookUp looks up addresses of servers of the cut that have none yet, a few only, and says whether there are more than before.
func (d *descent) lookUp(ctx context.Context, z *cut, seeking []string) (more bool, err error) {
	if d.names == nil {
		d.names = map[string]int{}
	}
	names := slices.Clone(z.names)
	rand.Shuffle(len(names), func(i, k int) { names[i], names[k] = names[k], names[i] })
	for _, name := range names {
		if _, known := d.host(name, d.now()); known || len(z.glue[name]) > 0 || slices.Contains(seeking, name) {
			continue
		}
		// What lies in the zone itself cannot be found without it.
		if within(name, z.zone) || d.names[z.zone] >= maxLookedUp || d.hosts >= maxHostsInAll {
			continue
		}
		d.names[z.zone]++
		d.hosts++
		h, err := d.findHost(ctx, name, append(slices.Clone(seeking), name))
		if err != nil {
			return false, err
		}
		d.putHost(name, h)
		if len(h.addrs) > 0 {
			return true, nil
		}
	}
	return false, nil
}

// findHost looks up where a server is. Only what ends the whole descent is an error; a name that is nowhere is a host without addresses.
func (d *descent) findHost(ctx context.Context, name string, seeking []string) (host, error) {
	now := d.now()
	h := host{until: now.Add(minHostTTL)}
	types := []uint16{dns.TypeA, dns.TypeAAAA}
	if now.UnixNano()-d.noRoute[0].Load() < int64(serverRest) {
		slices.Reverse(types)
	}
	for _, t := range types {
		z, m, err := d.resolve(ctx, name, t, seeking)
		if errors.Is(err, dnssec.ErrSpent) || ctx.Err() != nil {
			return h, err
		}
		if err != nil {
			continue
		}
		for _, rr := range m.Answer { // a server's name is no alias (RFC 2181, 10.3)
			a, ok := addrOf(rr)
			if !ok || dns.CanonicalName(rr.Header().Name) != name || !within(name, z.zone) || len(h.addrs) >= maxGlue {
				continue
			}
			h.addrs = append(h.addrs, a)
			h.until = now.Add(min(max(time.Duration(rr.Header().Ttl)*time.Second, minHostTTL), maxCutTTL))
		}
		if len(h.addrs) > 0 {
			break
		}
	}
	return h, nil
}

// step asks servers for one name, together with all descents that come this way at this time.
func (d *descent) step(ctx context.Context, z *cut, name string, rrtype uint16, addrs []netip.Addr) (*dns.Msg, error) {
	key := fmt.Sprint(z.zone, " ", name, " ", rrtype, " ", addrs[0])
	for try := 0; ; try++ {
		mine := false
		ch := d.steps.DoChan(key, func() (any, error) {
			mine = true
			// It goes on for others when who began it has left.
			sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepTimeout)
			defer cancel()
			return d.askServers(sctx, z, name, rrtype, addrs)
		})
		select {
		case r := <-ch:
			if r.Err == nil {
				return r.Val.(*dns.Msg), nil
			}
			if errors.Is(r.Err, dnssec.ErrSpent) && !mine && try == 0 { // another lookup's means have ended, not ours
				continue
			}
			return nil, r.Err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// askServers asks one after the other until one answers for the zone.
func (d *descent) askServers(ctx context.Context, z *cut, name string, rrtype uint16, addrs []netip.Addr) (*dns.Msg, error) {
	q := new(dns.Msg)
	q.SetQuestion(name, rrtype)
	q.RecursionDesired, q.CheckingDisabled = false, true
	q.SetEdns0(udpSize, true)
	won, bad, ok := race{
		tries: len(addrs), round: len(addrs),
		patience: func(i int) time.Duration { return d.server(addrs[i]).patience() },
		try: func(ctx context.Context, i int) (*dns.Msg, error) {
			if d.sends.Add(-1) < 0 || !dnssec.Spend(ctx) {
				return nil, dnssec.ErrSpent
			}
			m, err := d.askServer(ctx, addrs[i], q)
			if err == nil && !serves(z, name, m) {
				z.shun(addrs[i], d.now())
				m, err = nil, errLame
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", addrs[i], err)
			}
			return m, nil
		},
		good: func(*dns.Msg) bool { return true },
	}.run(ctx)
	switch {
	case ok:
		return won.msg, nil
	case d.sends.Load() < 0:
		return nil, dnssec.ErrSpent
	case bad.err != nil:
		return nil, bad.err
	}
	return nil, errors.New("no server of the zone answers in time")
}

// patience is how long a server is waited for before the next one is asked too.
func (s *authority) patience() time.Duration {
	rtt := time.Duration(s.rtt.Load())
	if rtt == 0 {
		return serverFirst
	}
	return min(max(3*rtt, 50*time.Millisecond), serverMost)
}

// askServer asks one server, and notes how it was.
func (a *authorities) askServer(ctx context.Context, addr netip.Addr, q *dns.Msg) (*dns.Msg, error) {
	s, began := a.server(addr), a.now()
	m, err := s.plain.ask(ctx, q)
	if err == nil && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) && m.IsEdns0() == nil && !s.noEDNS.Load() {
		s.noEDNS.Store(true) // RFC 6891, 7: it may be older than EDNS; its zones are not signed then
		m, err = s.plain.ask(ctx, q)
	}
	switch took := a.now().Sub(began); {
	case err == nil:
		old := s.rtt.Load()
		if old == 0 {
			old = int64(took)
		}
		s.rtt.Store(max((7*old+int64(took))/8, 1))
		s.rest.Store(0)
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAFNOSUPPORT):
		a.noRoute[family(addr)].Store(a.now().UnixNano())
	case errors.Is(ctx.Err(), context.DeadlineExceeded) || isRefused(err):
		s.rest.Store(a.now().Add(serverRest).UnixNano())
	case took > s.patience(): // another one was faster
		s.rtt.Store(int64(max(took, time.Duration(s.rtt.Load()))))
	}
	return m, err
}

func isRefused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && !op.Timeout()
}

// serves says whether an answer is from a server that has the zone: it has authority, or refers further down.
func serves(z *cut, name string, m *dns.Msg) bool {
	if !usable(m.Rcode) {
		return false
	}
	return m.Authoritative || referral(z, name, m, time.Time{}) != nil
}
