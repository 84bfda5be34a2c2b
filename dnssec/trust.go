package dnssec

import (
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Trust is the chain of zones that an answer of this Validator hangs on, from the trust anchors down: of each zone whose keys were verified the key that signed
// them and what vouches for it, of one without keys the proof of that, of one that is broken what is wrong. It is made from what is remembered of the zones, for people: nothing is asked or verified.
func (v *Validator) Trust(ans Answer) (chain []Link) {
	now := v.Now()
	seen := map[string]bool{}
	for _, l := range ans.Links {
		owner, rrtype, _ := strings.Cut(strings.TrimPrefix(l.Of, "no "), " ")
		place := locus(owner, dns.StringToType[rrtype])
		top, trusted := v.top(place)
		if !trusted {
			continue
		}
		for _, name := range append([]string{top}, above(place, top)...) {
			if z := v.remembered(name, now); z != nil && !seen[name] {
				seen[name] = true
				chain = append(chain, z.trust(name == top))
			}
		}
	}
	return chain
}

// remembered is the zone at name, nil if there is none or it has ended.
func (v *Validator) remembered(name string, now time.Time) *zone {
	k, ok := v.zones.get(name, now)
	if !ok {
		return nil
	}
	return k.zone
}

// trust is a zone as a link.
func (z *zone) trust(top bool) Link {
	l := z.link(z.name)
	l.Zone = "" // it is Of
	if z.status == Secure {
		l.Of, l.Proof = z.name+" DNSKEY", "DS"
		if top {
			l.Proof = "trust anchor"
		}
	}
	return l
}
