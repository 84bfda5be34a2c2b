// Package resolver is the host's DNS server: it forwards, validates, caches, and calls a Watcher before it releases an address.
// It withholds; it never adds or changes.
package resolver

import (
	"context"
	"net/netip"
	"time"

	"tacit/dnssec"
	"tacit/ipseckey"
)

// Interest says what a name deserves, before any query.
type Interest uint8

// The interests.
const (
	AskKey  Interest = iota // ask IPSECKEY beside the address
	SkipKey                 // class clear: answer
	Refuse                  // class block: no answer
)

// Found is an address answer with its key. Addresses of A, AAAA and of the hints of HTTPS and SVCB.
type Found struct {
	Asked, Owner           string // canonical, with the final dot; Owner is where the chain ended (TargetName for HTTPS and SVCB)
	Addrs                  []netip.Addr
	AddrStatus             dnssec.Status
	Keys                   []ipseckey.Record // what the validated answer held; empty with Secure is a proven denial
	KeyStatus              dnssec.Status
	Denied                 bool      // the key answer is a denial
	Until                  time.Time // the earlier end of both answers: TTLs and signatures
	KeyWhy                 string
	CD                     bool      // the client disabled checking: with AddrStatus below Insecure, data may leave, an address of a proven key may not
	Hint                   bool      // the addresses are hints of an HTTPS or SVCB record
	AskedAt, AddrAt, KeyAt time.Time // for the timeline: query in, address validated, key validated
}

// Withheld is an address that must not be released.
type Withheld struct {
	Addr netip.Addr
	EDE  uint16 // RFC 8914
	Why  string
}

// Verdict is what the Watcher says. TTL caps the answer's; 0: no cap.
type Verdict struct {
	Withhold []Withheld
	TTL      time.Duration
}

// Watcher decides over names and addresses. It is called by many goroutines at once, for each answer anew, also from the cache.
type Watcher interface {
	Interest(name string) Interest
	// Known is what Watch would say, where that is to release all addresses and takes neither waiting nor doing anything; else false.
	Known(f Found) (Verdict, bool)
	// Watch returns when the answer may leave. It honours ctx, whose deadline is the hold.
	Watch(ctx context.Context, f Found) Verdict
}
