package config

import (
	"slices"

	"github.com/pelletier/go-toml/v2/unstable"

	"tacit/ipsec"
	"tacit/policy"
)

// maxClearPorts bounds the ports that a rule leaves in clear.
const maxClearPorts = 64

// rule is the [[policy]] that we are in.
func (p *parser) rule() *policy.Rule { return &p.config.Policy[len(p.config.Policy)-1] }

// setClass reads a class.
func (p *parser) setClass(v value) {
	s, ok := p.text(v)
	if !ok {
		return
	}
	c, known := policy.ClassOf(s)
	switch {
	case !known:
		p.errorf(v.place, v.key, "want private, private-or-clear, clear-or-private, clear or block, not %q", s)
	default:
		p.rule().Class = c
	}
}

// setMatch reads names ("host.example", "*.example", ".example", "*"), addresses and prefixes.
func (p *parser) setMatch(v value) {
	r := p.rule()
	failed, n := len(p.errs), 0
	p.list(v, func(s string, at unstable.Range) {
		n++
		prefix, name, err := parseMatch(s)
		if err != nil {
			p.errorf(at, v.key, "%v", err)
			return
		}
		canonical := name
		if name == "" {
			canonical = prefix.String()
		}
		// Two rules for the same match have no order that a reader could know.
		if line, twice := p.matches[canonical]; twice {
			p.errorf(at, v.key, "%q: line %d matches it already", s, line)
			return
		}
		p.matches[canonical] = p.doc.Shape(at).Start.Line
		if name != "" {
			r.Names = append(r.Names, name)
		} else {
			r.Prefixes = append(r.Prefixes, prefix)
		}
	})
	if len(p.errs) == failed && n == 0 {
		p.errorf(v.place, v.key, "want at least one name or prefix")
	}
}

// packetKey reads a boolean that says something of packets.
func (p *parser) packetKey(v value, to *bool) {
	p.boolean(v, to)
	if *to {
		p.ofPackets(v)
	}
}

// ofPackets remembers a key that says something of packets: finishRules refuses it where the rule has no addresses.
func (p *parser) ofPackets(v value) {
	i := len(p.config.Policy) - 1
	p.packets[i] = append(p.packets[i], v)
}

// setClearPorts reads "tcp/22" and the like.
func (p *parser) setClearPorts(v value) {
	var ports []ipsec.Port
	p.list(v, func(s string, at unstable.Range) {
		port, err := policy.ParsePort(s)
		switch {
		case err != nil:
			p.errorf(at, v.key, "%v", err)
		case slices.Contains(ports, port):
			p.errorf(at, v.key, "%q: given twice", s)
		case len(ports) == maxClearPorts:
			p.errorf(at, v.key, "more than %d ports", maxClearPorts)
		default:
			ports = append(ports, port)
		}
	})
	if p.rule().ClearPorts = ports; len(ports) > 0 {
		p.ofPackets(v)
	}
}

// finishRules fills in what rules match that do not say, and checks what keys say together.
func (p *parser) finishRules() {
	for i := range p.config.Policy {
		r := &p.config.Policy[i]
		if len(r.Names) == 0 && len(r.Prefixes) == 0 {
			r.Prefixes = policy.Default().Prefixes
		}
		for _, v := range p.packets[i] {
			if len(r.Prefixes) == 0 {
				p.errorf(v.at, v.key, "packets bear no names: want an address or a prefix in match")
			}
		}
	}
	p.config.Policy = append(p.config.Policy, policy.Default())
}
