// Package config reads tacit.toml: strict, with errors as file:line:column.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"time"

	"tacit/policy"
	"tacit/upstream"
)

// DefaultPath is where the configuration is looked for.
const DefaultPath = "/etc/tacit/tacit.toml"

// maxSize bounds the file, in octets.
const maxSize = 1 << 20

// Config is tacit.toml with its defaults filled in.
type Config struct {
	Name          string // canonical FQDN without the final dot; empty: anonymous
	Identity      string
	Identify      string // never, matched, all
	Dataplane     string // auto, xfrm, tun
	Socket        string
	PostQuantum   string // after, before, off
	Linger        time.Duration
	IKELifetime   time.Duration
	ChildLifetime time.Duration
	NATPool       []netip.Prefix // what clients behind a NAT are assigned: one of a family at most
	NATAddresses  []netip.Addr   // of NATs that lead IKE's ports to us: one of a family at most
	MaxPeers      int            // addresses of peers, in pairs with ours, that are known at once
	DNS           DNS
	Policy        []policy.Rule // in the file's order, the built-in default last
	Peer          []Peer
	Pins          Pins // from LoadPins, not from the file
}

// Peer is one [[peer]]: an endpoint known by name.
type Peer struct {
	Name    string     // canonical, with the final dot
	Address netip.Addr // where it is; invalid: where DNS says
	Start   string     // now: kept up; on-demand
	Pin     []string   // fingerprints of the keys that it may prove; empty: what DNS proves
	Line    int        // in the file
}

// DNS is [dns].
type DNS struct {
	Listen           []netip.AddrPort
	Upstream         []upstream.Server
	Iterate          bool     // ask the authorities where no upstream brings what DNSSEC needs
	RootHints        string   // path; empty: the Internet's root servers
	TrustAnchors     string   // path; empty: the built-in root anchors
	TrustAnchorState string   // path of what RFC 5011 has learned; empty: the anchors do not roll over
	NegativeAnchors  []string // canonical: zones that are unsigned whatever the zones above say
	TimeServers      []string // canonical: names, and zones of names, that this host may set its clock by
	InternalZones    []string // canonical, with the final dot
	TrustAD          bool     // the upstreams, all on loopback, validate for us
	Hold             time.Duration
	Manage           string // off
	OnFailure        string // open, closed; empty: closed where the rule is private
}

// Default returns the configuration of a host without a file: an anonymous client. It has no upstream: UseNameservers.
func Default() *Config {
	return &Config{
		Identity:      "/var/lib/tacit/identity.pem",
		Identify:      "matched",
		Dataplane:     "auto",
		Socket:        "/run/tacit/tacit.sock",
		PostQuantum:   "after",
		Linger:        5 * time.Minute,
		IKELifetime:   8 * time.Hour,
		ChildLifetime: time.Hour,
		// For benchmarks (RFC 2544, RFC 5180): no host of the Internet, and of hardly any other network.
		NATPool:  []netip.Prefix{netip.MustParsePrefix("198.19.0.0/16"), netip.MustParsePrefix("2001:2:0:7ac1::/64")},
		MaxPeers: 65536,
		DNS: DNS{
			Listen:  []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")},
			Iterate: true,
			Hold:    2 * time.Second,
			Manage:  "off",
			TimeServers: []string{"ntp.org.", "ntp.ubuntu.com.", "time.cloudflare.com.", "time.google.com.", "time1.google.com.", "time2.google.com.",
				"time3.google.com.", "time4.google.com.", "time.nist.gov."},
		},
		Policy: []policy.Rule{policy.Default()},
	}
}

// Table returns the rules in a form that is asked.
func (c *Config) Table() *policy.Table {
	pins := make(map[string][]string)
	for _, p := range c.Peer {
		pins[p.Name] = p.Pin
		if p.Address.IsValid() { // others may be said to be there, too
			at := p.Address.String()
			pins[at] = append(pins[at], p.Pin...)
		}
	}
	for subject, keys := range c.Pins {
		pins[subject] = append(slices.Clone(keys), pins[subject]...)
	}
	return policy.NewTable(c.Policy).WithEndpoints(pins)
}

// Load reads the file. The one at DefaultPath may be missing. An error in the content is an Errors. Where it names no upstream the
// caller says what the host's own servers are: UseNameservers.
func Load(path string) (*Config, error) {
	c := Default()
	data, err := readBounded(path)
	switch {
	case err == nil:
		if c, err = Parse(data, path); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrNotExist) || path != DefaultPath:
		return nil, err
	}
	return c, nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxSize {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxSize)
	}
	return data, nil
}
