package pad

import (
	"crypto"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// model is TRUST.md 2 as it reads: all that ever happened at X, from which each answer is worked out anew. It shares nothing with Address but
// the constants.
type model struct {
	now     time.Time
	history []happening
}

// happening is one thing that happened at X.
type happening struct {
	what   string // claimed, withdrawn, failed; proved, alive, elsewhere, lost, forgotten; required
	at     time.Time
	name   string
	keys   []string
	source Source
	until  time.Time // of a claim, of the administrator's word
}

func (m *model) note(h happening) { m.history = append(m.history, h) }

// live is the key behind the SA that stands; "": none.
func (m *model) live() (key string) {
	for _, h := range m.history {
		switch h.what {
		case "proved":
			key = h.keys[0]
		case "lost":
			key = ""
		}
	}
	return key
}

// shown is the last proof of X, and of which key it was.
func (m *model) shown() (key string, at time.Time) {
	up := false
	for _, h := range m.history {
		switch {
		case h.what == "proved":
			key, at, up = h.keys[0], h.at, true
		case h.what == "lost":
			up = false
		case h.what == "alive" && up && h.at.After(at):
			at = h.at
		case h.what == "elsewhere" && !up && h.at.After(at):
			key, at = h.keys[0], h.at
		case h.what == "forgotten":
			key, at = "", time.Time{}
		}
	}
	return key, at
}

// forget: what X has shown is nothing any more once it is held no longer and has no SA.
func (m *model) forget() {
	if m.live() == "" && !m.held() {
		m.note(happening{what: "forgotten"})
	}
}

// heldUntil is R9: linger after the last proof, or as long as the administrator says.
func (m *model) heldUntil() (until time.Time) {
	if _, at := m.shown(); !at.IsZero() {
		until = at.Add(linger)
	}
	var required time.Time
	for _, h := range m.history {
		switch h.what {
		case "required":
			required = h.until
		case "forgotten":
			required = time.Time{}
		}
	}
	if required.After(until) {
		return required
	}
	return until
}

func (m *model) held() bool { return m.now.Before(m.heldUntil()) }

// claim is what a name says now, and on whose word.
func (m *model) claim(name string) (keys []string, source Source, ok bool) {
	for _, h := range m.history {
		switch {
		case h.name != name:
		case h.what == "claimed":
			keys, source, ok = h.keys, h.source, m.now.Before(h.until)
		case h.what == "withdrawn":
			keys, ok = nil, false
		}
	}
	return keys, source, ok
}

// names are those of whom the live key is one, and the others that claim X.
func (m *model) names() (satisfied, claiming []string) {
	live, seen := m.live(), map[string]bool{}
	for _, h := range m.history {
		if h.what != "claimed" || seen[h.name] {
			continue
		}
		seen[h.name] = true
		keys, _, ok := m.claim(h.name)
		switch {
		case !ok:
		case live != "" && slices.Contains(keys, live):
			satisfied = append(satisfied, h.name)
		default:
			claiming = append(claiming, h.name)
		}
	}
	slices.Sort(satisfied)
	slices.Sort(claiming)
	return satisfied, claiming
}

// failing is the negative cache: the same name with the same keys is not tried again for 2, 4, 8 seconds and so on to a minute; a proof of one of
// the keys, or a minute of quiet after that, and it is forgotten.
func (m *model) failing(name string, keys []string) (failing bool, until time.Time) {
	wait := time.Duration(0)
	for _, h := range m.history {
		switch {
		case h.what == "proved" && slices.Contains(keys, h.keys[0]):
			wait, until = 0, time.Time{}
		case h.what == "failed" && h.name == name && slices.Equal(sorted(h.keys), sorted(keys)):
			if !until.IsZero() && h.at.Sub(until) >= MaxBackOff {
				wait = 0
			}
			wait = min(max(2*wait, FirstBackOff), MaxBackOff)
			until = h.at.Add(wait)
		}
	}
	return m.now.Before(until), until
}

// ask is R1, R2, R3 and R9.
func (m *model) ask(c Claim) (s State, ttl time.Duration) {
	keys, left := ids(c), m.heldUntil().Sub(m.now)
	failing, _ := m.failing(c.Name, keys)
	switch {
	case !m.now.Before(c.Until):
		return Expired, 0
	case m.live() != "" && slices.Contains(keys, m.live()) && left >= time.Second:
		ttl = min(left, c.Until.Sub(m.now)) / time.Second * time.Second
		return Satisfied, max(ttl, time.Second)
	case failing:
		return Failed, 0
	case m.live() != "" && !slices.Contains(keys, m.live()):
		return Conflict, 0
	}
	return Negotiate, 0
}

// initiator is R2, R3 and R7: the keys by which somebody at X may come in whose name claims c, and whether the one who is there is to be asked.
func (m *model) initiator(c Claim) (keys []string, contest bool) {
	live := m.live()
	last, _ := m.shown()
	switch {
	case live == "" && !m.held():
		return ids(c), false
	case live == "" && last == "": // held on the administrator's word
		return ids(c), false
	case live == "":
		return append(ids(c), last), false
	case len(c.Keys) == 0:
		return []string{live}, false
	case !c.Has(live):
		return []string{live}, true
	}
	satisfied, _ := m.names()
	keys = []string{live}
	for _, k := range ids(c) {
		agreed := slices.Contains(satisfied, c.Name)
		for _, n := range satisfied {
			theirs, _, _ := m.claim(n)
			agreed = agreed && (n == c.Name || slices.Contains(theirs, k))
		}
		switch {
		case k == live:
		case agreed:
			keys = append(keys, k)
		default:
			contest = true
		}
	}
	return keys, contest
}

// outranks is R3's order: administrator, signed reverse zone, the prover. It takes a word that is more than a name's, and more than all have on
// which the live key stands.
func (m *model) outranks(c Claim) bool {
	live := m.live()
	if live == "" || c.Has(live) || c.Source == Forward {
		return false
	}
	satisfied, _ := m.names()
	for _, n := range satisfied {
		if _, source, _ := m.claim(n); source >= c.Source {
			return false
		}
	}
	return true
}

func sorted(s []string) []string { return slices.Compact(slices.Sorted(slices.Values(s))) }

func ids(c Claim) (s []string) {
	for _, k := range c.Keys {
		s = append(s, k.ID)
	}
	return s
}

// named is the ID of each public half that drawKeys makes.
func named(keys []crypto.PublicKey) (s []string) {
	for _, k := range keys {
		s = append(s, k.(string))
	}
	return s
}

// run is a random life of an address, beside its model.
type run struct {
	*rapid.T
	a     *Address
	m     *model
	names int // so many names there are: more than MaxClaims is a flood
}

// sets are what names may say; the order of the keys is theirs.
var sets = [][]string{nil, {"k1"}, {"k2"}, {"k1", "k2"}, {"k2", "k1"}, {"k3", "k1"}, {"k2", "k3", "k4"}}

func nameOf(n int) string { return fmt.Sprintf("n%d.example.", n) }

func claimOf(n int, keys []string, until time.Time) Claim {
	c := Claim{Name: nameOf(n), Addr: host, Until: until}
	for _, k := range keys {
		c.Keys = append(c.Keys, Key{ID: k, Public: k})
	}
	return c
}

func (r *run) claim() Claim {
	n, keys := rapid.IntRange(0, r.names-1).Draw(r.T, "name"), rapid.SampledFrom(sets).Draw(r.T, "keys")
	c := claimOf(n, keys, r.m.now.Add(r.ms(900_000)-time.Second))
	c.Source = rapid.SampledFrom([]Source{Forward, Forward, Forward, Reverse, Administrator}).Draw(r.T, "source")
	return c
}

func (r *run) ago() time.Time {
	return r.m.now.Add(-r.ms(20_000))
}

func (r *run) key() Key {
	k := rapid.SampledFrom([]string{"k1", "k2", "k3", "k4"}).Draw(r.T, "proof")
	return Key{ID: k, Public: k}
}

// whole reports whether the caps (R8) have had nothing to leave out yet.
func (r *run) whole() bool {
	claims, failures := map[string]bool{}, map[string]bool{}
	for _, h := range r.m.history {
		switch h.what {
		case "claimed":
			claims[h.name] = true
		case "failed":
			failures[h.name+" "+strings.Join(sorted(h.keys), " ")] = true
		}
	}
	return len(claims) <= MaxClaims && len(failures) <= MaxFailures
}

// actions are what can happen.
func (r *run) actions() map[string]func() {
	return map[string]func(){
		"time":   func() { r.m.now = r.m.now.Add(r.ms(150_000)) },
		"moment": func() { r.m.now = r.m.now.Add(r.ms(3_000)) },
		"the end of the hold": func() {
			if at := r.m.heldUntil().Add(-r.ms(2_000)); at.After(r.m.now) {
				r.m.now = at
			}
		},
		"X proves": func() {
			k := r.key()
			r.a.Prove(r.m.now, k)
			r.m.note(happening{what: "proved", at: r.m.now, keys: []string{k.ID}})
		},
		"X is alive": func() {
			at := r.ago()
			if got, want := r.a.Alive(at), r.m.live() != ""; got != want {
				r.Fatalf("alive: %v, want %v", got, want)
			}
			r.m.note(happening{what: "alive", at: at})
		},
		"X proves elsewhere": func() {
			at, k := r.ago(), r.key()
			r.a.Elsewhere(at, k)
			r.m.note(happening{what: "elsewhere", at: at, keys: []string{k.ID}})
		},
		"X is lost":  func() { r.a.Lost(); r.m.note(happening{what: "lost"}) },
		"a claim":    func() { r.asks(r.claim()) },
		"one fails":  func() { r.fails(r.claim()) },
		"one leaves": r.leaves,
		"one fails again": func() {
			c := r.claim()
			for range rapid.IntRange(2, 8).Draw(r.T, "times") {
				r.m.now = r.fails(c)
			}
		},
		"a flood": func() {
			c := r.claim()
			for n := range r.names {
				c.Name = nameOf(n)
				r.asks(c)
				r.fails(c)
			}
			if k := r.m.live(); k != "" {
				r.asks(claimOf(r.names, []string{k}, r.m.now.Add(time.Minute)))
			}
		},
		"the administrator": func() {
			until := r.m.now.Add(r.ms(500_000))
			r.a.Require(until)
			r.m.note(happening{what: "required", until: until})
		},
	}
}

// ms is up to so many milliseconds.
func (r *run) ms(most int) time.Duration {
	return time.Duration(rapid.IntRange(0, most).Draw(r.T, "ms")) * time.Millisecond
}

// step is one thing that happens, and the look at what has ended that the daemon has after each.
func (r *run) step() {
	actions := r.actions()
	name := rapid.SampledFrom(slices.Sorted(maps.Keys(actions))).Draw(r.T, "action")
	r.m.now = r.m.now.Add(time.Nanosecond) // no two things at once
	actions[name]()
	r.a.Expire(r.m.now)
	r.m.forget()
	r.agrees()
	r.anybody()
}

// asks is a lookup. What it finds satisfied is I2: X showed a key of this very set, nobody another since, and the set is valid.
func (r *run) asks(c Claim) {
	want, ttl := r.m.ask(c)
	got := r.a.Ask(r.m.now, c)
	if want != Expired {
		r.m.note(happening{what: "claimed", name: c.Name, keys: ids(c), source: c.Source, until: c.Until})
	}
	if got.State != want && !(want == Failed && got.State != Satisfied && !r.whole()) || got.State == Satisfied && got.TTL != ttl {
		r.Fatalf("%v: %v, TTL %v, want %v, %v", c, got.State, got.TTL, want, ttl)
	}
	// R8: who claims without proof does not crowd out whom the proof is of.
	if names, _ := r.a.Names(r.m.now); got.State == Satisfied && !slices.Contains(names, c.Name) && len(names) < MaxClaims {
		r.Fatalf("%v is satisfied and forgotten: %v", c, names)
	}
}

func (r *run) fails(c Claim) (until time.Time) {
	r.m.now = r.m.now.Add(time.Nanosecond)
	until = r.a.Fail(r.m.now, c, "no answer")
	r.m.note(happening{what: "failed", at: r.m.now, name: c.Name, keys: ids(c)})
	if _, want := r.m.failing(c.Name, ids(c)); !until.Equal(want) && r.whole() {
		r.Fatalf("%v fails until %v, want %v", c, until, want)
	}
	return until
}

func (r *run) leaves() {
	name := r.claim().Name
	r.a.Withdraw(name)
	r.m.note(happening{what: "withdrawn", name: name})
}

// anybody asks what names could be told, and by what they could come in. A flood has asked enough.
func (r *run) anybody() {
	if !r.whole() {
		return
	}
	for n := range min(r.names, 3) {
		for i, keys := range sets {
			c := claimOf(n, keys, r.m.now.Add(time.Hour))
			c.Source = Source((n + i) % 3)
			if got, want := r.a.Outranks(r.m.now, c), r.m.outranks(c); got != want {
				r.Fatalf("%v on the word of %v outranks the incumbent: %v, want %v", c, c.Source, got, want)
			}
			if got, want := r.a.judge(r.m.now, c).State, first(r.m.ask(c)); got != want {
				r.Fatalf("%v: %v, want %v", c, got, want)
			}
			in, contest := r.a.Initiator(r.m.now, c)
			want, wantContest := r.m.initiator(c)
			if !slices.Equal(sorted(named(in)), sorted(want)) || contest != wantContest {
				r.Fatalf("%v comes in by %v, contest %v; want %v, %v", c, named(in), contest, want, wantContest)
			}
		}
	}
}

func first[A, B any](a A, _ B) A { return a }

// agrees compares all that can be asked without changing anything.
func (r *run) agrees() {
	if got, want := r.a.Live(), r.m.live() != ""; got != want {
		r.Fatalf("live: %v, want %v", got, want)
	}
	if got, want := r.a.Held(r.m.now), r.m.held(); got != want || want && !r.a.HoldUntil().Equal(r.m.heldUntil()) {
		r.Fatalf("held: %v until %v, want %v until %v", got, r.a.HoldUntil(), want, r.m.heldUntil())
	}
	if k, at, ok := r.a.Key(); r.m.live() != "" || r.m.held() {
		if want, wantAt := r.m.shown(); k.ID != want || !at.Equal(wantAt) || ok != (want != "") {
			r.Fatalf("proved %q at %v, want %q at %v", k.ID, at, want, wantAt)
		}
	} else if ok {
		r.Fatalf("the key %q is remembered beyond linger", k.ID)
	}
	if len(r.a.claims) > MaxClaims || len(r.a.failures) > MaxFailures {
		r.Fatalf("%d claims, %d failures (R8)", len(r.a.claims), len(r.a.failures))
	}
	satisfied, claiming := r.a.Names(r.m.now)
	wantSatisfied, wantClaiming := r.m.names()
	if !r.whole() {
		left := func(n string) bool { return !slices.Contains(append(satisfied, claiming...), n) }
		wantSatisfied, wantClaiming = slices.DeleteFunc(wantSatisfied, left), slices.DeleteFunc(wantClaiming, left)
	}
	if !slices.Equal(satisfied, wantSatisfied) || !slices.Equal(claiming, wantClaiming) {
		r.Fatalf("satisfied %v, claiming %v; want %v, %v", satisfied, claiming, wantSatisfied, wantClaiming)
	}
	if got, want := r.a.Lame(r.m.now), r.m.live() != "" && len(wantSatisfied) == 0; got != want {
		r.Fatalf("lame: %v, want %v", got, want)
	}
}

// TestAgainstModel: at every step of a random life, with few names and with a flood of them, an address is what TRUST.md 2 says.
func TestAgainstModel(t *testing.T) {
	for _, names := range []int{3, MaxClaims + 20} {
		t.Run(fmt.Sprint(names), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				r := &run{T: t, a: NewAddress(linger), m: &model{now: start}, names: names}
				for range rapid.IntRange(1, 80).Draw(t, "steps") {
					r.step()
				}
			})
		})
	}
}
