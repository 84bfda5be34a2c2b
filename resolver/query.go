package resolver

import (
	"context"
	"fmt"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// query is one client's question on its way. Its context ends with the hold, counted from its arrival: everything below that may
// wait takes it, so that no step needs a bound of its own.
type query struct {
	req  *dns.Msg
	name string // canonical
	typ  uint16
	do   bool // DNSSEC records wanted (RFC 3225)
	cd   bool // checking disabled (RFC 4035, 3.2.2)
	ad   bool // AD wanted (RFC 6840, 5.7)
	in   time.Time
	by   string // the user, where that matters: see who
}

// respond answers a query within the hold, whatever the upstream does (I5).
func (s *Server) respond(req *dns.Msg, from origin) *dns.Msg {
	s.stats.queries.Add(1)
	if r := refuse(req); r != nil {
		return r
	}
	by := s.who(from)
	if !s.slots.Try(by) {
		s.stats.overload.Add(1)
		return failure(req, dns.RcodeServerFailure, dns.ExtendedErrorCodeNotReady, "too many queries under way")
	}
	defer s.slots.Give(by)
	opt := req.IsEdns0()
	q := &query{
		req: req, name: dns.CanonicalName(req.Question[0].Name), typ: req.Question[0].Qtype, in: s.now(),
		do: opt != nil && opt.Do(), cd: req.CheckingDisabled, ad: req.AuthenticatedData, by: by,
	}
	ctx, cancel := context.WithTimeout(s.base, s.cfg.Hold)
	defer cancel()
	return s.resolve(ctx, q)
}

// resolve decides by the name's class and the type. A panic costs this answer only.
func (s *Server) resolve(ctx context.Context, q *query) (r *dns.Msg) {
	defer func() {
		if p := recover(); p != nil {
			s.stats.panics.Add(1)
			s.log.Error("query panicked", "name", q.name, "type", dns.Type(q.typ), "err", fmt.Sprint(p))
			r = failure(q.req, dns.RcodeServerFailure, dns.ExtendedErrorCodeOther, "internal error")
		}
	}()
	interest := s.interest(q.name)
	switch {
	case interest == Refuse && !s.cfg.Observe:
		return s.block(q, q.name)
	case q.typ == dns.TypeANY || q.typ == dns.TypeRRSIG:
		return s.whole(ctx, q, interest == AskKey && !s.cfg.Observe)
	case carriesAddresses(q.typ) && interest == AskKey:
		return s.guarded(ctx, q)
	}
	e := s.lookup(ctx, q.by, q.name, q.typ)
	if s.cfg.Observe {
		return s.reply(q, e, nil, 0)
	}
	if s.interest(e.owner) == Refuse {
		return s.block(q, e.owner)
	}
	if carriesAddresses(q.typ) && e.owner != q.name && s.interest(e.owner) == AskKey {
		return s.guarded(ctx, q) // which name's rule counts is the Watcher's to weigh, who is told both
	}
	return s.plain(q, e)
}

func (s *Server) interest(name string) Interest {
	if s.cfg.Watcher == nil {
		return SkipKey
	}
	return s.cfg.Watcher.Interest(name)
}

func (s *Server) block(q *query, name string) *dns.Msg {
	s.stats.blocked.Add(1)
	return failure(q.req, dns.RcodeRefused, dns.ExtendedErrorCodeBlocked, name+" is of class block")
}

// bootstraps says whether an answer that cannot be proven for want of a clock is one to set the clock by (TRUST.md, A-43). It claims nothing: it is for
// addresses only, goes out without AD and with a TTL of 0, and no policy follows from it.
func (s *Server) bootstraps(q *query, e *entry) bool {
	return e.unclocked && e.answered && (q.typ == dns.TypeA || q.typ == dns.TypeAAAA) && s.cfg.TimeServer != nil && s.cfg.TimeServer(q.name)
}

// plain releases an answer without addresses, or of a name that no key is asked for.
func (s *Server) plain(q *query, e *entry) *dns.Msg {
	if s.bootstraps(q, e) {
		return s.reply(q, e, nil, 0)
	}
	if !e.good() && !(q.cd && e.answered) {
		return s.unproven(q, e)
	}
	return s.reply(q, e, nil, 0)
}

// unproven is the answer to what is bogus or could not be found out: SERVFAIL and the reason. RFC 4035, 5.5: "If the resolver
// ... was unable to verify ... the name server MUST return RCODE 2 to the originating client", unless CD is set.
func (s *Server) unproven(q *query, e *entry) *dns.Msg {
	if e.status == dnssec.Bogus {
		s.stats.bogus.Add(1)
	}
	s.log.Debug("unproven", "name", q.name, "type", dns.Type(q.typ), "state", e.status, "why", e.why())
	return failure(q.req, dns.RcodeServerFailure, e.ede(), e.why())
}

// guarded answers a query for addresses of a name that deserves a key. Address and key are asked in parallel.
func (s *Server) guarded(ctx context.Context, q *query) *dns.Msg {
	key := s.start(q.by, q.name, dns.TypeIPSECKEY)
	e := s.lookup(ctx, q.by, q.name, q.typ)
	// What the address answer is worth comes first. Bogus data is refused whatever the key says; a denial, or a service record
	// without hints, has nothing to protect and waits for no key.
	if s.cfg.Observe {
		s.observe(q, e, key)
		return s.reply(q, e, nil, 0)
	}
	if s.bootstraps(q, e) {
		return s.reply(q, e, nil, 0)
	}
	if !e.good() && !(q.cd && e.answered) {
		return s.unproven(q, e)
	}
	gs := e.groups()
	for _, g := range append([]group{{owner: e.owner}}, gs...) {
		if g.owner != q.name && s.interest(g.owner) == Refuse {
			return s.block(q, g.owner)
		}
	}
	if len(gs) == 0 {
		return s.reply(q, e, nil, 0)
	}
	return s.release(ctx, q, e, s.watch(ctx, q, e, key))
}

// observe lets the Watcher decide beside the answer, for its log (--observe). It takes a slot of its own, so that observing is
// bounded as answering is; when there is none the decision is not made, and nobody is harmed.
func (s *Server) observe(q *query, e *entry, key pending) {
	if len(e.groups()) == 0 {
		return
	}
	if !s.slots.Try(q.by) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		s.slots.Give(q.by)
		return
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		defer s.slots.Give(q.by)
		ctx, cancel := context.WithTimeout(s.base, s.cfg.Hold)
		defer cancel()
		v := s.watch(ctx, q, e, key)
		for _, w := range v.withheld {
			s.log.Info("would withhold", "name", q.name, "addr", w.Addr, "why", w.Why)
		}
	}()
}
