package resolver

import (
	"context"
	"fmt"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// flight is a lookup under way. Everybody who asks the same question waits for it, each as long as he likes; it ends by itself.
type flight struct {
	done  chan struct{}
	whole bool   // somebody wants the records; the server's mutex
	e     *entry // after done
}

// owned is a question and whose it is: nobody waits for a lookup that stands behind another user's.
type owned struct {
	question
	by string
}

// pending is an answer that is here (e) or on its way (f).
type pending struct {
	e *entry
	f *flight
}

// ready is the answer if it is here, else nil.
func (p pending) ready() *entry {
	if p.e != nil {
		return p.e
	}
	select {
	case <-p.f.done:
		return p.f.e
	default:
		return nil
	}
}

// start takes the answer from the cache, or joins the user's lookup under way, or begins one. A denial of a key may come without its proof.
func (s *Server) start(by, name string, typ uint16) pending { return s.begin(by, name, typ, false) }

// begin is start; whole wants the records of a denial, too.
func (s *Server) begin(by, name string, typ uint16, whole bool) pending {
	q := owned{question{name, typ}, by}
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.cache.get(q.question, now); e != nil && !(whole && e.bare) {
		s.stats.cached.Add(1)
		return pending{e: e}
	}
	if f := s.flights[q]; f != nil {
		f.whole = f.whole || whole
		return pending{f: f}
	}
	if s.closed || !s.under.Try(by) {
		s.stats.overload.Add(1)
		return pending{e: failed(q.question, now, dns.ExtendedErrorCodeNotReady, "too many lookups under way")}
	}
	f := &flight{done: make(chan struct{}), whole: whole}
	s.flights[q] = f
	s.wg.Add(1)
	go s.land(q, f, s.usual(q.question))
	return pending{f: f}
}

// land is a lookup under way. It may outlive the query that began it: the next one finds the answer in the cache. Its
// bound is twice the hold, so that a cold cache behind a slow recursor still fills, while what never comes goes away.
func (s *Server) land(q owned, f *flight, lookup func(context.Context) (dnssec.Answer, error)) {
	defer s.wg.Done()
	defer s.under.Give(q.by)
	ctx, cancel := dnssec.Bounded(s.base, 2*s.cfg.Hold)
	defer cancel()
	e := s.ask(dnssec.OnBehalf(ctx, q.by), q.question, lookup)
	s.mu.Lock()
	delete(s.flights, q)
	if f.whole {
		s.cache.put(e)
	} else {
		s.cache.put(e.withoutProof())
	}
	s.mu.Unlock()
	f.e = e
	close(f.done)
}

// usual is a lookup by the Lookuper.
func (s *Server) usual(q question) func(context.Context) (dnssec.Answer, error) {
	return func(ctx context.Context) (dnssec.Answer, error) { return s.cfg.Lookup.Lookup(ctx, q.name, q.typ) }
}

// ask makes an entry of a lookup. A panic under it costs this answer, not the host's DNS.
func (s *Server) ask(ctx context.Context, q question, lookup func(context.Context) (dnssec.Answer, error)) (e *entry) {
	defer func() {
		if r := recover(); r != nil {
			s.stats.panics.Add(1)
			s.log.Error("lookup panicked", "name", q.name, "type", dns.Type(q.typ), "err", fmt.Sprint(r))
			e = failed(q, s.now(), dns.ExtendedErrorCodeOther, "internal error")
		}
	}()
	s.stats.lookups.Add(1)
	a, err := lookup(ctx)
	if err != nil {
		return failed(q, s.now(), dns.ExtendedErrorCodeNetworkError, err.Error())
	}
	return newEntry(q, a, s.now())
}

// wait returns the answer, or a failure when ctx ends first; it is never nil.
func (s *Server) wait(ctx context.Context, q question, p pending) *entry {
	if e := p.ready(); e != nil {
		return e
	}
	select {
	case <-p.f.done:
		return p.f.e
	case <-ctx.Done():
		s.stats.timedOut.Add(1)
		return failed(q, s.now(), dns.ExtendedErrorCodeNoReachableAuthority, "no answer in time")
	}
}

// lookup is begin and wait, with all records.
func (s *Server) lookup(ctx context.Context, by, name string, typ uint16) *entry {
	return s.wait(ctx, question{name, typ}, s.begin(by, name, typ, true))
}

// failed is the entry of a lookup that brought nothing.
func failed(q question, now time.Time, ede uint16, why string) *entry {
	return newEntry(q, dnssec.Answer{Status: dnssec.Indeterminate, Rcode: dns.RcodeServerFailure, Why: why, EDE: ede}, now)
}

// Flush forgets every answer, as after a change of network; lookups under way go on.
func (s *Server) Flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cache = newCache()
}
