// Package control is the Unix socket between the daemon and its command line, both ends: HTTP and JSON, /v1/... The types here
// are the stable interface of `tacit status --json`: fields are added, never renamed or given another meaning.
package control

import (
	"context"
	"net/netip"
	"time"
)

// SchemaVersion is raised when a reader of an older Status would misunderstand.
const SchemaVersion = 1

// State of a peer: what its address gets now.
type State string

// The states.
const (
	Keying    State = "keying"    // a negotiation is under way
	Protected State = "protected" // traffic is encrypted
	Clear     State = "clear"     // traffic goes in clear, as policy allows
	Withheld  State = "withheld"  // names at the address are not answered
	Lame      State = "lame"      // no new answers; the SA serves the flows it has
)

// Assurance is what is known of who is at the other end. It never says more than was proven (TRUST.md I8).
type Assurance string

// The assurances.
const (
	Authenticated Assurance = "authenticated" // it proved a key that a secure RRset of its names holds
	Anonymous     Assurance = "anonymous"     // encrypted, with nobody in particular
	NoAssurance   Assurance = "none"
)

// Status is what the daemon does now.
type Status struct {
	SchemaVersion int               `json:"schema_version"`
	Version       string            `json:"version"`
	Since         time.Time         `json:"since"`
	Name          string            `json:"name"` // our own FQDN; empty: anonymous
	Observe       bool              `json:"observe,omitempty"`
	Dataplane     Dataplane         `json:"dataplane"`
	DNS           DNS               `json:"dns"`
	Peers         []Peer            `json:"peers"`
	Counters      map[string]uint64 `json:"counters"`
}

// Dataplane is which one carries the packets, and why that one.
type Dataplane struct {
	Kind string `json:"kind"` // tun
	Why  string `json:"why"`
}

// DNS is the daemon's DNS server.
type DNS struct {
	Listen   []netip.AddrPort `json:"listen"`
	Upstream []string         `json:"upstream"`
	// Ways are the upstreams, and the authorities where they may be asked, and what was found to pass by each.
	Ways       []Way  `json:"ways"`
	Validation string `json:"validation"` // "own", or to whom it is delegated
	// Stub says whether the host asks us and nobody else (TRUST.md A-55): "ok", or "FAIL: " and why.
	Stub string `json:"stub"`
}

// Way is a way to the DNS.
type Way struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Why  string `json:"why,omitempty"` // what does not pass
}

// Peer is one remote address.
type Peer struct {
	Address netip.Addr `json:"address"`
	Local   netip.Addr `json:"local"` // our own address
	// Outer is where a client behind a NAT is seen; Address is then the one that we have assigned to it. Not valid: it is behind none.
	Outer     netip.AddrPort `json:"outer,omitzero"`
	Names     []string       `json:"names"` // those that its key satisfies; without the final dot
	State     State          `json:"state"`
	Assurance Assurance      `json:"assurance"`
	KeyID     string         `json:"key_id"` // the proven key's fingerprint, of an anonymous peer the one that it is known again by; empty: none
	Suite     string         `json:"suite"`
	Mode      string         `json:"mode"` // transport, tunnel; with "-udp" behind it where ESP travels in UDP
	Since     time.Time      `json:"since"`
	BytesIn   uint64         `json:"bytes_in"`
	BytesOut  uint64         `json:"bytes_out"`
	Why       string         `json:"why"`
}

// Handler is the daemon's side.
type Handler interface {
	Status(ctx context.Context) (Status, error)
	// Reload reads the configuration again. An error says what is wrong with it; then nothing has changed.
	Reload(ctx context.Context) error
	// Events returns what has happened after the event with that Seq, at once or, where there is nothing, when something happens or ctx ends.
	Events(ctx context.Context, after uint64) (Events, error)
}
