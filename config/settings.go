package config

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2/unstable"

	"tacit/upstream"
)

// settings is the schema: the keys that this version accepts. Each checks its value and sets it.
var settings = map[string]func(p *parser, v value){
	// Who we are, and who may learn it (TRUST.md A-52).
	"name":     (*parser).setName,
	"identity": func(p *parser, v value) { p.path(v, &p.config.Identity) },
	"identify": func(p *parser, v value) { p.word(v, &p.config.Identify, []string{"never", "matched", "all"}, nil) },
	// How packets are protected, and for how long. The bounds keep a typing error from switching protection off, or on for ever;
	// tests use the small ones.
	"dataplane":      func(p *parser, v value) { p.word(v, &p.config.Dataplane, []string{"auto", "xfrm", "tun"}, nil) },
	"socket":         func(p *parser, v value) { p.path(v, &p.config.Socket) },
	"post-quantum":   func(p *parser, v value) { p.word(v, &p.config.PostQuantum, []string{"after", "before", "off"}, nil) },
	"linger":         func(p *parser, v value) { p.duration(v, &p.config.Linger, time.Second, 24*time.Hour) },
	"ike-lifetime":   func(p *parser, v value) { p.duration(v, &p.config.IKELifetime, time.Second, 7*24*time.Hour) },
	"child-lifetime": func(p *parser, v value) { p.duration(v, &p.config.ChildLifetime, time.Second, 24*time.Hour) },
	"nat-pool":       (*parser).setNATPool,
	"nat-addresses":  (*parser).setNATAddresses,
	"max-peers":      func(p *parser, v value) { p.number(v, &p.config.MaxPeers, 16, 200_000) },
	// DNS. A hold of more than 10 s would outlast every stub resolver's patience.
	"dns.listen":             func(p *parser, v value) { p.listeners(v, &p.config.DNS.Listen) },
	"dns.upstream":           (*parser).setUpstream,
	"dns.trust-ad":           (*parser).setTrustAD,
	"dns.iterate":            func(p *parser, v value) { p.boolean(v, &p.config.DNS.Iterate) },
	"dns.root-hints":         func(p *parser, v value) { p.path(v, &p.config.DNS.RootHints) },
	"dns.trust-anchors":      func(p *parser, v value) { p.path(v, &p.config.DNS.TrustAnchors) },
	"dns.trust-anchor-state": func(p *parser, v value) { p.path(v, &p.config.DNS.TrustAnchorState) },
	"dns.negative-anchors":   func(p *parser, v value) { p.zones(v, &p.config.DNS.NegativeAnchors) },
	"dns.time-servers":       func(p *parser, v value) { p.zones(v, &p.config.DNS.TimeServers) },
	"dns.internal-zones": func(p *parser, v value) {
		p.zones(v, &p.config.DNS.InternalZones)
	},
	"dns.hold": func(p *parser, v value) { p.duration(v, &p.config.DNS.Hold, 100*time.Millisecond, 10*time.Second) },
	"dns.manage": func(p *parser, v value) {
		p.word(v, &p.config.DNS.Manage, []string{"off"}, []string{"auto", "resolved", "networkmanager", "file"})
	},
	"dns.on-failure": func(p *parser, v value) { p.word(v, &p.config.DNS.OnFailure, []string{"open", "closed"}, nil) },
	// Rules.
	"policy.match":            (*parser).setMatch,
	"policy.class":            (*parser).setClass,
	"policy.anonymous":        func(p *parser, v value) { p.boolean(v, &p.rule().Anonymous) },
	"policy.accept-anonymous": func(p *parser, v value) { p.boolean(v, &p.rule().AcceptAnonymous) },
	"policy.packets":          func(p *parser, v value) { p.packetKey(v, &p.rule().Packets) },
	"policy.clear-ports":      (*parser).setClearPorts,
	"policy.protect-dns":      func(p *parser, v value) { p.packetKey(v, &p.rule().ProtectDNS) },
	// Endpoints known by name.
	"peer.name":    (*parser).setPeerName,
	"peer.address": (*parser).setPeerAddress,
	"peer.start":   func(p *parser, v value) { p.word(v, &p.peer().Start, []string{"now", "on-demand"}, nil) },
	"peer.pin":     (*parser).setPeerPin,
}

// later are the keys and tables of the design that this version refuses.
var later = []string{
	"publish",
}

