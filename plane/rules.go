package plane

import (
	"errors"

	"tacit/ipsec"
)

// ErrRules is returned for rules that no element of guard can carry.
var ErrRules = errors.New("rules for prefixes: not in this version")

// SetRules replaces the rules of prefixes; see [ipsec.Dataplane].
func (p *Policies[F]) SetRules(rules []ipsec.Rule) error {
	if len(rules) > 0 {
		return ErrRules
	}
	return nil
}
