package pad

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

var (
	start  = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	host   = netip.MustParseAddr("192.0.2.1")
	linger = 5 * time.Minute
)

// key makes a Key without a public half: nothing in the state looks at it.
func key(id string) Key { return Key{ID: id} }

func claim(name string, until time.Duration, ids ...string) Claim {
	c := Claim{Name: name, Addr: host, Until: start.Add(until)}
	for _, id := range ids {
		c.Keys = append(c.Keys, key(id))
	}
	return c
}

func at(d time.Duration) time.Time { return start.Add(d) }

func TestNothingKnown(t *testing.T) {
	a := NewAddress(linger)
	c := claim("bob.example.", time.Hour, "k")
	if s := a.Ask(start, c); s.State != Negotiate {
		t.Errorf("a first claim: %v", s)
	}
	if !a.HoldUntil().IsZero() || a.Held(start) || a.Live() {
		t.Error("a claim alone left policy on the address")
	}
	if a.Alive(start) {
		t.Error("an address without a key is alive")
	}
	if _, _, ok := a.Key(); ok {
		t.Error("an address that proved nothing has a key")
	}
	if s := a.Ask(at(time.Hour), c); s.State != Expired {
		t.Errorf("at its end: %v", s)
	}
}

func TestProofSatisfies(t *testing.T) {
	a := NewAddress(linger)
	a.Prove(start, key("k"))
	for _, tt := range []struct {
		why   string
		at    time.Duration
		claim Claim
		state State
		ttl   time.Duration
	}{
		{"its key", 0, claim("bob.example.", time.Hour, "k"), Satisfied, linger},
		{"one of its keys", 0, claim("bob.example.", time.Hour, "other", "k"), Satisfied, linger},
		{"another name, shared hosting (R2)", 0, claim("carol.example.", time.Hour, "k"), Satisfied, linger},
		{"the claim ends first", 0, claim("bob.example.", 90*time.Second, "k"), Satisfied, 90 * time.Second},
		{"the hold ends first", time.Minute, claim("bob.example.", time.Hour, "k"), Satisfied, 4 * time.Minute},
		{"whole seconds", 0, claim("bob.example.", 2500*time.Millisecond, "k"), Satisfied, 2 * time.Second},
		{"never 0", 0, claim("bob.example.", 500*time.Millisecond, "k"), Satisfied, time.Second},
		{"the claim has ended", time.Hour, claim("bob.example.", time.Hour, "k"), Expired, 0},
		{"the proof is too old", linger - time.Millisecond, claim("bob.example.", time.Hour, "k"), Negotiate, 0},
		{"another key (R3)", 0, claim("evil.example.", time.Hour, "e"), Conflict, 0},
		{"no key", 0, claim("evil.example.", time.Hour), Conflict, 0},
	} {
		if s := a.Ask(at(tt.at), tt.claim); s.State != tt.state || s.TTL != tt.ttl {
			t.Errorf("%s: %v, TTL %v, want %v, %v", tt.why, s.State, s.TTL, tt.state, tt.ttl)
		}
	}
}

func TestHoldFollowsProofsOnly(t *testing.T) {
	a := NewAddress(linger)
	a.Prove(start, key("k"))
	for i := range 100 {
		a.Ask(at(time.Duration(i)*time.Second), claim(fmt.Sprintf("n%d.example.", i), time.Hour, "k"))
	}
	if got := a.HoldUntil(); got != at(linger) {
		t.Errorf("after lookups the hold ends at %v, want %v", got, at(linger))
	}
	a.Alive(at(time.Minute))
	if got := a.HoldUntil(); got != at(time.Minute+linger) {
		t.Errorf("after a proof the hold ends at %v", got)
	}
	a.Alive(start) // out of order
	a.Lost()
	if got := a.HoldUntil(); got != at(time.Minute+linger) {
		t.Errorf("the SA's end moved the hold to %v", got)
	}
	if a.Alive(at(2 * time.Minute)) {
		t.Error("a proof without a live SA")
	}
	if s := a.Ask(at(2*time.Minute), claim("bob.example.", time.Hour, "k")); s.State != Negotiate {
		t.Errorf("held, without an SA: %v", s)
	}
	if !a.Held(at(5*time.Minute)) || a.Held(at(6*time.Minute)) {
		t.Error("held until 6 minutes")
	}
}

//tacit:attack A-40 a failure of the old keys is none of the new ones
func TestNegativeCache(t *testing.T) {
	a := NewAddress(linger)
	bob := claim("bob.example.", 10*time.Hour, "k1", "k2")
	if until := a.Fail(start, bob, "no answer"); until != at(FirstBackOff) {
		t.Errorf("first back-off until %v", until)
	}
	for _, tt := range []struct {
		why   string
		at    time.Duration
		claim Claim
		want  State
	}{
		{"the same", 0, bob, Failed},
		{"its keys in another order", 0, claim("bob.example.", time.Hour, "k2", "k1"), Failed},
		{"another name (R1)", 0, claim("carol.example.", time.Hour, "k1", "k2"), Negotiate},
		{"new keys (A-40)", 0, claim("bob.example.", time.Hour, "k1", "k3"), Negotiate},
		{"later", FirstBackOff, bob, Negotiate},
	} {
		if s := a.Ask(at(tt.at), tt.claim); s.State != tt.want || (s.State == Failed && s.Why != "no answer") {
			t.Errorf("%s: %+v, want %v", tt.why, s, tt.want)
		}
	}
	if !a.HoldUntil().IsZero() {
		t.Error("a failure left policy on the address")
	}
	now, gap := start, time.Duration(0)
	for range 10 {
		until := a.Fail(now, bob, "no answer")
		now, gap = until, until.Sub(now)
	}
	if gap != MaxBackOff {
		t.Errorf("the back-off grew to %v, want %v", gap, MaxBackOff)
	}
	a.Prove(now, key("k2"))
	a.Lost()
	if s := a.Ask(now, bob); s.State != Negotiate {
		t.Errorf("after a proof: %v", s)
	}
}

