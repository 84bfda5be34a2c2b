package main

import (
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"

	"tacit/ipsec"
	"tacit/policy"
)

// policyCommand is `tacit policy`.
func policyCommand(f *flags) *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "Explain the rules", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return usageErrorf("policy: want a verb: test") }}
	c.AddCommand(policyTestCommand(f))
	return c
}

// policyVerdict is which rule a name or an address stands under.
type policyVerdict struct {
	Subject         string       `json:"subject"`
	Class           policy.Class `json:"class"`
	AcceptAnonymous bool         `json:"accept_anonymous"`
	Rule            string       `json:"rule"`            // file:line, or "built in"
	Match           string       `json:"match,omitempty"` // the pattern or prefix of it that decides
	Why             string       `json:"why"`
	Packets         string       `json:"packets,omitempty"` // of an address: what becomes of packets without a lookup
	ClearPorts      []string     `json:"clear_ports,omitempty"`
	ProtectDNS      bool         `json:"protect_dns,omitempty"`
}

func policyTestCommand(f *flags) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "test NAME|ADDRESS",
		Short: "Say which rule a name or an address stands under, and why",
		Long: `Says which rule of the configuration counts for NAME or ADDRESS, and what it means. It asks nobody: tacit lookup NAME shows what DNS
says and what would be done about each address.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			conf, err := f.load()
			if err != nil {
				return err
			}
			v, err := testPolicy(conf.Table(), args[0], f.config)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(c.OutOrStdout(), v)
			}
			return v.write(c.OutOrStdout())
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// testPolicy finds the rule. file is the configuration's, for the rule's place.
func testPolicy(rules *policy.Table, subject, file string) (v policyVerdict, err error) {
	var m policy.Match
	if addr, err := netip.ParseAddr(subject); err == nil {
		m = rules.MatchAddr(addr)
		v.Why = "the longest prefix that holds the address; a rule that names the looked-up name would count before it"
		v.packets(addr.Unmap().WithZone(""), m.Rule)
	} else if _, ok := dns.IsDomainName(subject); !ok || subject == "" {
		return v, usageErrorf("%q is neither an address nor a domain name", subject)
	} else if named, ok := rules.MatchName(subject); ok {
		m = named
		v.Why = "the most specific rule that names it; a name counts before any prefix"
	} else {
		m = policy.Match{Rule: rules.ForName(subject)}
		v.Why = "no rule names it, so the rule of its address counts; until that is known, this is the strictest that it may be"
	}
	v.Subject, v.Class, v.AcceptAnonymous = subject, m.Rule.Class, m.Rule.AcceptAnonymous
	v.Match, v.Rule = strings.TrimSuffix(m.Pattern, "."), "built in"
	if m.Rule.Line > 0 {
		v.Rule = fmt.Sprintf("%s:%d", file, m.Rule.Line)
	}
	return v, nil
}

// packets says what becomes of packets without a lookup, to and from the address.
func (v *policyVerdict) packets(addr netip.Addr, r policy.Rule) {
	if addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr.IsUnspecified() {
		v.Packets = "in clear: no rule concerns such an address"
		return
	}
	switch action := r.PacketAction(); {
	case action == ipsec.Trap:
		v.Packets = "ours wait for what the reverse zone says, and go in clear where it has no key; theirs pass"
	case action == ipsec.Hold && r.Packets:
		v.Packets = "never in clear: ours wait for a key of the reverse zone"
	case action == ipsec.Hold:
		v.Packets = "never in clear: ours wait for encryption with whoever is there"
	case action == ipsec.Block && r.Class == policy.Private:
		v.Packets = "never in clear: ours are refused until a lookup has encrypted them"
	case action == ipsec.Block:
		v.Packets = "ours are refused, theirs are dropped"
	case action == ipsec.Watch:
		v.Packets = "in clear, until a lookup or the other end has encrypted them; what the other end refuses of ours goes again then, encrypted"
	default:
		v.Packets = "in clear, until a lookup or the other end has encrypted them"
	}
	for _, p := range r.ClearPorts {
		v.ClearPorts = append(v.ClearPorts, policy.PortName(p))
	}
	v.ProtectDNS = r.ProtectDNS
}

// meanings is what each class does, for people.
var meanings = map[policy.Class]string{
	policy.Block:          "it is not answered, and nobody comes in",
	policy.Private:        "answered only when it is encrypted to a proven key",
	policy.PrivateOrClear: "encrypted where a key is published; then never in clear",
	policy.ClearOrPrivate: "in clear, unless the other end begins",
	policy.Clear:          "in clear; no key is asked for",
}

func (v policyVerdict) write(w io.Writer) error {
	match := ""
	if v.Match != "" {
		match = fmt.Sprintf(" (match %q)", v.Match)
	}
	text := fmt.Sprintf("%s: %s: %s\n  rule: %s%s\n  why:  %s\n", v.Subject, v.Class, meanings[v.Class], v.Rule, match, v.Why)
	if v.Packets != "" {
		text += fmt.Sprintf("  packets without a lookup: %s\n", v.Packets)
	}
	if len(v.ClearPorts) > 0 {
		text += fmt.Sprintf("  always in clear: %s\n", strings.Join(v.ClearPorts, " "))
	}
	if v.ProtectDNS {
		text += "  DNS: protected too, but for our own queries\n"
	}
	_, err := io.WriteString(w, text)
	return err
}
