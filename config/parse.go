package config

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"tacit/policy"
)

// maxErrors bounds the report: who sees twenty has enough to do.
const maxErrors = 20

// Parse reads the content of a configuration file; file is its name in errors, which are an Errors. The upstreams may be left
// empty.
func Parse(data []byte, file string) (*Config, error) {
	p := &parser{file: file, config: Default(), matches: make(map[string]int), packets: make(map[int][]value)}
	p.config.Policy = nil
	// The size is bounded before anything is parsed; Load has bounded it while reading.
	if len(data) > maxSize {
		return nil, Errors{{File: file, Line: 1, Column: 1, Msg: fmt.Sprintf("larger than %d bytes", maxSize)}}
	}
	if err := p.syntax(data); err != nil {
		return nil, err
	}
	p.doc.Reset(data)
	for p.doc.NextExpression() {
		p.expression(p.doc.Expression())
	}
	p.finish()
	if len(p.errs) > 0 {
		slices.SortStableFunc(p.errs, func(a, b Error) int {
			if a.Line != b.Line {
				return a.Line - b.Line
			}
			return a.Column - b.Column
		})
		return nil, p.errs
	}
	return p.config, nil
}

// parser walks the syntax tree instead of decoding into structs, since each value must be reported with its place.
type parser struct {
	file   string
	doc    unstable.Parser
	config *Config
	errs   Errors

	table    []string         // the [table] or [[table]] that we are in
	skip     bool             // a table that was refused as a whole
	matches  map[string]int   // each match of a policy rule, and its line
	packets  map[int][]value  // keys of a rule that say something of packets
	upstream unstable.Range   // where dns.upstream is
	trustAD  unstable.Range   // and dns.trust-ad
	nats     []unstable.Range // and each of nat-addresses
	peers    []unstable.Range
}

// value is a value with the key that it belongs to.
type value struct {
	key   string // dotted
	at    unstable.Range
	node  *unstable.Node
	place unstable.Range // of the value; the key's where the tree has none
}

// syntax finds errors of TOML itself, repeated keys among them. After those nothing else can be said.
func (p *parser) syntax(data []byte) error {
	var all map[string]any
	err := toml.Unmarshal(data, &all)
	if err == nil {
		return nil
	}
	e := Error{File: p.file, Line: 1, Column: 1, Msg: strings.TrimPrefix(err.Error(), "toml: ")}
	if d := (*toml.DecodeError)(nil); errors.As(err, &d) {
		e.Line, e.Column = d.Position()
		e.Key = strings.Join(d.Key(), ".")
	}
	return Errors{e}
}

// errorf reports what is wrong at a place. Keys that could confuse a terminal are quoted.
func (p *parser) errorf(at unstable.Range, key, format string, args ...any) {
	if len(p.errs) == maxErrors {
		return
	}
	if strings.ContainsFunc(key, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
		key = strconv.QuoteToASCII(key)
	}
	start := p.doc.Shape(at).Start
	p.errs = append(p.errs, Error{p.file, start.Line, start.Column, key, fmt.Sprintf(format, args...)})
}

// expression takes a line of the file: a table's head or a key with its value.
func (p *parser) expression(n *unstable.Node) {
	switch n.Kind {
	case unstable.Table, unstable.ArrayTable:
		var at unstable.Range
		p.table, at = keyOf(n)
		p.skip = !p.openTable(p.table, n.Kind == unstable.ArrayTable, at)
	case unstable.KeyValue:
		if !p.skip {
			p.keyValue(p.table, n)
		}
	}
}

// keyOf returns the parts of a dotted key, and where it is.
func keyOf(n *unstable.Node) (parts []string, at unstable.Range) {
	for it := n.Key(); it.Next(); {
		if len(parts) == 0 {
			at = it.Node().Raw
		}
		parts = append(parts, string(it.Node().Data))
	}
	return parts, at
}

// openTable reports whether the keys of the table are to be read.
func (p *parser) openTable(path []string, array bool, at unstable.Range) bool {
	key := strings.Join(path, ".")
	switch {
	case key == "dns" && !array:
		return true
	case arrays[key] != nil && array:
		arrays[key](p, at)
		return true
	case key == "dns":
		p.errorf(at, key, "want [dns]")
	case arrays[key] != nil:
		p.errorf(at, key, "want [[%s]]", key)
	default:
		p.unknown(path, at)
	}
	return false
}

// arrays are the tables that may come more than once, and what begins one.
var arrays = map[string]func(p *parser, at unstable.Range){"policy": (*parser).openRule, "peer": (*parser).openPeer}