func TestConflict(t *testing.T) {
	a := NewAddress(linger)
	a.Prove(start, key("k"))
	evil := claim("evil.example.", time.Hour, "e")
	if s := a.Ask(start, evil); s.State != Conflict {
		t.Fatalf("another key: %v", s)
	}
	a.Alive(at(time.Second)) // the incumbent answers: evil loses
	a.Fail(at(time.Second), evil, "the host proved another key")
	if s := a.Ask(at(time.Second), evil); s.State != Failed {
		t.Errorf("the loser: %v", s)
	}
	if s := a.Ask(at(time.Second), claim("bob.example.", time.Hour, "k")); s.State != Satisfied {
		t.Errorf("the incumbent: %v", s)
	}
	a.Lost() // the incumbent does not answer
	next := claim("next.example.", time.Hour, "n")
	if s := a.Ask(at(2*time.Second), next); s.State != Negotiate {
		t.Errorf("the next tenant: %v", s)
	}
	a.Prove(at(3*time.Second), key("n"))
	if s := a.Ask(at(3*time.Second), claim("bob.example.", time.Hour, "k")); s.State != Conflict {
		t.Errorf("the former tenant: %v", s)
	}
}

func TestNamesAndLame(t *testing.T) {
	a := NewAddress(linger)
	a.Ask(start, claim("bob.example.", time.Minute, "k"))
	a.Ask(start, claim("alias.example.", time.Hour, "k"))
	a.Ask(start, claim("evil.example.", time.Hour, "e"))
	if s, c := a.Names(start); len(s) != 0 || len(c) != 3 {
		t.Errorf("before a proof: %v %v", s, c)
	}
	a.Prove(start, key("k"))
	s, c := a.Names(start)
	if !slices.Equal(s, []string{"alias.example.", "bob.example."}) || !slices.Equal(c, []string{"evil.example."}) {
		t.Errorf("satisfied %v, claiming %v", s, c)
	}
	a.Withdraw("alias.example.")
	if a.Lame(at(59*time.Second)) || !a.Lame(at(time.Minute)) {
		t.Error("want lame from one minute on: the last claim has ended")
	}
	a.Lost()
	if a.Lame(at(time.Minute)) {
		t.Error("lame without an SA")
	}
}

func TestExpire(t *testing.T) {
	a := NewAddress(linger)
	c := claim("bob.example.", time.Minute, "k")
	a.Ask(start, c)
	a.Fail(start, c, "no answer")
	a.Prove(start, key("k"))
	a.Fail(start, claim("evil.example.", time.Minute, "e"), "no answer")
	if a.Expire(at(time.Hour)) {
		t.Error("an address with an SA is empty")
	}
	if _, _, ok := a.Key(); !ok {
		t.Error("the live key was forgotten")
	}
	a.Lost()
	if a.Expire(at(time.Minute)) {
		t.Error("a held address is empty")
	}
	if !a.Expire(at(time.Hour)) {
		t.Error("something is left")
	}
	if _, _, ok := a.Key(); ok {
		t.Error("the key is left")
	}
}

func TestBounds(t *testing.T) {
	a := NewAddress(linger)
	a.Prove(start, key("k"))
	for i := range 3 * MaxClaims {
		c := claim(fmt.Sprintf("evil%d.example.", i), time.Hour, "e")
		a.Ask(start, c)
		a.Fail(at(time.Duration(i)*time.Millisecond), c, "conflict")
	}
	if len(a.claims) > MaxClaims || len(a.failures) > MaxFailures {
		t.Errorf("%d claims, %d failures", len(a.claims), len(a.failures))
	}
	if s := a.Ask(start, claim("bob.example.", time.Hour, "k")); s.State != Satisfied {
		t.Errorf("after a flood of claims: %v", s)
	}
	if s, _ := a.Names(start); !slices.Equal(s, []string{"bob.example."}) {
		t.Errorf("satisfied: %v", s)
	}
	last := claim(fmt.Sprintf("evil%d.example.", 3*MaxClaims-1), time.Hour, "e")
	if s := a.Ask(at(time.Second), last); s.State != Failed {
		t.Errorf("the last failure was forgotten: %v", s)
	}
	many := claim("many.example.", time.Hour)
	for i := range 3 * MaxKeys {
		many.Keys = append(many.Keys, key(fmt.Sprint(i)))
	}
	b := NewAddress(linger)
	b.Ask(start, many)
	if got := len(b.claims["many.example."].Keys); got != MaxKeys {
		t.Errorf("%d keys remembered", got)
	}
}

// The administrator's word holds an address that proved nothing, and lets nobody in but by a claim's keys.
func TestRequired(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	a := NewAddress(time.Minute)
	a.Require(now.Add(time.Hour))
	if !a.Held(now) || a.Held(now.Add(time.Hour)) || a.Expire(now) || !a.HoldUntil().Equal(now.Add(time.Hour)) {
		t.Error("not held until then")
	}
	if keys, contest := a.Initiator(now, Claim{}); len(keys) != 0 || contest {
		t.Errorf("got %v, %v", keys, contest)
	}
	if !a.Expire(now.Add(2 * time.Hour)) {
		t.Error("it is not forgotten afterwards")
	}
}
