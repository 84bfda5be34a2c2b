package dnssec

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// manyWays is a Rerouter whose own choice has a fault, and whose ways 1 to n have what is left of it.
type manyWays struct {
	good   Exchanger
	ways   []int
	fault  func(q dns.Question, way int) error // nil: a good answer
	strip  func(q dns.Question, way int) bool  // without signatures
	chosen atomic.Int32                        // calls of Chosen
	asked  [10]atomic.Int32                    // by way
}

func (u *manyWays) Ways() []int { return u.ways }
func (u *manyWays) Chosen(string, uint16, int, string) {
	u.chosen.Add(1)
}
func (u *manyWays) Exchange(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	way := Way(ctx)
	u.asked[way].Add(1)
	if u.fault != nil {
		if err := u.fault(q.Question[0], way); err != nil {
			return nil, err
		}
	}
	Carried(ctx, "way "+string(rune('0'+way)), "")
	m, err := u.good.Exchange(ctx, q)
	if err == nil && u.strip != nil && u.strip(q.Question[0], way) {
		m = m.Copy()
		for _, section := range []*[]dns.RR{&m.Answer, &m.Ns} {
			var kept []dns.RR
			for _, rr := range *section {
				if rr.Header().Rrtype != dns.TypeRRSIG {
					kept = append(kept, rr)
				}
			}
			*section = kept
		}
	}
	return m, err
}

// A name takes the way that its proof came, and nothing else does; what the answer says of it is the way of its data.
func TestRoutes(t *testing.T) {
	w, a := hierarchy(t)
	u := &manyWays{good: w, ways: []int{1, 2}, strip: func(q dns.Question, way int) bool { return q.Name == bob && way < 2 }}
	v := New(u, a, WithClock(clock))
	for range 3 {
		got, err := v.Lookup(t.Context(), bob, dns.TypeA)
		if err != nil || got.Status != Secure || got.Via != "way 2" || got.Detour == "" {
			t.Fatalf("got %v by %q since %q, %v", got.Status, got.Via, got.Detour, err)
		}
		other, err := v.Lookup(t.Context(), "alice.signed.test.", dns.TypeA)
		if err != nil || other.Status < Insecure || other.Via == "way 2" || other.Detour != "" {
			t.Errorf("another name: %v by %q since %q, %v", other.Status, other.Via, other.Detour, err)
		}
	}
	if n, first := u.chosen.Load(), u.asked[1].Load(); n != 1 || first > 8 {
		t.Errorf("chosen %d times; %d questions by the way that does not help", n, first)
	}
	// When that way fails too, the others are tried again.
	u.strip = func(q dns.Question, way int) bool { return q.Name == bob && way > 0 }
	if got, err := v.Lookup(t.Context(), bob, dns.TypeA); err != nil || got.Status != Secure || got.Via != "way 0" || got.Detour != "" {
		t.Errorf("got %v by %q since %q, %v", got.Status, got.Via, got.Detour, err)
	}
	v.Flush()
	if got, err := v.Lookup(t.Context(), bob, dns.TypeA); err != nil || got.Via != "way 0" {
		t.Errorf("got by %q, %v", got.Via, err)
	}
}

// No answer is worth another way where the zone is signed; names of unsigned zones stay with whom the Rerouter chose.
func TestSilenceIsRerouted(t *testing.T) {
	w, a := hierarchy(t)
	silent := errors.New("silent")
	u := &manyWays{good: w, ways: []int{1}, fault: func(q dns.Question, way int) error {
		if way == 0 && !Crucial(q.Qtype) {
			return silent
		}
		return nil
	}}
	v := New(u, a, WithClock(clock))
	if got, err := v.Lookup(t.Context(), bob, dns.TypeA); err != nil || got.Status != Secure || got.Via != "way 1" || !strings.Contains(got.Detour, "silent") {
		t.Errorf("got %v by %q since %q, %v", got.Status, got.Via, got.Detour, err)
	}
	before := u.asked[1].Load()
	if got, err := v.Lookup(t.Context(), "www.plain.test.", dns.TypeA); err != nil || got.Status != Indeterminate {
		t.Errorf("an unsigned name: %v, %v", got.Status, err)
	}
	if n := u.asked[1].Load() - before; n > 0 {
		t.Errorf("%d questions about an unsigned name went another way", n)
	}
}

// A question that is shared with a lookup whose means end is asked again by the one that has means.
func TestSharedQuestionIsNotSpent(t *testing.T) {
	w, a := hierarchy(t)
	began, wait := make(chan struct{}, 9), make(chan struct{})
	up := exchangerFunc(func(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
		began <- struct{}{}
		<-wait
		if !Spend(ctx) {
			return nil, ErrSpent
		}
		return w.Exchange(ctx, q)
	})
	v := New(up, a, WithClock(clock))
	poor, rich := newBudget(), newBudget()
	poor.sends.Store(0)
	q := question{bob, dns.TypeA}
	done := make(chan error, 2)
	go func() { _, err := v.exchange(q, 0, poor); done <- err }()
	<-began
	go func() { _, err := v.exchange(q, 0, rich); done <- err }()
	time.Sleep(20 * time.Millisecond) // so that it has joined
	close(wait)
	one, two := <-done, <-done
	if (one == nil) == (two == nil) || !errors.Is(errors.Join(one, two), ErrSpent) {
		t.Errorf("got %v and %v, want one error", one, two)
	}
}

// However many ways there are, a few are tried, the last one among them, and the work budget is one for all.
func TestWaysAreBounded(t *testing.T) {
	w, a := hierarchy(t)
	u := &manyWays{good: w, ways: []int{1, 2, 3, 4, 5, 6, 7}, strip: func(_ dns.Question, way int) bool { return way < 7 }}
	if got, err := New(u, a, WithClock(clock)).Lookup(t.Context(), bob, dns.TypeA); err != nil || got.Status != Secure || got.Via != "way 7" {
		t.Errorf("got %v by %q, %v", got.Status, got.Via, err)
	}
	if u.asked[4].Load()+u.asked[5].Load()+u.asked[6].Load() > 0 {
		t.Error("more ways were tried than maxWays")
	}
	// An Exchanger that needs many questions for one has no more than the lookup's.
	var spent atomic.Int32
	greedy := exchangerFunc(func(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
		for Spend(ctx) {
			spent.Add(1)
		}
		return nil, errors.New("spent")
	})
	v := New(&manyWays{good: greedy, ways: []int{1, 2, 3}}, a, WithClock(clock))
	if _, err := v.Lookup(t.Context(), bob, dns.TypeA); err != nil {
		t.Fatal(err)
	}
	if n := spent.Load(); n != maxSends {
		t.Errorf("%d sub-queries, want %d", n, maxSends)
	}
}
