package pad

import (
	"crypto"
	"time"
)

// Initiator says which keys an initiator at X may prove (TRUST.md R2, R3, R7), of whom DNS says the claim; without one claim is the zero value.
// contest: one of the claim's keys may not come in because of the live one, whose SA is to be asked whether it still stands; until it does not,
// nobody else comes in.
//
// Where an SA is live, another key takes its place only if every name that stands behind it publishes the new one too, as when a host's key is
// rolled over: a set that lists the live key beside one of its own is anybody's to publish. So is one that lists the live key alone, which the
// host's new one must not wait for longer than the incumbent takes to answer (I3).
func (a *Address) Initiator(now time.Time, c Claim) (keys []crypto.PublicKey, contest bool) {
	if !a.Held(now) && !a.live {
		return c.PublicKeys(), false
	}
	if a.key.Public != nil {
		keys = append(keys, a.key.Public)
	}
	if !a.live {
		return append(keys, c.PublicKeys()...), false
	}
	if len(c.Keys) == 0 {
		return keys, false
	}
	if !c.Has(a.key.ID) {
		return keys, true
	}
	for _, k := range c.Keys {
		switch {
		case k.ID == a.key.ID || k.Public == nil:
		case a.agreed(now, c.Name, k):
			keys = append(keys, k.Public)
		default:
			contest = true
		}
	}
	return keys, contest
}

// agreed reports whether every other name that the live key satisfies publishes k as well, and the name itself has been one of them.
func (a *Address) agreed(now time.Time, name string, k Key) bool {
	satisfied, _ := a.Names(now)
	itself := false
	for _, n := range satisfied {
		if n == name {
			itself = true
		} else if !a.claims[n].Has(k.ID) {
			return false
		}
	}
	return itself
}

// Claimed is the claim of a name that was made before and has not ended.
func (a *Address) Claimed(now time.Time, name string) (Claim, bool) {
	c, ok := a.claims[name]
	return c, ok && now.Before(c.Until)
}