// maxList bounds the elements of a list.
const maxList = 1000

// text returns a string value.
func (p *parser) text(v value) (string, bool) {
	if v.node.Kind != unstable.String {
		p.errorf(v.place, v.key, "want a string, not %s", kindName(v.node.Kind))
		return "", false
	}
	return string(v.node.Data), true
}

// list calls each for the strings of a list.
func (p *parser) list(v value, each func(s string, at unstable.Range)) {
	if v.node.Kind != unstable.Array {
		p.errorf(v.place, v.key, "want a list of strings, not %s", kindName(v.node.Kind))
		return
	}
	n := 0
	for it := v.node.Children(); it.Next(); n++ {
		e := value{key: v.key, node: it.Node(), place: v.at}
		if e.node.Raw.Length > 0 {
			e.place = e.node.Raw
		}
		if n == maxList {
			p.errorf(e.place, v.key, "more than %d elements", maxList)
			return
		}
		if s, ok := p.text(e); ok {
			each(s, e.place)
		}
	}
}

func kindName(k unstable.Kind) string {
	switch k {
	case unstable.String:
		return "a string"
	case unstable.Array:
		return "a list"
	case unstable.InlineTable:
		return "a table"
	case unstable.Bool:
		return "a boolean"
	case unstable.Integer, unstable.Float:
		return "a number"
	}
	return "a date"
}

// path reads the absolute path of a file: a daemon's working directory is nobody's choice.
func (p *parser) path(v value, to *string) {
	s, ok := p.text(v)
	switch {
	case !ok:
	case !filepath.IsAbs(s):
		p.errorf(v.place, v.key, "want an absolute path, not %q", s)
	case strings.ContainsRune(s, 0):
		p.errorf(v.place, v.key, "a path has no NUL")
	default:
		*to = filepath.Clean(s)
	}
}

// word reads one of a few words: those of now, and those that a later version takes.
func (p *parser) word(v value, to *string, now, later []string) {
	s, ok := p.text(v)
	switch {
	case !ok:
	case slices.Contains(now, s):
		*to = s
	case slices.Contains(later, s):
		p.errorf(v.place, v.key, "%s: not in this version", s)
	default:
		p.errorf(v.place, v.key, "want %s, not %q", strings.Join(now, " or "), s)
	}
}

// duration reads a duration within bounds. A bare number is refused: it does not say its unit.
func (p *parser) duration(v value, to *time.Duration, least, most time.Duration) {
	s, ok := p.text(v)
	if !ok {
		return
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		p.errorf(v.place, v.key, `want a duration such as "90s" or "1h30m", not %q`, s)
	case d < least || d > most:
		p.errorf(v.place, v.key, "want %v to %v, not %s", least, most, s)
	default:
		*to = d
	}
}

// number reads a whole number within bounds.
func (p *parser) number(v value, to *int, least, most int) {
	if v.node.Kind != unstable.Integer {
		p.errorf(v.place, v.key, "want a number, not %s", kindName(v.node.Kind))
		return
	}
	n, err := strconv.ParseInt(strings.ReplaceAll(string(v.node.Data), "_", ""), 0, 32)
	if err != nil || n < int64(least) || n > int64(most) {
		p.errorf(v.place, v.key, "want %d to %d, not %s", least, most, v.node.Data)
		return
	}
	*to = int(n)
}

// listeners reads "address" or "address:port"; the port is 53 if none is given.
func (p *parser) listeners(v value, to *[]netip.AddrPort) {
	var all []netip.AddrPort
	failed := len(p.errs)
	p.list(v, func(s string, at unstable.Range) {
		ap, err := netip.ParseAddrPort(s)
		if a, aerr := netip.ParseAddr(s); aerr == nil {
			ap, err = netip.AddrPortFrom(a, 53), nil
		}
		// Everywhere else an IPv4 address is 4 octets; mapped it would be compared in vain.
		ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		switch {
		case err != nil:
			p.errorf(at, v.key, `want "address" or "address:port", not %q`, s)
		case ap.Port() == 0:
			p.errorf(at, v.key, "%q: there is no port 0", s)
		case ap.Addr().IsMulticast(), ap.Addr().IsUnspecified():
			p.errorf(at, v.key, "%q: want the address of one host", s)
		case slices.Contains(all, ap):
			p.errorf(at, v.key, "%q: given twice", s)
		default:
			all = append(all, ap)
		}
	})
	if len(p.errs) == failed && len(all) == 0 {
		p.errorf(v.place, v.key, "want at least one address")
		return
	}
	*to = all
}

