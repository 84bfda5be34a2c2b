package lab

import (
	"bufio"
	"bytes"
	"crypto"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// MarshalText writes all zones: a line "zone NAME", the private key in BIND's form with each line behind "key ", and the
// records, one a line.
func (d *DNS) MarshalText() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b bytes.Buffer
	for _, name := range sortedZones(d.zones) {
		z := d.zones[name]
		fmt.Fprintf(&b, "zone %s\n", name)
		if z.key != nil {
			for _, line := range strings.Split(strings.TrimSpace(z.key.PrivateKeyString(z.private)), "\n") {
				fmt.Fprintf(&b, "key %s\n", line)
			}
		}
		for _, owner := range z.owners() {
			for k, set := range z.sets {
				if k.name != owner {
					continue
				}
				for _, rr := range set {
					fmt.Fprintf(&b, "%s\n", rr)
				}
			}
		}
	}
	return b.Bytes(), nil
}

func sortedZones(m map[string]*zone) []string {
	var names []string
	for n := range m {
		names = append(names, n)
	}
	slices.SortFunc(names, compareNames)
	return names
}

// UnmarshalText reads what MarshalText wrote.
func (d *DNS) UnmarshalText(text []byte) error {
	d.zones, d.now = map[string]*zone{}, time.Now
	var z *zone
	var keyText strings.Builder
	finish := func() error {
		if z == nil || keyText.Len() == 0 {
			return nil
		}
		defer keyText.Reset()
		return z.readKey(keyText.String())
	}
	sc := bufio.NewScanner(bytes.NewReader(text))
	sc.Buffer(nil, 1<<20)
	for n := 1; sc.Scan(); n++ {
		line := sc.Text()
		switch {
		case strings.HasPrefix(line, "zone "):
			if err := finish(); err != nil {
				return fmt.Errorf("line %d: %w", n, err)
			}
			z = &zone{apex: line[5:], sets: map[setKey][]dns.RR{}, sigs: map[setKey]*dns.RRSIG{}}
			d.zones[z.apex] = z
		case z == nil:
			return fmt.Errorf("line %d: before any zone", n)
		case strings.HasPrefix(line, "key "):
			keyText.WriteString(line[4:] + "\n")
		default:
			rr, err := dns.NewRR(line)
			if err != nil {
				return fmt.Errorf("line %d: %w", n, err)
			}
			if rr == nil {
				return fmt.Errorf("line %d: no record", n)
			}
			z.add(rr)
		}
	}
	if err := finish(); err != nil {
		return err
	}
	if d.zones["."] == nil {
		return fmt.Errorf("no root zone")
	}
	return sc.Err()
}

func (z *zone) readKey(text string) error {
	set := z.sets[setKey{z.apex, dns.TypeDNSKEY}]
	if len(set) != 1 {
		return fmt.Errorf("zone %s: %d DNSKEY records", z.apex, len(set))
	}
	key, ok := set[0].(*dns.DNSKEY)
	if !ok {
		return fmt.Errorf("zone %s: no DNSKEY", z.apex)
	}
	private, err := key.NewPrivateKey(text)
	if err != nil {
		return fmt.Errorf("zone %s: %w", z.apex, err)
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return fmt.Errorf("zone %s: its key does not sign", z.apex)
	}
	z.key, z.private = key, signer
	return nil
}
