package dnssec

import (
	"bytes"
	"fmt"

	"github.com/miekg/dns"
)

// canonical is name in lower case, fully qualified, in the one escaped form that unpacking gives. Names off the wire need dns.CanonicalName only.
func canonical(name string) (string, error) {
	buf := make([]byte, 256)
	n, err := dns.PackDomainName(dns.Fqdn(name), buf, 0, nil, false)
	if err != nil {
		return "", fmt.Errorf("name %.80q: %w", name, err)
	}
	name, _, err = dns.UnpackDomainName(buf[:n], 0)
	if err != nil {
		return "", fmt.Errorf("name: %w", err)
	}
	return dns.CanonicalName(name), nil
}

// parent is name without its first label; the parent of the root is the root.
func parent(name string) string {
	i, end := dns.NextLabel(name, 0)
	if end {
		return "."
	}
	return name[i:]
}

// above are the ancestors of name from just below top down to name itself: above("a.b.c.", "c.") is b.c., a.b.c.
func above(name, top string) []string {
	n := dns.CountLabel(name) - dns.CountLabel(top)
	out := make([]string, max(n, 0))
	for i := n - 1; i >= 0; i-- {
		out[i] = name
		name = parent(name)
	}
	return out
}

// ancestor is the ancestor of name that has n labels.
func ancestor(name string, n int) string {
	for k := dns.CountLabel(name); k > n; k-- {
		name = parent(name)
	}
	return name
}

// within says whether name is zone or below it, label by label (www.notexample. is not within example.).
func within(name, zone string) bool { return dns.IsSubDomain(zone, name) }

// below says whether name is below zone, and not zone itself.
func below(name, zone string) bool { return name != zone && within(name, zone) }

// common is the longest common ancestor of two canonical names.
func common(a, b string) string { return ancestor(a, dns.CompareDomainName(a, b)) }

// isWildcard says whether the first label is an asterisk.
func isWildcard(name string) bool { return len(name) >= 2 && name[:2] == "*." }

// wildcardOf is the wildcard directly below name.
func wildcardOf(name string) string {
	if name == "." {
		return "*."
	}
	return "*." + name
}

// compare orders canonical names as RFC 4034, 6.1: by labels from the right, each as octets.
func compare(a, b string) int {
	la, lb := octets(a), octets(b)
	for i := 1; i <= min(len(la), len(lb)); i++ {
		if c := bytes.Compare(la[len(la)-i], lb[len(lb)-i]); c != 0 {
			return c
		}
	}
	return len(la) - len(lb)
}

// octets are the labels of a name without escapes.
func octets(name string) [][]byte {
	buf := make([]byte, 256)
	n, err := dns.PackDomainName(name, buf, 0, nil, false)
	if err != nil {
		return nil
	}
	labels := make([][]byte, 0, 8)
	for i := 0; i < n && buf[i] != 0; i += int(buf[i]) + 1 {
		labels = append(labels, buf[i+1:i+1+int(buf[i])])
	}
	return labels
}

// locus is the name whose zone holds the RRset: DS records live on the parent's side of a zone cut (RFC 4035, 2.4).
func locus(name string, rrtype uint16) string {
	if rrtype == dns.TypeDS {
		return parent(name)
	}
	return name
}

// typeName is the mnemonic of an RR type, or TYPEn.
func typeName(t uint16) string { return dns.Type(t).String() }
