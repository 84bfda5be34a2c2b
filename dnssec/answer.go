// Package dnssec validates DNS answers (RFC 4033, 4034, 4035, 5155, 6840) behind a forwarder: a pure core, fed by an Exchanger.
package dnssec

import (
	"context"
	"time"

	"github.com/miekg/dns"
)

// Status is what validation made of data, weakest first (RFC 4033, 5).
type Status uint8

// The statuses. The weakest link of a chain decides.
const (
	Unchecked     Status = iota // nobody looked
	Bogus                       // a chain of trust should be there and is broken
	Indeterminate               // it could not be found out: no trust anchor, or no answer
	Insecure                    // a proof that the zone is unsigned, or signed with algorithms that we lack
	Secure                      // a chain of signatures from a trust anchor
)

func (s Status) String() string {
	if s > Secure {
		return "unknown"
	}
	return [...]string{"unchecked", "bogus", "indeterminate", "insecure", "secure"}[s]
}

// MarshalText is String.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Exchanger asks a question of the DNS and returns the whole answer (after TCP where the first was truncated).
// The Validator sets DO and CD and the id; an Exchanger sets transport details only.
type Exchanger interface {
	Exchange(ctx context.Context, q *dns.Msg) (*dns.Msg, error)
}

// Link is one link of an Answer: an RRset of the chain from the name that was asked, or a denial, and what stands behind it.
type Link struct {
	Of        string // "bob.example. A"; of a denial "no bob.example. MX"
	Status    Status
	Zone      string // whose key signed it, or where the chain of trust ends; empty if nobody knows
	KeyTag    uint16 // of the key that signed, of a denial the first of its records; 0 without Algorithm
	Algorithm uint8  // 0: nothing is signed
	Proof     string // signature, wildcard, NSEC, NSEC3; for Insecure: no DS, opt-out, algorithm; empty where there is none
	Why       string
}

// Answer is a validated answer. Bogus is an Answer with Why, not an error.
type Answer struct {
	Name      string    // asked, canonical (lower case, with the final dot)
	Type      uint16    // asked
	Msg       *dns.Msg  // the upstream's answer, its answer section cut down to the chain from Name to the RRs, TTLs capped; nil if there was none
	Status    Status    // of the whole: the weakest link of CNAMEs and data or denial
	Rcode     int       // of Msg; RcodeServerFailure without one
	Owner     string    // where the CNAME/DNAME chain ended; Name without a chain
	RRs       []dns.RR  // the RRset asked for, at Owner; nil is a denial (or no answer). Verified when Status is Secure
	Denied    bool      // the answer says that there are no RRs (NXDOMAIN or NODATA); proven when Status is Secure
	Chain     []string  // owners passed, Name first, Owner last
	Until     time.Time // how long it may be believed: TTLs, signature expiry, keys
	Links     []Link    // what was validated, in the order of Chain; the weakest makes Status, Why and EDE
	Why       string    // a sentence: which proof, or what is wrong and where
	Via       string    // by which way of a Rerouter the end of Chain came; empty if nobody was asked
	Detour    string    // why by another way than the first; empty: it was the first
	Unclocked bool      // the clock is known to be wrong, and nothing else is known to be: Indeterminate, but for those who need a name to set the clock by
	EDE       uint16    // RFC 8914 info code for Bogus and Indeterminate; 0xffff: none
}
