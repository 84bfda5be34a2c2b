package dnssec

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/miekg/dns"
)

// Times and sizes of the conversation with the upstream.
const (
	fetchTimeout  = 5 * time.Second  // one question; it goes on for others when the one who asked it has left
	lookupTimeout = 20 * time.Second // one lookup, with all its aliases and ways
	walkTimeout   = 15 * time.Second // one zone's keys, with all above them
	udpSize       = 1232             // octets, EDNS: the DNS flag day's; answers above it come by TCP
	bogusTTL      = 5 * time.Second  // how long a broken delegation is remembered: bounds the work that it can cause
	maxTTL        = 24 * time.Hour   // how long any delegation is remembered, or answer believed
	maxNegative   = 3 * time.Hour    // how long a denial is believed (RFC 2308, 5)
)

// question is what is asked of the upstream.
type question struct {
	name   string
	rrtype uint16
}

// netError is a question that was not answered, or not with an answer.
type netError struct {
	q   question
	ede uint16
	err error
}

func (e *netError) Error() string {
	return fmt.Sprintf("%s %s: %v", e.q.name, typeName(e.q.rrtype), e.err)
}
func (e *netError) Unwrap() error { return e.err }

var errBudget = errors.New("the work budget of the lookup is used up")

// reply is an answer, which nobody may change, and how it came.
type reply struct {
	msg     *dns.Msg
	by      carriage
	refused *refusal // with WithDelegation: why it comes with CD only
}

// exchange asks the upstream once, on behalf of work. Lookups with the same question in flight share the answer.
func (v *Validator) exchange(q question, way int, work *budget) (r reply, err error) {
	for range 3 {
		mine := false
		if r, mine, err = v.exchangeOnce(q, way, work); mine || !errors.Is(err, ErrSpent) {
			break
		} // another lookup's means have ended there, not ours
	}
	return r, err
}

// exchangeOnce is exchange with those who ask at this time. mine: it was done on behalf of work.
func (v *Validator) exchangeOnce(q question, way int, work *budget) (_ reply, mine bool, _ error) {
	res, err, _ := v.questions.Do(work.key(byWay(q.name+"/"+typeName(q.rrtype), way)), func() (any, error) {
		mine = true
		ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
		defer cancel()
		e := &errand{way: way, work: work}
		m := v.query(q)
		r, err := v.Exchanger.Exchange(e.in(ctx), m)
		var refused *refusal
		if v.rules.delegated && err == nil && r != nil && r.Rcode == dns.RcodeServerFailure {
			if data, why := v.insist(e.in(ctx), q, m, r); why != nil {
				r, refused = data, why
			}
		}
		return settled(q, e, r, refused, err)
	})
	if err != nil {
		return reply{}, mine, err
	}
	return res.(reply), mine, nil
}

// query is what goes to the upstream. We judge ourselves: a validating upstream must not hide what is bogus. Or it judges.
func (v *Validator) query(q question) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.rrtype)
	m.CheckingDisabled, m.AuthenticatedData = !v.rules.delegated, v.rules.delegated
	m.SetEdns0(udpSize, true)
	return m
}

// settled is what an exchange brought, as it goes to those who asked.
func settled(q question, e *errand, r *dns.Msg, refused *refusal, err error) (reply, error) {
	if err != nil {
		return reply{}, &netError{q, dns.ExtendedErrorCodeNetworkError, err}
	}
	if err := acceptable(q, r); err != nil {
		return reply{}, &netError{q, dns.ExtendedErrorCodeNoReachableAuthority, err}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return reply{r, e.by, refused}, nil
}

// acceptable says whether r answers q at all.
func acceptable(q question, r *dns.Msg) error {
	switch {
	case r == nil:
		return errors.New("no answer")
	case !r.Response || r.Opcode != dns.OpcodeQuery || len(r.Question) != 1:
		return errors.New("the upstream's answer is no answer")
	case dns.CanonicalName(r.Question[0].Name) != q.name || r.Question[0].Qtype != q.rrtype || r.Question[0].Qclass != dns.ClassINET:
		return errors.New("the upstream answered another question")
	case r.Truncated:
		return errors.New("the upstream's answer is truncated")
	case r.Rcode != dns.RcodeSuccess && r.Rcode != dns.RcodeNameError && r.Rcode != dns.RcodeYXDomain:
		return fmt.Errorf("the upstream says %s", dns.RcodeToString[r.Rcode])
	}
	return nil
}

// future is an answer on its way.
type future struct {
	q    question
	done chan struct{}
	msg  *dns.Msg
	by   carriage
	err  error

	refused *refusal

	sent Sent // nil, or it is waited for here, by the one who asked
	work *errand
}

// wait is the answer: it belongs to the caller.
func (s *session) wait(ctx context.Context, f *future) (*dns.Msg, error) {
	if f.sent != nil {
		return s.receive(ctx, f)
	}
	select {
	case <-f.done:
	default:
		s.leave()
	}
	select {
	case <-f.done:
		if f.err != nil {
			return nil, f.err
		}
		return f.msg.Copy(), nil
	case <-ctx.Done():
		return nil, &netError{f.q, dns.ExtendedErrorCodeNetworkError, fmt.Errorf("no answer in time: %w", ctx.Err())}
	}
}

// ask starts a question, at most once a lookup. It never blocks.
func (s *session) ask(q question) *future {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.asked[q]; f != nil {
		return f
	}
	f := &future{q: q, done: make(chan struct{})}
	s.asked[q] = f
	if !s.work.query() {
		f.err = errBudget
		close(f.done)
		return f
	}
	go func() {
		r, err := s.v.exchange(q, s.way, s.work)
		f.msg, f.by, f.refused, f.err = r.msg, r.by, r.refused, err
		if f.err == nil && !s.work.answer(int64(f.msg.Len())) {
			f.msg, f.err = nil, errBudget
		}
		close(f.done)
	}()
	return f
}
