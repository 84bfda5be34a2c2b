package resolver

import (
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// There are as many proven denials of keys as names, and nobody but the Watcher asks for most: what he wants to know of them is a few octets. They are
// kept apart from the entries, without records. Who asks for those has them looked up again, which the validator can often answer out of its proofs.

const (
	maxNoKeys       = 1 << 17
	maxNoKeyBytes   = 16 << 20 // as noKeys counts them
	noKeyOverhead   = 48       // octets, beside the name
	noKeyResolution = time.Millisecond
)

// noKey is a name's denial of a key.
type noKey struct {
	at           time.Duration // since epoch
	life, proven uint32        // noKeyResolutions; see entry
	rcode        uint8
}

// noKeys are those of many names. Not safe for concurrent use.
type noKeys struct {
	m     map[string]noKey
	bytes int
}

// compact says whether an entry is one that noKeys keep.
func (e *entry) compact() bool { return e.bare && e.owner == e.q.name && e.more == nil }

// put keeps a compact entry until its end. Of too many what has ended goes, then what the map yields.
func (n *noKeys) put(e *entry) {
	n.remove(e.q.name)
	if e.life < noKeyResolution {
		return
	}
	short := func(d time.Duration) uint32 { return uint32(min(d, maxPositive) / noKeyResolution) }
	n.m[e.q.name] = noKey{at: e.at, life: short(e.life), proven: short(e.proven), rcode: e.rcode}
	n.bytes += noKeyOverhead + len(e.q.name)
	if len(n.m) <= maxNoKeys && n.bytes <= maxNoKeyBytes {
		return
	}
	for name, k := range n.m {
		if k.ended(e.at) {
			n.remove(name)
		}
	}
	for name := range n.m {
		if len(n.m) <= maxNoKeys*7/8 && n.bytes <= maxNoKeyBytes*7/8 {
			break
		}
		n.remove(name)
	}
}

func (n *noKeys) remove(name string) {
	if _, ok := n.m[name]; ok {
		delete(n.m, name)
		n.bytes -= noKeyOverhead + len(name)
	}
}

func (k noKey) ended(now time.Duration) bool {
	return now-k.at >= time.Duration(k.life)*noKeyResolution
}

// get writes the entry of a name into e, if there is one.
func (n *noKeys) get(name string, now time.Time, e *entry) bool {
	k, ok := n.m[name]
	if !ok {
		return false
	}
	if k.ended(now.Sub(epoch)) {
		n.remove(name)
		return false
	}
	*e = entry{q: question{name, dns.TypeIPSECKEY}, owner: name, at: k.at, life: time.Duration(k.life) * noKeyResolution,
		proven: time.Duration(k.proven) * noKeyResolution, rcode: k.rcode, status: dnssec.Secure, answered: true, denied: true, bare: true}
	return true
}