// openRule begins a rule with the defaults. What it matches is filled in at the end, if it does not say.
func (p *parser) openRule(at unstable.Range) {
	r := policy.Default()
	r.Prefixes = nil
	r.Line = p.doc.Shape(at).Start.Line
	p.config.Policy = append(p.config.Policy, r)
}

// keyValue takes a key of the table at path. Tables may be written inline.
func (p *parser) keyValue(path []string, n *unstable.Node) {
	parts, at := keyOf(n)
	full := append(slices.Clone(path), parts...)
	v := value{key: strings.Join(full, "."), at: at, node: n.Value()}
	v.place = at
	if v.node.Raw.Length > 0 {
		v.place = v.node.Raw
	}
	if set, ok := settings[v.key]; ok && !(len(path) == 0 && arrays[full[0]] != nil) {
		set(p, v)
		return
	}
	switch {
	case v.key == "dns" && v.node.Kind == unstable.InlineTable:
		p.inline(full, v.node)
	case arrays[v.key] != nil && v.node.Kind == unstable.Array:
		for it := v.node.Children(); it.Next(); {
			if it.Node().Kind != unstable.InlineTable {
				p.errorf(at, v.key, "want [[%s]]", v.key)
				return
			}
			arrays[v.key](p, at)
			p.inline(full, it.Node())
		}
	case v.key == "dns":
		p.errorf(at, v.key, "want [dns]")
	case arrays[v.key] != nil, arrays[full[0]] != nil && len(path) == 0:
		p.errorf(at, v.key, "want [[%s]]", full[0])
	default:
		p.unknown(full, at)
	}
}

// inline takes the keys of an inline table as those of the table at path.
func (p *parser) inline(path []string, table *unstable.Node) {
	for it := table.Children(); it.Next(); {
		if it.Node().Kind == unstable.KeyValue {
			p.keyValue(path, it.Node())
		}
	}
}

// unknown reports a key that is not accepted: one that the design has and this version has not, or one that nobody knows.
func (p *parser) unknown(path []string, at unstable.Range) {
	key := strings.Join(path, ".")
	// A table of a later version is refused as a whole, whatever keys it holds.
	for n := len(path); n > 0; n-- {
		if prefix := strings.Join(path[:n], "."); slices.Contains(later, prefix) {
			p.errorf(at, prefix, "not in this version")
			return
		}
	}
	if near := nearest(key); near != "" {
		p.errorf(at, key, "unknown key; did you mean %s?", near)
		return
	}
	p.errorf(at, key, "unknown key")
}

// finish fills in what rules left out, and checks what two keys say together.
func (p *parser) finish() {
	c := p.config
	// Only now both lists are known: the file may have them in either order.
	for _, s := range c.DNS.Upstream {
		if c.isListener(s.Addr) {
			p.errorf(p.upstream, "dns.upstream", "%v: we would ask ourselves", s)
		}
	}
	if c.DNS.TrustAD {
		p.checkTrustAD()
	}
	if len(c.NATAddresses) > 0 && c.Dataplane == "xfrm" {
		p.errorf(p.nats[0], "nat-addresses", "the kernel's ESP does not translate: want dataplane = \"tun\", or \"auto\"")
	}
	for i, a := range c.NATAddresses {
		for _, pool := range c.NATPool {
			if pool.Contains(a) {
				p.errorf(p.nats[i], "nat-addresses", "%v is in %v of nat-pool: a client behind a NAT would be assigned it", a, pool)
			}
		}
	}
	p.finishRules()
	p.finishPeers()
}

// checkTrustAD refuses trust-ad where the bit could come from elsewhere than this host: RFC 6840, 5.8 wants a channel that is secure, and loopback is.
func (p *parser) checkTrustAD() {
	dns := &p.config.DNS
	if len(dns.Upstream) == 0 {
		p.errorf(p.trustAD, "dns.trust-ad", "want dns.upstream: the validating resolver on this host that is trusted")
	}
	for _, s := range dns.Upstream {
		if s.TLS || !s.Addr.Addr().IsLoopback() {
			p.errorf(p.trustAD, "dns.trust-ad", "upstream %v is not on this host's loopback: from there the AD bit proves nothing", s)
		}
	}
	if dns.TrustAnchorState != "" {
		p.errorf(p.trustAD, "dns.trust-ad", "the resolver that is trusted follows its own anchors: dns.trust-anchor-state has no use")
	}
}
