package config

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
)

// Pins are the keys that `tacit pin` has named, as fingerprints: of a host by its name, canonical with the final dot, or of an address as
// netip.Addr.String has it. They lie beside our key, a line each, in a file that people may read and that only `tacit pin` writes.
type Pins map[string][]string

const (
	maxPins     = 8 // keys of a name or an address: more are not tried
	maxSubjects = 4096
	pinsHead    = "# Written by: tacit pin\n"
)

// PinsPath is where they are.
func (c *Config) PinsPath() string { return filepath.Join(filepath.Dir(c.Identity), "pins") }

// LoadPins reads the file at path; where there is none there are none. One that cannot be understood is an error: a pin that is not obeyed
// would be a promise not kept.
func LoadPins(path string) (Pins, error) {
	text, err := readBounded(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Pins{}, nil
	}
	if err != nil {
		return nil, err
	}
	p, err := ParsePins(text)
	if err != nil {
		return nil, fmt.Errorf("%s:%w", path, err)
	}
	return p, nil
}

// ParsePins reads lines of a name or an address and a fingerprint. Empty ones and those that begin with # say nothing. An error begins with
// the number of the line.
func ParsePins(text []byte) (Pins, error) {
	pins := Pins{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Fields(line)
		if len(f) != 2 {
			return nil, fmt.Errorf("%d: want a name or an address, and a fingerprint", n)
		}
		if err := pins.Add(f[0], f[1]); err != nil {
			return nil, fmt.Errorf("%d: %w", n, err)
		}
	}
	return pins, lines.Err()
}

// Marshal is the inverse of ParsePins.
func (p Pins) Marshal() []byte {
	text := []byte(pinsHead)
	for _, subject := range p.Subjects() {
		for _, key := range p[subject] {
			text = fmt.Appendf(text, "%s %s\n", ShowSubject(subject), key)
		}
	}
	return text
}

// Subjects are the names and addresses that have pins, sorted.
func (p Pins) Subjects() []string { return slices.Sorted(maps.Keys(p)) }

// ShowSubject is a subject without the final dot of a name.
func ShowSubject(subject string) string { return strings.TrimSuffix(subject, ".") }

// Add pins a key, once.
func (p Pins) Add(subject, fingerprint string) error {
	s, err := Subject(subject)
	if err == nil {
		err = checkFingerprint(fingerprint)
	}
	switch {
	case err != nil:
		return err
	case slices.Contains(p[s], fingerprint):
		return nil
	case len(p[s]) >= maxPins:
		return fmt.Errorf("%s: more than %d keys", subject, maxPins)
	case len(p) >= maxSubjects && p[s] == nil:
		return fmt.Errorf("more than %d names and addresses", maxSubjects)
	}
	p[s] = append(p[s], fingerprint)
	return nil
}

// Remove takes a pin away, or with an empty fingerprint all of the subject. There must be one.
func (p Pins) Remove(subject, fingerprint string) error {
	s, err := Subject(subject)
	if err != nil {
		return err
	}
	left := slices.DeleteFunc(slices.Clone(p[s]), func(k string) bool { return fingerprint == "" || k == fingerprint })
	if len(left) == len(p[s]) {
		return fmt.Errorf("%s: no such pin", subject)
	}
	if p[s] = left; len(left) == 0 {
		delete(p, s)
	}
	return nil
}

// Subject is the canonical form of the name of a host or of an address, as Pins has it.
func Subject(s string) (string, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		name, err := HostName(s)
		return name + ".", err
	}
	if a = a.Unmap(); !oneOther(a) {
		return "", fmt.Errorf("%q: want the address of one other host", s)
	}
	return a.String(), nil
}

// oneOther reports whether an address can be that of one other host.
func oneOther(a netip.Addr) bool {
	return !a.IsMulticast() && !a.IsUnspecified() && !a.IsLoopback() && a.Zone() == ""
}

// checkFingerprint wants one as `tacit key show`, `tacit lookup` and `tacit status` print it.
func checkFingerprint(s string) error {
	const kind, size = "SHA256:", 32
	digest, ok := strings.CutPrefix(s, kind)
	raw, err := base64.RawStdEncoding.Strict().DecodeString(digest)
	if !ok || err != nil || len(raw) != size {
		return fmt.Errorf("%q is no fingerprint: want %s and 43 characters of base64", s, kind)
	}
	return nil
}
