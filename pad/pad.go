// Package pad is the Peer Authorization Database (RFC 4301, 4.4.3): which key may speak for which address, on whose word. A
// claim is a name's word; a proof is the address's own, shown in IKE. A claim may withhold its name's answer and nothing more;
// only proofs carry policy on the address (TRUST.md 2). The package is pure: the daemon owns an Address for each remote address.
package pad

import (
	"crypto"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// The bounds (TRUST.md R8, I4).
const (
	MaxKeys     = 8  // keys of a claim
	MaxClaims   = 64 // claims remembered on an address; a claim beyond them is judged, not remembered
	MaxFailures = 64 // negotiations remembered as failed on an address
)

// The back-off of the negative cache (TRUST.md R1).
const (
	FirstBackOff = 2 * time.Second
	MaxBackOff   = time.Minute
)

// Claim is the word of a name: X is mine, and holds one of these keys.
type Claim struct {
	Name  string // the final owner of the address, canonical, with the final dot
	Addr  netip.Addr
	Keys  []Key     // from UsableKeys; at least one
	Until time.Time // end for new answers: min(TTL, RRSIG expiry, key TTL) (R9)
	// Source is whose word it is. Of the reverse zone's a Gateway may be the one to prove a key, in the address's place (R5); zero: the address itself.
	Source  Source
	Gateway netip.Addr
}

// Has reports whether the claim offers the key with that ID.
func (c Claim) Has(id string) bool { return contains(c.Keys, id) }

// PublicKeys returns what an Authorization wants.
func (c Claim) PublicKeys() []crypto.PublicKey {
	keys := make([]crypto.PublicKey, 0, len(c.Keys))
	for _, k := range c.Keys {
		if k.Public != nil {
			keys = append(keys, k.Public)
		}
	}
	return keys
}

// Known tells the keys of which the claim has only the fingerprints; nil if it has all keys.
func (c Claim) Known() func(crypto.PublicKey) bool {
	keys := c.Keys
	if !slices.ContainsFunc(keys, func(k Key) bool { return k.Public == nil }) {
		return nil
	}
	return func(pub crypto.PublicKey) bool { return contains(keys, KeyOf(pub).ID) }
}

// keySet names the claim's set of keys, in any order, and who is to prove one.
func (c Claim) keySet() string {
	ids := make([]string, 0, len(c.Keys))
	for _, k := range c.Keys {
		ids = append(ids, k.ID)
	}
	slices.Sort(ids)
	if c.Gateway.IsValid() {
		ids = append(ids, c.Gateway.String())
	}
	return strings.Join(ids, " ")
}

// failureKey is (N, K); the Address is X. R1: "The negative cache key is (N, X, K)."
type failureKey struct{ name, keys string }

type failure struct {
	count int
	until time.Time
	why   string
}

// Address is what is known about one remote address X. The zero value is not usable: NewAddress.
type Address struct {
	linger   time.Duration
	key      Key       // the key that X last proved
	proven   time.Time // when it did so last; zero: never
	live     bool      // an SA that this key authenticated is up
	required time.Time // until when the administrator wants X protected, whether it proved anything or not
	claims   map[string]Claim
	failures map[failureKey]failure
}

// NewAddress returns the empty state of an address. linger is how long a proof holds (R9).
func NewAddress(linger time.Duration) *Address {
	return &Address{linger: linger}
}

// State is what Ask makes of a claim.
type State uint8

// The states of a claim.
const (
	Negotiate State = iota // nothing speaks against it: ask X to prove one of the keys
	Satisfied              // X proved one of its keys and the SA is live: answer at once (R2)
	Conflict               // X is live with another key: probe; if that answers, Fail the claim, else Lost and Ask again (R3)
	Failed                 // the same claim failed a short time ago: withhold (R1)
	Expired                // it ended before it was judged (R9): look again
)

func (s State) String() string {
	if s > Expired {
		return "unknown"
	}
	return [...]string{"negotiate", "satisfied", "conflict", "failed", "expired"}[s]
}

// Standing is the answer of Ask.
type Standing struct {
	State State
	Why   string        // for Conflict and Failed
	Until time.Time     // Failed: when it may be tried again
	TTL   time.Duration // Satisfied: the answer may not outlive this (at least 1 s)
}

// Ask judges a claim and remembers it. It changes nothing that another name or the packets to X depend on (R1).
func (a *Address) Ask(now time.Time, c Claim) Standing {
	if !now.Before(c.Until) {
		return Standing{State: Expired, Why: "the records have expired"}
	}
	a.remember(now, c)
	return a.judge(now, c)
}

// judge is Ask for a claim that has not expired. It changes nothing.
func (a *Address) judge(now time.Time, c Claim) Standing {
	if a.Satisfied(now, c) {
		return Standing{State: Satisfied, TTL: a.TTL(now, c)}
	}
	if f, ok := a.failures[failureKey{c.Name, c.keySet()}]; ok && now.Before(f.until) {
		return Standing{State: Failed, Why: f.why, Until: f.until}
	}
	if a.Live() && !c.Has(a.key.ID) {
		return Standing{State: Conflict, Why: "the host proved another key: " + a.key.ID}
	}
	return Standing{State: Negotiate}
}

// Satisfied reports whether a claim needs no negotiation: X proved one of its keys, its SA is live, and the proof holds for at
// least another second, the smallest TTL (R2).
func (a *Address) Satisfied(now time.Time, c Claim) bool {
	return a.Live() && c.Has(a.key.ID) && now.Before(c.Until) && a.HoldUntil().Sub(now) >= time.Second
}

// TTL is how long an answer to a satisfied claim may be kept by the client, in whole seconds: no longer than the claim and the
// hold on X stand, so that the hold outlives every TTL handed out (R9). At least 1 s: 0 would be no cap.
func (a *Address) TTL(now time.Time, c Claim) time.Duration {
	ttl := min(c.Until.Sub(now), a.HoldUntil().Sub(now)).Truncate(time.Second)
	return max(ttl, time.Second)
}

// Prove records that X proved the key just now: a verified AUTH. The caller has settled a Conflict before. Negotiations that
// failed for claims which offer the key are forgotten.
func (a *Address) Prove(now time.Time, k Key) {
	a.key, a.proven, a.live = k, now, true
	for f := range a.failures {
		if slices.Contains(strings.Fields(f.keys), k.ID) {
			delete(a.failures, f)
		}
	}
}

// Alive records another proof by the live key: valid ESP, or an authenticated IKE message. It reports whether there is one.
func (a *Address) Alive(now time.Time) bool {
	if !a.live {
		return false
	}
	if now.After(a.proven) {
		a.proven = now
	}
	return true
}

// Lost records that the SA of the live key is gone. The hold on X stands until linger after the last proof (R9).
func (a *Address) Lost() { a.live = false }

// Elsewhere records that X proved the key at another of our own addresses: it is held at this one too, though no SA is live here.
func (a *Address) Elsewhere(at time.Time, k Key) {
	if !a.live && at.After(a.proven) {
		a.key, a.proven = k, at
	}
}

// Live reports whether an SA that X's key authenticated is up.
func (a *Address) Live() bool { return a.live }

// Key returns the key that X last proved, and when.
func (a *Address) Key() (k Key, at time.Time, ok bool) { return a.key, a.proven, !a.proven.IsZero() }

// Require holds X until a time on the administrator's word: he, too, may put policy on an address.
func (a *Address) Require(until time.Time) { a.required = until }

// HoldUntil is when the policy on X ends: linger after the last proof (R9), or when the administrator's word does; zero if there is neither, then
// there is none (R1). Lookups do not move it (R2).
func (a *Address) HoldUntil() time.Time {
	if a.proven.IsZero() || a.required.After(a.proven.Add(a.linger)) {
		return a.required
	}
	return a.proven.Add(a.linger)
}

// Held reports whether X is held: it proved a key no longer ago than linger.
func (a *Address) Held(now time.Time) bool { return now.Before(a.HoldUntil()) }

// Fail records that the claim's negotiation failed, or lost a conflict: N is withheld until the time that is returned. X is not
// touched (R1).
func (a *Address) Fail(now time.Time, c Claim, why string) time.Time {
	k := failureKey{c.Name, c.keySet()}
	f, known := a.failures[k]
	if !known && len(a.failures) >= MaxFailures {
		a.forgetOldestFailure()
	}
	f.count++
	f.why = why
	f.until = now.Add(backOff(f.count))
	if a.failures == nil { // of most addresses nothing is ever claimed
		a.failures = make(map[failureKey]failure)
	}
	a.failures[k] = f
	return f.until
}

// Failing reports whether a negotiation for the claim failed so lately that it must not be tried again yet.
func (a *Address) Failing(now time.Time, c Claim) bool {
	f, ok := a.failures[failureKey{c.Name, c.keySet()}]
	return ok && now.Before(f.until)
}

// backOff doubles from FirstBackOff to MaxBackOff.
func backOff(count int) time.Duration {
	d := FirstBackOff
	for ; count > 1 && d < MaxBackOff; count-- {
		d *= 2
	}
	return min(d, MaxBackOff)
}

// Withdraw ends a name's claim for new answers: a secure denial, or a secure address set without X (R9). Policy on X stays.
func (a *Address) Withdraw(name string) { delete(a.claims, name) }

// Names returns the names whose claims the live key satisfies (satisfied) and the others that claim X (claiming), sorted.
func (a *Address) Names(now time.Time) (satisfied, claiming []string) {
	for n, c := range a.claims {
		switch {
		case a.stands(now, c):
			satisfied = append(satisfied, n)
		case now.Before(c.Until):
			claiming = append(claiming, n)
		}
	}
	slices.Sort(satisfied)
	slices.Sort(claiming)
	return satisfied, claiming
}

// Lame reports whether an SA is live that no current claim stands behind: it serves the flows that are there, and no new answers
// (R9).
func (a *Address) Lame(now time.Time) bool {
	if !a.live {
		return false
	}
	for _, c := range a.claims {
		if a.stands(now, c) {
			return false
		}
	}
	return true
}

// StandsUntil is when the first of the claims ends that the live key satisfies; zero: there is none.
func (a *Address) StandsUntil() (first time.Time) {
	for _, c := range a.claims {
		if a.live && c.Has(a.key.ID) && (first.IsZero() || c.Until.Before(first)) {
			first = c.Until
		}
	}
	return first
}

// stands reports whether a claim still counts, and the live key satisfies it.
func (a *Address) stands(now time.Time, c Claim) bool {
	return a.live && now.Before(c.Until) && c.Has(a.key.ID)
}

// Expire forgets what has ended. It reports whether nothing is left, so that the Address itself may be forgotten.
func (a *Address) Expire(now time.Time) (empty bool) {
	for n, c := range a.claims {
		if !now.Before(c.Until) {
			delete(a.claims, n)
		}
	}
	for k, f := range a.failures {
		if now.Sub(f.until) >= MaxBackOff { // until then a repeat doubles the back-off
			delete(a.failures, k)
		}
	}
	if !a.live && !a.Held(now) {
		a.key, a.proven, a.required = Key{}, time.Time{}, time.Time{}
	}
	return !a.live && a.proven.IsZero() && a.required.IsZero() && len(a.claims) == 0 && len(a.failures) == 0
}

// remember keeps a claim for Names. When there are too many, ended ones make room first, then one that the live key does not
// satisfy makes room for one that it does. Judgement never depends on what is remembered.
func (a *Address) remember(now time.Time, c Claim) {
	if len(c.Keys) > MaxKeys {
		c.Keys = c.Keys[:MaxKeys]
	}
	if _, known := a.claims[c.Name]; !known && len(a.claims) >= MaxClaims {
		a.Expire(now)
		if len(a.claims) >= MaxClaims {
			_, weak := a.Names(now)
			if len(weak) == 0 || !a.live || !c.Has(a.key.ID) {
				return
			}
			delete(a.claims, weak[0])
		}
	}
	if a.claims == nil {
		a.claims = make(map[string]Claim)
	}
	a.claims[c.Name] = c
}

func (a *Address) forgetOldestFailure() {
	var oldest failureKey
	var at time.Time
	for k, f := range a.failures {
		if at.IsZero() || f.until.Before(at) {
			oldest, at = k, f.until
		}
	}
	delete(a.failures, oldest)
}
