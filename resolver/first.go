package resolver

import (
	"context"
	"sync"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// A lookup behind a forwarder nearby takes a fraction of a millisecond, and much of it would be goroutines that wait for each other: each of these waits
// puts a thread to sleep and wakes another. So the reader of a socket does the lookups of an address and its key himself, as long as nothing else
// wants him: when the answer is not there in a moment, or another query comes in, the socket gets a new reader, and all goes on as it otherwise would.

// Beginner is a Lookuper that can begin a lookup without waiting; *dnssec.Validator is one. Begin may return nil.
type Beginner interface {
	Begin(name string, rrtype uint16) *dnssec.Begun
}

// errand is the lookups for one query.
type errand struct {
	s     *Server
	legs  []leg // the first is what was asked for, the second its key
	left  bool  // the reader has gone: somebody else answers
	leave func()
}

// leg is one lookup.
type leg struct {
	q     owned
	f     *flight
	begun *dnssec.Begun // nil: it takes the usual way
	taken bool          // by a goroutine of its own
}

// first answers a plain query for an address that the cache has not, appended to out, if that takes only a moment. ok is false where nobody has answered
// yet. If it takes longer, resume is called, and somebody else has to answer and to read the socket: left. file is the socket's.
func (s *Server) first(packet, out []byte, file int, resume func()) (answer []byte, ok, left bool) {
	e := &errand{s: s}
	defer func() {
		if recover() != nil { // serve meets it again, and reports it
			answer, ok, left = nil, false, e.left
		}
	}()
	begin, can := s.cfg.Lookup.(Beginner)
	var buf [256]byte
	a, plain := readAsk(packet, buf[:0])
	if !can || !plain || s.cfg.Observe || a.typ != dns.TypeA && a.typ != dns.TypeAAAA {
		return nil, false, false
	}
	interest := s.interest(string(a.name))
	if interest == Refuse || s.crowded() || !s.slots.Try("") {
		return nil, false, false
	}
	defer s.slots.Give("")
	key, ok := e.claim(string(a.name), a.typ, interest == AskKey)
	if !ok {
		return nil, false, false
	}
	e.leave = sync.OnceFunc(func() {
		e.left = true
		e.spread()
		resume()
	})
	e.run(begin, file)
	if e.left {
		return nil, false, true
	}
	if len(e.legs) > 1 {
		key = e.legs[1].f.e
	}
	answer, ok = s.deliver(&a, packet, out, e.legs[0].f.e, key)
	return answer, ok, false
}

// claim makes the flights of a query, if all of them are to be made now; key is the key's entry, if it is here already.
func (e *errand) claim(name string, typ uint16, wanted bool) (key *entry, ok bool) {
	s, now := e.s, e.s.now()
	want := []owned{{question: question{name, typ}}}
	s.mu.Lock()
	defer s.mu.Unlock()
	if wanted {
		if key = s.cache.get(question{name, dns.TypeIPSECKEY}, now); key == nil {
			want = append(want, owned{question: question{name, dns.TypeIPSECKEY}})
		}
	}
	if s.cache.get(want[0].question, now) != nil || s.closed {
		return nil, false
	}
	for _, q := range want {
		if s.flights[q] != nil {
			return nil, false
		}
	}
	for i := range want {
		if !s.under.Try("") {
			for range i {
				s.under.Give("")
			}
			return nil, false
		}
	}
	for i, q := range want {
		f := &flight{done: make(chan struct{}), whole: i == 0}
		s.flights[q] = f
		s.wg.Add(1)
		e.legs = append(e.legs, leg{q: q, f: f})
	}
	return key, true
}

// run asks both questions before it waits for the first answer. They are read and proven one after the other: another thread would have to be waked for
// the second, and on an idle processor that takes longer than a signature.
func (e *errand) run(begin Beginner, file int) {
	for i := range e.legs {
		e.legs[i].begin(begin)
	}
	for i := range e.legs {
		l := &e.legs[i]
		if l.begun == nil {
			e.leave()
		}
		if !l.taken {
			l.taken = true
			e.s.land(l.q, l.f, l.lookup(e.s, file, e.leave))
		}
	}
}

// begin sets begun, if nothing goes wrong: the usual way meets it again, and reports it.
func (l *leg) begin(by Beginner) {
	defer func() {
		if recover() != nil {
			l.begun = nil
		}
	}()
	l.begun = by.Begin(l.q.name, l.q.typ)
}

// spread has the lookups that are not under way here done by goroutines.
func (e *errand) spread() {
	for i := range e.legs {
		if l := &e.legs[i]; !l.taken {
			l.taken = true
			go e.s.land(l.q, l.f, l.lookup(e.s, -1, func() {}))
		}
	}
}

// lookup is what ask is to do.
func (l *leg) lookup(s *Server, file int, leave func()) func(context.Context) (dnssec.Answer, error) {
	if l.begun == nil {
		return s.usual(l.q.question)
	}
	return func(ctx context.Context) (dnssec.Answer, error) { return l.begun.Answer(ctx, file, leave) }
}

// deliver answers with what was looked up, if that may leave at once. The Watcher is asked as for every first answer.
func (s *Server) deliver(a *asked, packet, out []byte, e, key *entry) (answer []byte, ok bool) {
	now := s.now()
	answer, watched, ok := s.compose(a, packet, out, e, key, now)
	if !ok {
		return nil, false
	}
	if watched {
		ctx, cancel := dnssec.Bounded(s.base, s.cfg.Hold)
		defer cancel()
		if v := s.cfg.Watcher.Watch(ctx, a.found(e, key, now)); len(v.Withhold) > 0 {
			return nil, false
		}
		s.stats.watched.Add(1)
	}
	s.stats.queries.Add(1)
	return answer, true
}
