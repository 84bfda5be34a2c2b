package pad

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestClaimsNeverWeaken is I3 and R1: whatever names that are not N's owner's claim, withdraw, or fail with, N stands as it would
// have stood without them. Two copies of an address live through the same proofs and the same claims of N; one of them also meets
// an attacker, who may claim what he likes (N's own key, which is public, too) but cannot prove a key.
func TestClaimsNeverWeaken(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		quiet, attacked := NewAddress(linger), NewAddress(linger)
		both := func(f func(a *Address)) { f(quiet); f(attacked) }
		now := start
		n := func() Claim { return claim("n.example.", 100*time.Hour, "n1", "n2") }
		evil := func() Claim {
			c := claim(fmt.Sprintf("evil%d.example.", rapid.IntRange(0, 200).Draw(t, "evil")), 0)
			c.Until = now.Add(time.Duration(rapid.IntRange(-10, 1000).Draw(t, "ttl")) * time.Second)
			for range rapid.IntRange(0, 3).Draw(t, "keys") {
				c.Keys = append(c.Keys, key(rapid.SampledFrom([]string{"e1", "e2", "n1", "n2"}).Draw(t, "key")))
			}
			return c
		}
		t.Repeat(map[string]func(*rapid.T){
			"time": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 200_000).Draw(t, "ms")) * time.Millisecond)
			},
			"X proves": func(t *rapid.T) {
				k := key(rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "proof"))
				both(func(a *Address) { a.Prove(now, k) })
			},
			"X is alive":  func(*rapid.T) { both(func(a *Address) { a.Alive(now) }) },
			"X is lost":   func(*rapid.T) { both(func(a *Address) { a.Lost() }) },
			"N is asked":  func(*rapid.T) { both(func(a *Address) { a.Ask(now, n()) }) },
			"N fails":     func(*rapid.T) { both(func(a *Address) { a.Fail(now, n(), "no answer") }) },
			"time passes": func(*rapid.T) { both(func(a *Address) { a.Expire(now) }) },
			"evil claims": func(*rapid.T) { attacked.Ask(now, evil()) },
			"evil fails":  func(*rapid.T) { attacked.Fail(now, evil(), "no answer") },
			"evil leaves": func(*rapid.T) { attacked.Withdraw(evil().Name) },
			"": func(t *rapid.T) {
				if q, a := quiet.HoldUntil(), attacked.HoldUntil(); !q.Equal(a) {
					t.Fatalf("the hold ends at %v, without the attacker at %v", a, q)
				}
				q, a := quiet.judge(now, n()), attacked.judge(now, n())
				// The one thing a flood may do is to make us forget a failure: N is tried again sooner, never later.
				if q != a && !(q.State == Failed && a.State == Negotiate) {
					t.Fatalf("N is %+v, without the attacker %+v", a, q)
				}
				if len(attacked.claims) > MaxClaims || len(attacked.failures) > MaxFailures {
					t.Fatalf("%d claims, %d failures", len(attacked.claims), len(attacked.failures))
				}
			},
		})
	})
}
