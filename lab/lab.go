// Package lab builds small networks inside one Linux machine: hosts in network namespaces of their own, one switch that
// joins them, a tap that sees every frame on the cable, and a private signed DNS. It needs root, and nothing but Go and
// Linux: no ip, no nft, no tcpdump, no name server. `tacit demo` and the end-to-end tests live on it.
//
// Nothing of a lab touches the machine's own network: links are made inside the lab's own namespaces.
package lab

import (
	"fmt"
	"net/netip"
	"strings"
)

// maxHostName is the longest name of a host: it names its port on the switch too (IFNAMSIZ less the final zero).
const maxHostName = 15

// checkName accepts what can stand in the name of a namespace, of an interface and of a file.
func checkName(kind, s string) error {
	if s == "" || len(s) > maxHostName {
		return fmt.Errorf("%s name %q: want 1 to %d characters", kind, s, maxHostName)
	}
	for _, r := range s {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-", r) {
			return fmt.Errorf("%s name %q: only a-z, 0-9 and - may stand in it", kind, s)
		}
	}
	return nil
}

// Prefixes parses "192.0.2.1/24" and the like; it panics on anything else, as it is meant for constants.
func Prefixes(s ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(s))
	for i := range s {
		out[i] = netip.MustParsePrefix(s[i])
	}
	return out
}
