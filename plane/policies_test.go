package plane

import (
	"slices"
	"testing"
	"time"

	"tacit/guard"
	"tacit/ipsec"
)

// traffic is a flow of a data plane without packets.
type traffic struct {
	Flow
	armed   bool
	ends    time.Time
	fate    Fate
	then    Fate
	settled *[]Fate // all of them
	waiting time.Time
}

func (f *traffic) Used() bool               { return f.armed }
func (f *traffic) Armed() (bool, time.Time) { return f.armed, f.ends }
func (f *traffic) Settle(fate Fate, until time.Time, then Fate) {
	f.fate, f.waiting, f.then = fate, until, then
	if f.settled != nil {
		*f.settled = append(*f.settled, fate)
	}
}

func TestWant(t *testing.T) {
	now := time.Unix(1000, 0)
	p := Policies[*traffic]{Linger: 10 * time.Second}
	lasting := 14 * time.Second
	for name, tt := range map[string]struct {
		policy  ipsec.Action
		until   time.Duration // from now; 0: no policy
		armed   bool
		ends    time.Duration // from now; 0: with us
		verdict guard.Verdict
		timeout time.Duration
	}{
		"nothing":                         {},
		"bypass, for its whole time":      {policy: ipsec.Bypass, until: time.Hour, verdict: guard.Clear, timeout: time.Hour},
		"hold, renewed while it lasts":    {policy: ipsec.Hold, until: time.Hour, verdict: guard.Divert, timeout: lasting},
		"hold for the rest of its time":   {policy: ipsec.Hold, until: time.Second, verdict: guard.Divert, timeout: time.Second},
		"hold is over":                    {policy: ipsec.Hold, until: -time.Second},
		"block":                           {policy: ipsec.Block, until: time.Second, verdict: guard.Block, timeout: time.Second},
		"Pairs go before policies":        {policy: ipsec.Block, until: time.Hour, armed: true, verdict: guard.Divert, timeout: lasting},
		"Pairs that end":                  {armed: true, ends: time.Second, verdict: guard.Divert, timeout: time.Second},
		"Pairs that have ended":           {armed: true, ends: -time.Second},
		"Pairs that ended before a Block": {policy: ipsec.Block, until: time.Second, armed: true, ends: -time.Second, verdict: guard.Block, timeout: time.Second},
	} {
		f := &Flow{policy: tt.policy, asked: tt.until != 0}
		if tt.until != 0 {
			f.until = now.Add(tt.until)
		}
		var ends time.Time
		if tt.ends != 0 {
			ends = now.Add(tt.ends)
		}
		v, timeout := p.want(f, tt.armed, ends, now)
		if v != tt.verdict || timeout != tt.timeout {
			t.Errorf("%s: got %v for %v, want %v for %v", name, v, timeout, tt.verdict, tt.timeout)
		}
	}
}

// What a dead process left is held, or refused, until it would have ended; then nothing is left of it here either.
func TestAdopt(t *testing.T) {
	now := time.Unix(1000, 0)
	gone := 0
	p := Policies[*traffic]{Linger: 10 * time.Second, Now: func() time.Time { return now },
		Made: func(k guard.Key) *traffic { return &traffic{Flow: Flow{Key: k}} }, Gone: func(*traffic) { gone++ }}
	held, refused := guard.Key{Own: alice, Peer: bob}, guard.Key{Own: bob, Peer: alice}
	left := []guard.Element{{Key: held, Verdict: guard.Divert, Left: 2 * time.Second}, {Key: refused, Verdict: guard.Block, Left: time.Second}}
	p.Adopt(left)
	if f, _ := p.Find(held); !f.waiting.Equal(now.Add(2 * time.Second)) {
		t.Errorf("packets wait until %v", f.waiting)
	}
	if f, _ := p.Find(refused); f.fate != Drop {
		t.Error("packets wait for what is refused")
	}
	if pairs := p.Left(left); len(pairs) != 1 || pairs[0].Selector != ipsec.Host(alice, bob) {
		t.Errorf("left: got %v", pairs)
	}
	if due := p.Due(now.Add(time.Second)); len(due) != 1 || due[0].Key != refused {
		t.Errorf("due after a second: got %v", due)
	}
	f, _ := p.Find(refused)
	p.Forget(f)
	if gone != 0 {
		t.Error("a flow with a policy was forgotten")
	}
	f.asked, f.until, f.verdict = false, time.Time{}, guard.Pass
	p.Forget(f)
	if gone != 1 || p.Len() != 1 {
		t.Errorf("%d flows gone, %d left, want 1 and 1", gone, p.Len())
	}
}

// Rules alone are an inheritance too: whoever opens after a crash, and fails, leaves them.
func TestInherited(t *testing.T) {
	p := Policies[*traffic]{Now: time.Now, Made: func(k guard.Key) *traffic { return &traffic{Flow: Flow{Key: k}} }}
	if p.Inherited() {
		t.Error("nobody was here before")
	}
	p.Rules.unknown.Store(true)
	if !p.Inherited() {
		t.Error("rules of a dead process do not count")
	}
	p.Rules.unknown.Store(false)
	p.Adopt([]guard.Element{{Key: guard.Key{Own: alice, Peer: bob}, Verdict: guard.Divert, Left: time.Second}})
	if !p.Inherited() {
		t.Error("an address that a dead process held does not count")
	}
}

// A flow is due when its policy ends, however that was moved, and until it has ended.
func TestDue(t *testing.T) {
	now := time.Unix(1000, 0)
	p := Policies[*traffic]{Linger: 10 * time.Second, Now: func() time.Time { return now }, Made: func(k guard.Key) *traffic { return &traffic{Flow: Flow{Key: k}} }}
	f := p.Flow(guard.Key{Own: alice, Peer: bob})
	other := p.Flow(guard.Key{Own: bob, Peer: alice})
	in := func(s int) time.Time { return now.Add(time.Duration(s) * time.Second) }
	due := func(s int, want ...*traffic) {
		t.Helper()
		if got := p.Due(in(s)); !slices.Equal(got, want) {
			t.Errorf("after %d s %v are due, want %v", s, got, want)
		}
	}
	p.end(f, in(10))
	p.end(f, in(100)) // longer
	due(10)
	due(99)
	p.end(f, in(101)) // and longer
	due(100)
	due(101, f)
	due(102, f) // its end could not be
	p.end(f, time.Time{})
	due(103)
	p.end(f, in(1000))
	p.end(f, in(105)) // sooner
	due(104)
	due(105, f)
	p.end(f, in(1000))
	if got := p.KeepUntil(f, in(2000)); !got.Equal(in(1000)) {
		t.Errorf("a policy was kept until %v", got)
	}
	if got := p.KeepUntil(other, in(200)); !got.Equal(in(200)) {
		t.Errorf("a flow was kept until %v", got)
	}
	due(150)
	due(200, other)
	p.end(other, time.Time{})
	due(999)
	due(1000, f)
}
