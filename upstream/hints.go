package upstream

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// Hint is a server of the root, and where it is said to be (RFC 9609, 2).
type Hint struct {
	Name  string // canonical
	Addrs []netip.Addr
}

// maxHints bounds the servers of the root.
const maxHints = 32

// rootServers are the Internet's, as https://www.internic.net/domain/named.root has them (2026).
var rootServers = []Hint{
	hint("a", "198.41.0.4", "2001:503:ba3e::2:30"),
	hint("b", "170.247.170.2", "2801:1b8:10::b"),
	hint("c", "192.33.4.12", "2001:500:2::c"),
	hint("d", "199.7.91.13", "2001:500:2d::d"),
	hint("e", "192.203.230.10", "2001:500:a8::e"),
	hint("f", "192.5.5.241", "2001:500:2f::f"),
	hint("g", "192.112.36.4", "2001:500:12::d0d"),
	hint("h", "198.97.190.53", "2001:500:1::53"),
	hint("i", "192.36.148.17", "2001:7fe::53"),
	hint("j", "192.58.128.30", "2001:503:c27::2:30"),
	hint("k", "193.0.14.129", "2001:7fd::1"),
	hint("l", "199.7.83.42", "2001:500:9f::42"),
	hint("m", "202.12.27.33", "2001:dc3::35"),
}

func hint(letter string, addrs ...string) Hint {
	h := Hint{Name: letter + ".root-servers.net."}
	for _, a := range addrs {
		h.Addrs = append(h.Addrs, netip.MustParseAddr(a))
	}
	return h
}

// ParseHints reads root hints in zone-file form, as the file named.root has them: NS records of the root and their A and AAAA records. file is its name in
// errors.
func ParseHints(data []byte, file string) ([]Hint, error) {
	var servers []string
	addrs := map[string][]netip.Addr{}
	p := dns.NewZoneParser(bytes.NewReader(data), ".", file)
	p.SetDefaultTTL(3600000)
	n := 0
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		if n++; n > 16*maxHints {
			return nil, fmt.Errorf("%s: more than %d records", file, 16*maxHints)
		}
		owner := dns.CanonicalName(rr.Header().Name)
		if ns, ok := rr.(*dns.NS); ok && owner == "." {
			if name := dns.CanonicalName(ns.Ns); !slices.Contains(servers, name) {
				servers = append(servers, name)
			}
		}
		if a, ok := addrOf(rr); ok && !slices.Contains(addrs[owner], a) {
			addrs[owner] = append(addrs[owner], a)
		}
	}
	if err := p.Err(); err != nil {
		return nil, err
	}
	var all []Hint
	for _, name := range servers {
		if len(addrs[name]) > 0 && len(all) < maxHints {
			all = append(all, Hint{name, addrs[name]})
		}
	}
	if len(all) == 0 {
		return nil, errors.New(file + ": no NS record of the root with an address")
	}
	return all, nil
}

// addrOf is the address in an A or AAAA record, if it may be that of a server.
func addrOf(rr dns.RR) (netip.Addr, bool) {
	var a netip.Addr
	switch rr := rr.(type) {
	case *dns.A:
		a, _ = netip.AddrFromSlice(rr.A)
	case *dns.AAAA:
		a, _ = netip.AddrFromSlice(rr.AAAA)
	}
	a = a.Unmap()
	return a, a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLinkLocalUnicast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
