package dnssec

import (
	"context"
	"reflect"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// sending is a world that can be asked without waiting: what is prompt is there in a moment.
type sending struct {
	*world
	prompt bool
}

type sentDouble struct {
	*sending
	q *dns.Msg
}

func (s *sending) Send(q *dns.Msg) Sent { return &sentDouble{s, q} }

func (s *sentDouble) Brief(ctx context.Context, _ int) *dns.Msg {
	if !s.prompt {
		return nil
	}
	m, err := s.Exchange(ctx, s.q)
	if err != nil {
		return nil
	}
	return m
}

func (s *sentDouble) Rest(ctx context.Context) (*dns.Msg, error) { return s.Exchange(ctx, s.q) }

// A Lookup in two halves brings what a Lookup does, whether the answer is prompt or not, the zones are known or not.
func TestBegunAnswersAsLookup(t *testing.T) {
	w, a := hierarchy(t)
	w.tamper = func(q dns.Question, m *dns.Msg) {
		if dns.CanonicalName(q.Name) == "deep.ent.signed.test." && len(m.Answer) > 0 {
			m.Answer[0].(*dns.A).A[3]++
		}
	}
	prompt, late := New(&sending{w, true}, a, WithClock(clock)), New(&sending{w, false}, a, WithClock(clock))
	oracle := New(w, a, WithClock(clock))
	for range 2 {
		for _, name := range []string{"bob.signed.test.", "none.signed.test.", "any.wild.signed.test.", "alias.signed.test.", "away.signed.test.", "out.signed.test.",
			"dead.signed.test.", "loop1.signed.test.", "deep.ent.signed.test.", "ent.signed.test.", "x.old.signed.test.", "host.hashed.test.", "none.hashed.test.", "host.loose.test.",
			"www.plain.test.", "nowhere.", "."} {
			for _, rrtype := range []uint16{dns.TypeA, dns.TypeIPSECKEY} {
				want, err := oracle.Lookup(t.Context(), name, rrtype)
				if err != nil {
					t.Fatal(err)
				}
				for _, v := range []*Validator{prompt, late} {
					left := 0
					got, err := v.Begin(name, rrtype).Answer(t.Context(), -1, func() { left++ })
					if err != nil {
						t.Fatal(err)
					}
					if got.Status != want.Status || got.Rcode != want.Rcode || got.Owner != want.Owner || got.Denied != want.Denied || got.Why != want.Why || got.Until != want.Until ||
						!reflect.DeepEqual(got.Links, want.Links) || !reflect.DeepEqual(got.Chain, want.Chain) || len(got.RRs) != len(want.RRs) || len(got.Msg.Ns) != len(want.Msg.Ns) {
						t.Errorf("%s %s: %+v, want %+v", name, typeName(rrtype), got, want)
					}
					if left > 1 {
						t.Errorf("%s %s: left %d times", name, typeName(rrtype), left)
					}
				}
			}
		}
	}
}

// Who answers in the meantime is told to, before a lookup waits or computes for long, and only then.
func TestLeave(t *testing.T) {
	for _, tt := range []struct {
		what   string
		known  bool
		prompt bool
		tamper func(q dns.Question, m *dns.Msg)
		ways   bool
		want   bool
	}{
		{what: "keys known, the answer at hand", known: true, prompt: true},
		{what: "keys known, the answer late", known: true, want: true},
		{what: "keys unknown", prompt: true, want: true},
		{what: "a signature that does not hold, and many more", known: true, prompt: true, want: true, tamper: func(q dns.Question, m *dns.Msg) {
			for _, rr := range m.Answer {
				if sig, ok := rr.(*dns.RRSIG); ok {
					bad := dns.Copy(sig).(*dns.RRSIG)
					bad.Signature = "AAAA" + bad.Signature[4:]
					m.Answer = append([]dns.RR{bad, dns.Copy(bad)}, m.Answer...)
					return
				}
			}
		}},
	} {
		w, a := hierarchy(t)
		v := New(&sending{w, tt.prompt}, a, WithClock(clock))
		if tt.known {
			if _, err := v.Lookup(t.Context(), "signed.test.", dns.TypeA); err != nil {
				t.Fatal(err)
			}
		}
		w.tamper = tt.tamper
		left := false
		got, err := v.Begin("bob.signed.test.", dns.TypeA).Answer(t.Context(), -1, func() { left = true })
		if err != nil || got.Status != Secure {
			t.Errorf("%s: %v %s %v", tt.what, got.Status, got.Why, err)
		}
		if left != tt.want {
			t.Errorf("%s: left %t", tt.what, left)
		}
	}
}

// sendingWays can be asked without waiting, by the way of its own choice.
type sendingWays struct {
	*manyWays
	prompt bool
}

type sentAnyWay struct {
	*sendingWays
	q *dns.Msg
}

func (s *sendingWays) Send(q *dns.Msg) Sent { return &sentAnyWay{s, q} }

func (s *sentAnyWay) Brief(ctx context.Context, _ int) *dns.Msg {
	if !s.prompt {
		return nil
	}
	m, _ := s.Exchange(ctx, s.q)
	return m
}

func (s *sentAnyWay) Rest(ctx context.Context) (*dns.Msg, error) { return s.Exchange(ctx, s.q) }

// A name whose proof comes by another way than the Exchanger's choice takes that way, also where the lookup is in two halves.
func TestBegunTakesTheWayOfItsProof(t *testing.T) {
	for _, prompt := range []bool{true, false} {
		w, a := hierarchy(t)
		u := &sendingWays{&manyWays{good: w, ways: []int{1, 2}, strip: func(q dns.Question, way int) bool { return q.Name == bob && way < 2 }}, prompt}
		v := New(u, a, WithClock(clock))
		for round := range 3 {
			got, err := v.Begin(bob, dns.TypeA).Answer(t.Context(), -1, func() {})
			if err != nil || got.Status != Secure || got.Via != "way 2" || got.Detour == "" {
				t.Errorf("prompt %t, round %d: %v by %q (%s), %s, %v; want Secure by way 2", prompt, round, got.Status, got.Via, got.Detour, got.Why, err)
			}
		}
		if n := u.chosen.Load(); n != 1 {
			t.Errorf("prompt %t: the way was looked for %d times", prompt, n)
		}
	}
}

// What needs more than a question that is sent, does not begin.
func TestBeginNothing(t *testing.T) {
	w, a := hierarchy(t)
	for what, b := range map[string]*Begun{
		"an Exchanger that only exchanges": New(w, a, WithClock(clock)).Begin("bob.signed.test.", dns.TypeA),
		"DS":                               New(&sending{w, true}, a, WithClock(clock)).Begin("signed.test.", dns.TypeDS),
		"a wrong clock":                    New(&sending{w, true}, a, WithClock(func() time.Time { return time.Unix(1e9, 0) })).Begin("bob.signed.test.", dns.TypeA),
		"another validates":                New(&sending{w, true}, a, WithClock(clock), WithDelegation()).Begin("bob.signed.test.", dns.TypeA),
	} {
		if b != nil {
			t.Errorf("%s: begun", what)
		}
	}
}

func TestBounded(t *testing.T) {
	outer, end := context.WithCancel(context.WithValue(t.Context(), errandKey{}, "x"))
	b, cancel := Bounded(outer, time.Hour)
	if b.Err() != nil || b.Value(errandKey{}) != "x" {
		t.Error(b.Err(), b.Value(errandKey{}))
	}
	if at, ok := b.Deadline(); !ok || time.Until(at) < time.Minute {
		t.Error(at, ok)
	}
	child, stop := context.WithCancel(b)
	defer stop()
	end()
	<-b.Done()
	<-child.Done()
	if b.Err() != context.Canceled || b.Value(errandKey{}) != "x" {
		t.Error(b.Err())
	}
	cancel()
	short, cancel := Bounded(t.Context(), time.Millisecond)
	if at, _ := short.Deadline(); time.Until(at) > time.Second {
		t.Error(at)
	}
	time.Sleep(2 * time.Millisecond)
	if short.Err() != context.DeadlineExceeded {
		t.Error(short.Err())
	}
	cancel()
	ended, cancel := Bounded(t.Context(), time.Hour)
	cancel()
	select {
	case <-ended.Done():
	default:
		t.Error("not done")
	}
	if ended.Err() != context.Canceled {
		t.Error(ended.Err())
	}
}
