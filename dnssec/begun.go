package dnssec

import (
	"context"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Sender is an Exchanger that can ask without waiting.
type Sender interface {
	Exchanger
	// Send sends q; nil if that is not as easy as that, and Exchange is to ask.
	Send(q *dns.Msg) Sent
}

// Sent is a question that was sent. It belongs to one goroutine, which calls Brief once and, if nothing came, Rest.
type Sent interface {
	// Brief waits for less than it takes to put a goroutine to sleep and wake it where the answer is near, and no longer than until the file also (negative:
	// none) is ready to be read. It holds the thread. Nil: no good answer came.
	Brief(ctx context.Context, also int) *dns.Msg
	// Rest waits for what Exchange would have brought.
	Rest(ctx context.Context) (*dns.Msg, error)
}

// Begun is a Lookup whose first question is on its way. It belongs to one goroutine.
type Begun struct {
	v    *Validator
	l    *lookup
	now  time.Time
	work *budget
	to   route
}

// Begin begins a Lookup of a canonical name. Nil: it takes more than a question that is sent, so that it is Lookup's. What it returns has to be finished
// with Answer. Questions under way that others wait for are not joined.
func (v *Validator) Begin(name string, rrtype uint16) *Begun {
	send, ok := v.Exchanger.(Sender)
	now := v.Now()
	if !ok || v.rules.delegated || rrtype == dns.TypeDS || rrtype == dns.TypeDNSKEY || now.Before(v.rules.floor) {
		return nil
	}
	return v.begin(name, rrtype, "", now, send)
}

// Answer is the other half of the Lookup. It calls leave, once at the most, before it waits longer than for a moment or computes more than most lookups
// need, or when another file is ready to be read meanwhile, unless that is negative.
func (b *Begun) Answer(ctx context.Context, also int, leave func()) (Answer, error) {
	b.l.also, b.l.leaves = also, sync.OnceFunc(leave)
	return b.finish(ctx)
}

// leave is called before any wait that may be long, and before much work.
func (c *checker) leave() {
	if c.leaves != nil {
		c.leaves()
	}
}

// send is ask without a goroutine: the answer is received by who waits for it. What takes a way of its own is not sent by the Sender's choice.
func (s *session) send(q question, by Sender) bool {
	if s.way != 0 || !s.work.query() {
		return false
	}
	sent := by.Send(s.v.query(q))
	if sent == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[q] = &future{q: q, sent: sent, work: &errand{work: s.work}}
	return true
}

// receive is wait for what was sent. Only the one lookup whose question it is comes here, and once.
func (s *session) receive(ctx context.Context, f *future) (*dns.Msg, error) {
	ctx = f.work.in(ctx)
	m, err := f.sent.Brief(ctx, s.also), error(nil)
	if m == nil {
		s.leave()
		rest, cancel := context.WithTimeout(ctx, fetchTimeout)
		m, err = f.sent.Rest(rest)
		cancel()
	}
	r, err := settled(f.q, f.work, m, nil, err)
	if err == nil && !s.work.answer(int64(r.msg.Len())) {
		err = errBudget
	}
	f.by = r.by
	return r.msg, err
}

// bounded is a context with a deadline whose timer is not made before somebody waits for it: to set one wakes a thread, which costs more than most of
// what is looked up takes.
type bounded struct {
	context.Context // from which it comes
	end             time.Time

	mu     sync.Mutex // several goroutines may begin to wait
	timed  context.Context
	cancel context.CancelFunc
}

// Bounded is context.WithTimeout for what mostly ends before anybody waits.
func Bounded(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	b := &bounded{Context: ctx, end: time.Now().Add(d)}
	return b, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.timed == nil {
			b.timed, b.cancel = context.WithCancel(b.Context)
		}
		b.cancel()
	}
}

// inner is the context with the timer.
func (b *bounded) inner() context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timed == nil {
		b.timed, b.cancel = context.WithDeadline(b.Context, b.end)
	}
	return b.timed
}

// Deadline is the earlier one of its own and its parent's.
func (b *bounded) Deadline() (time.Time, bool) {
	if t, ok := b.Context.Deadline(); ok && t.Before(b.end) {
		return t, true
	}
	return b.end, true
}

// Done makes the timer.
func (b *bounded) Done() <-chan struct{} { return b.inner().Done() }

// Err makes no timer.
func (b *bounded) Err() error {
	b.mu.Lock()
	timed := b.timed
	b.mu.Unlock()
	switch {
	case timed != nil:
		return timed.Err()
	case b.Context.Err() != nil:
		return b.Context.Err()
	case !time.Now().Before(b.end):
		return b.inner().Err()
	}
	return nil
}

// Value is the inner context's, which knows how to be a parent without a goroutine, once there is one.
func (b *bounded) Value(key any) any {
	b.mu.Lock()
	timed := b.timed
	b.mu.Unlock()
	if timed != nil {
		return timed.Value(key)
	}
	return b.Context.Value(key)
}
