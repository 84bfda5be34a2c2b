package lab

import (
	"crypto"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// DNS is a small world of names: a signed root and zones below it, signed or proven insecure (no DS at their
// delegation). It answers as a resolver that forwards everything and validates nothing would: for names of all its
// zones, with RRSIG, NSEC and DS records where DO is set. Records may be changed while it serves; signatures are made
// when they are first needed. Its methods may be called from any goroutine.
type DNS struct {
	// Tamper, where set, is called for every answer before it leaves and returns what leaves instead; nil is silence.
	// It may change the answer, and it may take its time: each query has a goroutine of its own.
	Tamper func(query, answer *dns.Msg) *dns.Msg

	mu    sync.Mutex // tests change records while queries are answered
	zones map[string]*zone
	now   func() time.Time
}

// zone is one zone's records.
type zone struct {
	apex    string
	key     *dns.DNSKEY // nil: unsigned
	private crypto.Signer
	sets    map[setKey][]dns.RR
	sigs    map[setKey]*dns.RRSIG // cached; emptied when anything changes
	names   []string              // all owners in canonical order; nil when it has to be made again
}

type setKey struct {
	name string
	kind uint16
}

// validity of signatures, around the moment they are made.
const (
	signedSince = time.Hour
	signedUntil = 14 * 24 * time.Hour
	defaultTTL  = 300
)

// NewDNS makes a world that holds a signed root and nothing else. Keys are Ed25519, one for each zone.
func NewDNS() (*DNS, error) { return NewDNSAt(time.Now) }

// NewDNSAt is NewDNS with a clock, which says when signatures begin.
func NewDNSAt(now func() time.Time) (*DNS, error) {
	d := &DNS{zones: map[string]*zone{}, now: now}
	return d, d.addZone(".", dns.ED25519)
}

// AddZone adds a zone under its nearest existing parent, with SOA and NS records. A signed zone gets a key, and its
// parent the DS record; an unsigned one is a proven insecure delegation if the parent is signed.
func (d *DNS) AddZone(name string, signed bool) error {
	if signed {
		return d.AddSignedZone(name, dns.ED25519)
	}
	return d.addZone(dns.CanonicalName(name), 0)
}

// AddSignedZone is AddZone for a signed zone with the algorithm: dns.ED25519, dns.ECDSAP256SHA256 or dns.RSASHA256.
func (d *DNS) AddSignedZone(name string, algorithm uint8) error {
	return d.addZone(dns.CanonicalName(name), algorithm)
}

func (d *DNS) addZone(apex string, algorithm uint8) error {
	z := &zone{apex: apex, sets: map[setKey][]dns.RR{}, sigs: map[setKey]*dns.RRSIG{}}
	server := "ns." + strings.TrimPrefix(apex, ".")
	for _, s := range []string{
		fmt.Sprintf("%s %d SOA %s hostmaster.%s 1 3600 600 86400 60", apex, defaultTTL, server, strings.TrimPrefix(apex, ".")),
		fmt.Sprintf("%s %d NS %s", apex, defaultTTL, server),
		fmt.Sprintf("%s %d A 192.0.2.53", server, defaultTTL),
	} {
		rr, err := dns.NewRR(s)
		if err != nil {
			return fmt.Errorf("zone %s: %w", apex, err)
		}
		z.add(rr)
	}
	if algorithm != 0 {
		if err := z.makeKey(algorithm); err != nil {
			return fmt.Errorf("zone %s: %w", apex, err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if parent := d.parentOf(apex); parent != nil {
		parent.add(&dns.NS{Hdr: header(apex, dns.TypeNS), Ns: server})
		if z.key != nil {
			ds := z.key.ToDS(dns.SHA256)
			ds.Hdr = header(apex, dns.TypeDS)
			parent.add(ds)
		}
	}
	d.zones[apex] = z
	return nil
}

func header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: defaultTTL}
}

// Add adds records in zone-file form with full names, for example "www.example. 60 A 192.0.2.1".
func (d *DNS) Add(records ...string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range records {
		rr, err := dns.NewRR(s)
		if err != nil {
			return err
		}
		if rr == nil {
			return fmt.Errorf("no record in %q", s)
		}
		rr.Header().Name = dns.CanonicalName(rr.Header().Name)
		z := d.zoneOf(rr.Header().Name, rr.Header().Rrtype)
		z.add(rr)
	}
	return nil
}

// Replace removes the set of records (name, type) and puts these in its place; with none it only removes.
func (d *DNS) Replace(name string, kind uint16, records ...string) error {
	name = dns.CanonicalName(name)
	d.mu.Lock()
	z := d.zoneOf(name, kind)
	delete(z.sets, setKey{name, kind})
	z.changed()
	d.mu.Unlock()
	return d.Add(records...)
}

// TrustAnchor is the root's key in zone-file form, one record a line: what dns.trust-anchors names.
func (d *DNS) TrustAnchor() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.zones["."].key.String() + "\n"
}

// TrustAnchorDS is the root's key as a DS record.
func (d *DNS) TrustAnchorDS() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.zones["."].key.ToDS(dns.SHA256).String() + "\n"
}

// zoneOf is the zone that answers for (name, kind): the nearest one above the name; for DS at a zone's apex, the parent.
func (d *DNS) zoneOf(name string, kind uint16) *zone {
	if kind == dns.TypeDS && name != "." {
		if _, ok := d.zones[name]; ok {
			return d.parentOf(name)
		}
	}
	for n := name; ; n = parentName(n) {
		if z, ok := d.zones[n]; ok {
			return z
		}
	}
}

func (d *DNS) parentOf(apex string) *zone {
	if apex == "." {
		return nil
	}
	return d.zoneOf(parentName(apex), dns.TypeNone)
}

func parentName(name string) string {
	i, end := dns.NextLabel(name, 0)
	if end {
		return "."
	}
	return name[i:]
}

func (z *zone) add(rr dns.RR) {
	k := setKey{rr.Header().Name, rr.Header().Rrtype}
	if !slices.ContainsFunc(z.sets[k], func(old dns.RR) bool { return dns.IsDuplicate(old, rr) }) {
		z.sets[k] = append(z.sets[k], rr)
	}
	z.changed()
}

// changed forgets what was made from the records.
func (z *zone) changed() {
	z.names = nil
	clear(z.sigs)
}
