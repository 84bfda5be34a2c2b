package pad

import (
	"crypto"
	"time"
)

// Initiator says which keys an initiator at X may prove (TRUST.md R2, R3, R7), of whom DNS says the claim; without one claim is the zero value.
// contest: the claim's keys are not the live one, whose SA is to be asked whether it still stands; until it does not, nobody else comes in.
//
// Where an SA is live, another key takes its place only if every name that stands behind it publishes the new one too, as when a host's key is
// rolled over: a set that lists the live key beside one of its own is anybody's to publish.
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
		if k.ID != a.key.ID && k.Public != nil && a.agreed(now, c.Name, k) {
			keys = append(keys, k.Public)
		}
	}
	return keys, false
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
