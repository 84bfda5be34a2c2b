package config

import (
	"fmt"
	"net/netip"
	"strings"
)

// canonicalName checks a domain name and returns it in lower case with the final dot. Names in a configuration are those of hosts
// and zones: letters, digits, hyphens and underscores, in A-labels (RFC 1035, 2.3.1; RFC 5891).
func canonicalName(s string) (string, error) {
	name := strings.ToLower(strings.TrimSuffix(s, "."))
	if name == "" {
		return "", fmt.Errorf("%q is no name", s)
	}
	if len(name) > 253 {
		return "", fmt.Errorf("a name has at most 253 octets, not %d", len(name))
	}
	for label := range strings.SplitSeq(name, ".") {
		switch {
		case label == "":
			return "", fmt.Errorf("%q has an empty label", s)
		case len(label) > 63:
			return "", fmt.Errorf("%q has a label of more than 63 octets", s)
		case label[0] == '-' || label[len(label)-1] == '-':
			return "", fmt.Errorf("%q has a label that begins or ends with a hyphen", s)
		}
		for i := range len(label) {
			if c := label[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				if c >= 0x80 {
					return "", fmt.Errorf("%q is no name in ASCII: write it in A-labels (xn--...)", s)
				}
				return "", fmt.Errorf("%q has a character that is no letter, digit, hyphen or underscore", s)
			}
		}
	}
	return name + ".", nil
}

// hostName checks that a canonical name can be that of this host: fully qualified, and no address.
func hostName(name string) error {
	name = strings.TrimSuffix(name, ".")
	labels := strings.Split(name, ".")
	if len(labels) < 2 {
		return fmt.Errorf("%q is not fully qualified", name)
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return fmt.Errorf("%q is no name: its last label is a number", name)
	}
	return nil
}

// HostName checks a fully qualified name of a host and returns it in lower case without the final dot, as Config.Name is.
func HostName(s string) (string, error) {
	n, err := canonicalName(s)
	if err == nil {
		err = hostName(n)
	}
	return strings.TrimSuffix(n, "."), err
}

// parseMatch reads one match of a policy rule; name is a pattern of policy.Rule, or empty for a prefix.
func parseMatch(s string) (prefix netip.Prefix, name string, err error) {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return prefix, "", fmt.Errorf("%q: want an address without a scope", s)
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), "", nil
	}
	if strings.Contains(s, "/") {
		prefix, err = netip.ParsePrefix(s)
		switch {
		case err != nil:
			return prefix, "", fmt.Errorf("%q is no prefix", s)
		case prefix.Addr().Is4In6():
			return prefix, "", fmt.Errorf("%s: write it as an IPv4 prefix", s)
		case prefix.Masked() != prefix:
			return prefix, "", fmt.Errorf("%s has bits behind its length: %v", s, prefix.Masked())
		}
		return prefix, "", nil
	}
	if s == "*" || s == "*." {
		return prefix, "*.", nil
	}
	lead := ""
	rest := s
	if r, ok := strings.CutPrefix(s, "*."); ok {
		lead, rest = "*.", r
	} else if r, ok := strings.CutPrefix(s, "."); ok {
		lead, rest = ".", r
	}
	name, err = canonicalName(rest)
	if err != nil {
		return prefix, "", err
	}
	return prefix, lead + name, nil
}

// nearest returns the accepted key that a misspelt one probably means, or "".
func nearest(key string) string {
	best, at := "", 3
	for k := range settings {
		if d := distance(key, k); d < at || d == at && best != "" && k < best {
			best, at = k, d
		}
	}
	return best
}

// distance is the number of letters to insert, delete or replace that make b of a (Levenshtein). Long keys are no misspellings.
func distance(a, b string) int {
	if len(a) > 40 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
