package dnssec

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// Anchors are the trust anchors (RFC 4033, 2): for each zone the DS and DNSKEY records believed without a chain. They change by a Rollover only.
// The mutex is for that; it is held for map operations.
type Anchors struct {
	mu    sync.RWMutex
	zones map[string]*anchor // by canonical zone name
}

type anchor struct {
	ds   []*dns.DS
	keys []*dns.DNSKEY
}

// rootAnchors are published by IANA at https://data.iana.org/root-anchors/root-anchors.xml: the keys of 2017 and 2024.
const rootAnchors = `. IN DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D
. IN DS 38696 8 2 683D2D0ACB8C9B712A1948B27F741219298D0A450D612C483AF444A4C0FB2B16
`

// RootAnchors are the two anchors of the root that IANA publishes: key tags 20326 and 38696.
func RootAnchors() *Anchors {
	a, err := ParseAnchors([]byte(rootAnchors), "built-in")
	if err != nil {
		panic(err) // a constant
	}
	return a
}

// Top is the zone closest to the root that has an anchor.
func (a *Anchors) Top() string {
	a.mu.RLock()
	defer a.mu.RUnlock()
	top := ""
	for z := range a.zones {
		if n := dns.CountLabel(z); top == "" || n < dns.CountLabel(top) || n == dns.CountLabel(top) && z < top {
			top = z
		}
	}
	return top
}

// ParseAnchors reads DS and DNSKEY records in zone-file form, as dnssec-dsfromkey, ldns-keygen and unbound-anchor write them. Errors begin with
// file:line. Directives are refused, and so is a file without an anchor.
func ParseAnchors(text []byte, file string) (*Anchors, error) {
	a := &Anchors{zones: make(map[string]*anchor)}
	var record strings.Builder
	start, depth := 1, 0
	for i, line := range strings.Split(string(text), "\n") {
		line, _, _ = strings.Cut(line, ";")
		if depth == 0 {
			start = i + 1
			record.Reset()
		}
		depth += strings.Count(line, "(") - strings.Count(line, ")")
		record.WriteString(line)
		record.WriteByte(' ')
		if depth > 0 && record.Len() < maxAnchorText {
			continue
		}
		if depth != 0 {
			return nil, fmt.Errorf("%s:%d: unbalanced parentheses", file, i+1)
		}
		if err := a.parse(record.String()); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, start, err)
		}
	}
	if depth != 0 {
		return nil, fmt.Errorf("%s:%d: unbalanced parentheses", file, start)
	}
	if len(a.zones) == 0 {
		return nil, fmt.Errorf("%s:1: no DS or DNSKEY record", file)
	}
	return a, nil
}

// maxAnchorText bounds one record, in octets of text.
const maxAnchorText = 16 << 10

// parse takes one record in, on one line without comments; an empty line is nothing.
func (a *Anchors) parse(line string) error {
	if strings.TrimSpace(line) == "" {
		return nil
	}
	if line[0] == '$' {
		return fmt.Errorf("%.20s: a directive has no place among trust anchors", strings.Fields(line)[0])
	}
	if line[0] == ' ' || line[0] == '\t' {
		return errors.New("a record without its owner")
	}
	rr, err := dns.NewRR(line)
	if err != nil {
		var pe *dns.ParseError
		if errors.As(err, &pe) && pe.Unwrap() != nil {
			err = pe.Unwrap()
		}
		return err
	}
	if rr == nil {
		return errors.New("no record")
	}
	return a.add(rr)
}

// digestSize is the length in octets of the digests that we know.
var digestSize = map[uint8]int{dns.SHA1: 20, dns.SHA256: 32, dns.SHA384: 48}

// add takes a record in.
func (a *Anchors) add(rr dns.RR) error {
	h := rr.Header()
	if h.Class != dns.ClassINET {
		return fmt.Errorf("class %s", dns.Class(h.Class))
	}
	z := a.zones[dns.CanonicalName(h.Name)]
	if z == nil {
		z = new(anchor)
	}
	switch rr := rr.(type) {
	case *dns.DS:
		if n := len(rr.Digest) / 2; digestSize[rr.DigestType] != 0 && n != digestSize[rr.DigestType] {
			return fmt.Errorf("a digest of %d octets, want %d for type %d", n, digestSize[rr.DigestType], rr.DigestType)
		}
		z.ds = append(z.ds, rr)
	case *dns.DNSKEY:
		if rr.Flags&dns.ZONE == 0 || rr.Protocol != 3 {
			return fmt.Errorf("key %d of %s is no zone key", rr.KeyTag(), h.Name)
		}
		if rr.Flags&dns.REVOKE != 0 {
			return fmt.Errorf("key %d of %s is revoked", rr.KeyTag(), h.Name)
		}
		if rr.PublicKey == "" {
			return fmt.Errorf("no key for %s", h.Name)
		}
		z.keys = append(z.keys, rr)
	default:
		return fmt.Errorf("%s is no trust anchor: want DS or DNSKEY", typeName(h.Rrtype))
	}
	a.zones[dns.CanonicalName(h.Name)] = z
	return nil
}

// Zones lists the zones that have an anchor, sorted.
func (a *Anchors) Zones() []string {
	a.mu.RLock()
	defer a.mu.RUnlock()
	var out []string
	for z := range a.zones {
		out = append(out, z)
	}
	slices.Sort(out)
	return out
}

// closest is the deepest zone with an anchor at or above name.
func (a *Anchors) closest(name string) (string, *anchor) {
	if a == nil {
		return "", nil
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	for {
		if z := a.zones[name]; z != nil {
			return name, z
		}
		if name == "." {
			return "", nil
		}
		name = parent(name)
	}
}

// set replaces the anchor of a zone; nil takes it away.
func (a *Anchors) set(zone string, to *anchor) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if to == nil {
		delete(a.zones, zone)
		return
	}
	if a.zones == nil {
		a.zones = make(map[string]*anchor)
	}
	a.zones[zone] = to
}
