package resolver

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// maxNameservers is how many lines glibc, musl and Go take (resolv.conf(5), MAXNS).
const maxNameservers = 3

// ParseResolvConf returns the nameservers that a stub resolver takes from a resolv.conf(5), at most three, in order.
// A file without any means the resolver on this host. A line that no stub understands is skipped, as stubs do.
func ParseResolvConf(text []byte) []netip.Addr {
	var as []netip.Addr
	sc := bufio.NewScanner(bytes.NewReader(text))
	sc.Buffer(nil, len(text)+1)
	for sc.Scan() && len(as) < maxNameservers {
		line := sc.Text()
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			as = append(as, a.Unmap())
		}
	}
	if len(as) == 0 {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	return as
}

// CheckStub says whether a host with the resolv.conf at path asks tacit, listening at listen, and nobody else. With a second
// nameserver a stub takes that one's answer where tacit withholds: the error names it.
func CheckStub(path string, listen []netip.AddrPort) error {
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("resolver: %w", err)
	}
	ours := 0
	var others []string
	for _, a := range ParseResolvConf(text) {
		if serves(listen, a) {
			ours++
		} else {
			others = append(others, a.String())
		}
	}
	switch {
	// With a second nameserver glibc, musl and Go take its answer where ours is SERVFAIL; with another one alone nothing is asked here.
	case len(others) > 0 && ours > 0:
		return fmt.Errorf("%s: nameserver %s stands beside tacit: what tacit withholds, it answers", path, strings.Join(others, " and "))
	case len(others) > 0:
		return fmt.Errorf("%s: nameserver %s is not tacit, which listens at %s", path, strings.Join(others, " and "), joinAddrs(listen))
	}
	return nil
}

// serves says whether a stub that asks a, port 53, reaches one of the listeners.
func serves(listen []netip.AddrPort, a netip.Addr) bool {
	for _, l := range listen {
		if l.Port() != 53 {
			continue // resolv.conf has no ports
		}
		// 0.0.0.0 and :: listen on every address of the host; of a stub's words only loopback and "this host" are surely those.
		if l.Addr().Unmap() == a || l.Addr().IsUnspecified() && (a.IsLoopback() || a.IsUnspecified()) {
			return true
		}
	}
	return false
}

func joinAddrs(as []netip.AddrPort) string {
	if len(as) == 0 {
		return "no address"
	}
	ss := make([]string, len(as))
	for i, a := range as {
		ss[i] = a.String()
	}
	return strings.Join(ss, " and ")
}
