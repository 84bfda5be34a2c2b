package dnssec

import (
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// sentinel is the root key trust anchor sentinel (RFC 8509, 3): a name that begins with one of two labels tells those who ask for its address, by our failing
// or not, whether a key is a trust anchor of the root here. So whoever rolls the root's key over can count who is ready.
func (v *Validator) sentinel(ans Answer) Answer {
	if ans.Status != Secure || ans.Type != dns.TypeA && ans.Type != dns.TypeAAAA {
		return ans
	}
	label, _, _ := strings.Cut(ans.Name, ".")
	text, is := strings.CutPrefix(label, "root-key-sentinel-is-ta-")
	if !is {
		var not bool
		if text, not = strings.CutPrefix(label, "root-key-sentinel-not-ta-"); !not {
			return ans
		}
	}
	tag, err := strconv.ParseUint(text, 10, 16)
	if err != nil || len(text) != 5 || v.Anchors.trusts(".", uint16(tag)) == is {
		return ans
	}
	ans.Status, ans.EDE = Bogus, dns.ExtendedErrorCodeOther
	ans.Why = "key " + text + " is a trust anchor of the root (RFC 8509)"
	if is {
		ans.Why = "key " + text + " is no trust anchor of the root (RFC 8509)"
	}
	return ans
}

// trusts says whether a zone has an anchor of this key tag.
func (a *Anchors) trusts(zone string, tag uint16) bool {
	at, found := a.closest(zone)
	if found == nil || at != zone {
		return false
	}
	for _, ds := range found.ds {
		if ds.KeyTag == tag {
			return true
		}
	}
	for _, k := range found.keys {
		if k.KeyTag() == tag {
			return true
		}
	}
	return false
}