// setUpstream reads the servers to ask, in order of preference.
func (p *parser) setUpstream(v value) {
	c, failed := p.config, len(p.errs)
	c.DNS.Upstream = nil
	p.list(v, func(text string, at unstable.Range) {
		s, err := upstream.ParseServer(text)
		switch {
		case err != nil && !strings.HasPrefix(text, "tls://"):
			p.errorf(at, v.key, `want "address", "address:port" or "tls://...", not %q: %v`, text, err)
		case err != nil:
			p.errorf(at, v.key, "%q: %v", text, err)
		case c.hasUpstream(s):
			p.errorf(at, v.key, "%q: given twice", text)
		default:
			c.DNS.Upstream = append(c.DNS.Upstream, s)
		}
	})
	if len(p.errs) == failed && len(c.DNS.Upstream) == 0 {
		p.errorf(v.place, v.key, "want at least one address")
	}
	p.upstream = v.at
}

// setNATPool reads the prefixes that clients behind a NAT get their addresses from. An empty list lets none of them in.
func (p *parser) setNATPool(v value) {
	var all []netip.Prefix
	p.list(v, func(s string, at unstable.Range) {
		n, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			p.errorf(at, v.key, `want a prefix such as "198.19.0.0/16", not %q`, s)
		case n != n.Masked():
			p.errorf(at, v.key, "%q: the prefix is %v", s, n.Masked())
		case !n.Addr().IsGlobalUnicast() || n.Addr().Is4In6() || n.Bits() < 8 || n.Addr().BitLen()-n.Bits() < 2:
			p.errorf(at, v.key, "%q: want addresses of hosts, 4 at least", s)
		case slices.ContainsFunc(all, func(q netip.Prefix) bool { return q.Addr().Is4() == n.Addr().Is4() }):
			p.errorf(at, v.key, "%q: one prefix of each family", s)
		default:
			all = append(all, n)
		}
	})
	p.config.NATPool = all
}

// setNATAddresses reads the addresses of NATs that lead to this host.
func (p *parser) setNATAddresses(v value) {
	var all []netip.Addr
	p.list(v, func(s string, at unstable.Range) {
		a, err := netip.ParseAddr(s)
		switch {
		case err != nil || a.Zone() != "":
			p.errorf(at, v.key, "want an address, not %q", s)
		case !a.IsGlobalUnicast() || a.Is4In6():
			p.errorf(at, v.key, "%q: want the address of a host", s)
		case slices.ContainsFunc(all, func(b netip.Addr) bool { return a.Is4() == b.Is4() }):
			p.errorf(at, v.key, "%q: one address of each family", s)
		default:
			all = append(all, a)
			p.nats = append(p.nats, at)
		}
	})
	p.config.NATAddresses = all
}

// boolean reads true or false.
func (p *parser) boolean(v value, to *bool) {
	if v.node.Kind != unstable.Bool {
		p.errorf(v.place, v.key, "want true or false, not %s", kindName(v.node.Kind))
		return
	}
	*to = string(v.node.Data) == "true"
}

// zones reads names of zones; unlike ours they may have one label ("lan").
func (p *parser) zones(v value, to *[]string) {
	var all []string
	p.list(v, func(s string, at unstable.Range) {
		z, err := canonicalName(s)
		if err != nil {
			p.errorf(at, v.key, "%v", err)
			return
		}
		all = append(all, z)
	})
	*to = all
}

// setTrustAD reads whether the upstreams validate for us.
func (p *parser) setTrustAD(v value) {
	p.boolean(v, &p.config.DNS.TrustAD)
	p.trustAD = v.at
}

// setName reads our own name.
func (p *parser) setName(v value) {
	if n, ok := p.host(v); ok {
		p.config.Name = strings.TrimSuffix(n, ".")
	}
}

// host reads the name of a host, and returns it with the final dot.
func (p *parser) host(v value) (name string, ok bool) {
	s, ok := p.text(v)
	if !ok {
		return "", false
	}
	n, err := canonicalName(s)
	if err == nil {
		err = hostName(n)
	}
	if err != nil {
		p.errorf(v.place, v.key, "%v", err)
		return "", false
	}
	return n, true
}
