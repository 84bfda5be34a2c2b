package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"

	"tacit/config"
	"tacit/control"
	"tacit/daemon"
	"tacit/dnssec"
	"tacit/ipseckey"
	peerdb "tacit/pad"
	"tacit/policy"
	"tacit/resolver"
	"tacit/upstream"
)

// lookupTime bounds all the questions of a lookup.
const lookupTime = 15 * time.Second

// maxShown bounds the records and addresses of an answer that are shown.
const maxShown = 64

// lookupCommand is `tacit lookup`.
func lookupCommand(f *flags) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "lookup NAME",
		Short: "Show what DNSSEC proves of a name and what tacit would do about it",
		Long: `Asks for the addresses and the key of NAME at the configured upstreams, validates the answers, and shows the decision for each
address. It needs no daemon, and changes nothing: no negotiation is begun.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if _, ok := dns.IsDomainName(args[0]); !ok || args[0] == "" {
				return usageErrorf("%q is no domain name", args[0])
			}
			conf, err := f.load()
			if err != nil {
				return err
			}
			l, err := newLookup(conf)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), lookupTime)
			defer cancel()
			r, err := l.run(ctx, dns.CanonicalName(args[0]))
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(c.OutOrStdout(), r)
			}
			return r.write(c.OutOrStdout())
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// validator is dnssec.Validator.
type validator interface {
	Lookup(ctx context.Context, name string, rrtype uint16) (dnssec.Answer, error)
	Trust(dnssec.Answer) []dnssec.Link
}

// ways is upstream.Router.
type ways interface {
	Probe(ctx context.Context)
	States() []upstream.State
}

// lookup is what a lookup needs.
type lookup struct {
	validator validator
	ways      ways
	judged    string // by whom: daemon.Validation
	rules     *policy.Table
	env       peerdb.Environment
}

// newLookup asks at the configured upstreams, from the configured anchors down, as the daemon does.
func newLookup(conf *config.Config) (*lookup, error) {
	anchors, err := trustAnchors(conf)
	if err != nil {
		return nil, err
	}
	up, err := router(conf, anchors)
	if err != nil {
		return nil, err
	}
	env, err := daemon.Environment(conf)
	if err != nil {
		return nil, err
	}
	v := dnssec.New(up, anchors, daemon.Judgement(conf)...)
	point, err := trustPoint(conf, anchors)
	if err != nil {
		return nil, err
	}
	if point != nil {
		v.Follow(point, func([]byte) error { return nil }) // what it learns is the daemon's to keep
	}
	return &lookup{v, up, daemon.Validation(conf), conf.Table(), env}, nil
}

// run asks for A, AAAA and IPSECKEY at once, as the daemon does; where the addresses belong to the end of an alias chain that the
// key answer did not reach, it asks for the key there.
func (l *lookup) run(ctx context.Context, name string) (*lookupResult, error) {
	r := &lookupResult{SchemaVersion: control.SchemaVersion, Name: name, Validation: l.judged, Queries: []lookupQuery{}, Keys: []lookupKey{}, Addresses: []lookupAddress{}}
	l.ways.Probe(ctx)
	r.Ways = l.ways.States()
	types := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeIPSECKEY}
	answers, queries, errs := make([]dnssec.Answer, len(types)), make([]lookupQuery, len(types)), make([]error, len(types))
	var wait sync.WaitGroup
	for i, t := range types {
		wait.Go(func() { answers[i], queries[i], errs[i] = l.ask(ctx, name, t) })
	}
	wait.Wait()
	for i := range types {
		if errs[i] != nil {
			return nil, errs[i]
		}
		r.add(queries[i], l.validator.Trust(answers[i]))
	}
	r.Owner = answers[0].Owner
	if len(answers[0].RRs) == 0 && len(answers[1].RRs) > 0 {
		r.Owner = answers[1].Owner
	}
	key := answers[2]
	for _, a := range answers[:2] {
		if len(a.RRs) == 0 {
			continue
		}
		if a.Owner != key.Owner { // "key at the final owner of the address"
			var q lookupQuery
			var err error
			if key, q, err = l.ask(ctx, a.Owner, dns.TypeIPSECKEY); err != nil {
				return nil, err
			}
			r.add(q, l.validator.Trust(key))
		}
		l.decideAll(r, a, key)
	}
	return r, nil
}

// ask asks one question.
func (l *lookup) ask(ctx context.Context, name string, rrtype uint16) (dnssec.Answer, lookupQuery, error) {
	began := time.Now()
	a, err := l.validator.Lookup(ctx, name, rrtype)
	if err != nil {
		return a, lookupQuery{}, fmt.Errorf("%s %s: %w", name, dns.TypeToString[rrtype], err)
	}
	q := lookupQuery{Name: name, Type: dns.TypeToString[rrtype], Status: a.Status, Rcode: dns.RcodeToString[a.Rcode],
		Denied: a.Denied, Chain: a.Chain, Data: []string{}, Via: a.Via, Detour: a.Detour, Why: a.Why, Micros: time.Since(began).Microseconds()}
	if a.EDE != dnssec.NoEDE && a.Status < dnssec.Insecure {
		q.EDE = &a.EDE
	}
	for _, rr := range a.RRs[:min(len(a.RRs), maxShown)] {
		q.Data = append(q.Data, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	for _, l := range a.Links[:min(len(a.Links), maxShown)] {
		q.Links = append(q.Links, newLookupLink(l))
	}
	return a, q, nil
}

// decideAll adds the decision of TRUST.md 1 for each address of an answer.
func (l *lookup) decideAll(r *lookupResult, addr, key dnssec.Answer) {
	records, _ := resolver.Keys(key.RRs)
	for _, k := range records {
		shown := lookupKey{Owner: key.Owner, Record: k.String(), Unusable: k.Unusable}
		if k.Key != nil {
			shown.Fingerprint = ipseckey.Fingerprint(k.Key)
		}
		if !slices.Contains(r.Keys, shown) && len(r.Keys) < maxShown {
			r.Keys = append(r.Keys, shown)
		}
	}
	for _, rr := range addr.RRs {
		var ip netip.Addr
		switch rr := rr.(type) {
		case *dns.A:
			ip, _ = netip.AddrFromSlice(rr.A.To4())
		case *dns.AAAA:
			ip, _ = netip.AddrFromSlice(rr.AAAA)
		}
		if ip.IsValid() && len(r.Addresses) < maxShown {
			r.Addresses = append(r.Addresses, l.decide(r.Name, ip, addr, key, records))
		}
	}
}

// decide is what the daemon would do about one address.
func (l *lookup) decide(asked string, ip netip.Addr, addr, key dnssec.Answer, records []ipseckey.Record) lookupAddress {
	found := resolver.Found{Asked: asked, Owner: addr.Owner, AddrStatus: addr.Status, Keys: records, KeyStatus: key.Status,
		Denied: key.Denied, KeyWhy: key.Why}
	d := daemon.Decide(l.rules, l.env, found, ip)
	out := lookupAddress{Address: ip, Class: d.Rule.Class, Rule: "default", Decision: d.Outcome, ReportedAs: string(d.ReportedAs), Why: d.Why}
	if d.Rule.Line > 0 {
		out.Rule = fmt.Sprintf("line %d", d.Rule.Line)
	}
	if d.Outcome == policy.ServFail && addr.Why != "" {
		out.Why += ": " + addr.Why
	}
	if d.EDE != policy.EDENone {
		out.EDE = &d.EDE
	}
	if d.ReportedAs == policy.ReportAuthenticated {
		out.ReportedAs += " as " + strings.TrimSuffix(addr.Owner, ".")
		if addr.Owner != asked {
			out.ReportedAs += " (via " + strings.TrimSuffix(asked, ".") + ")"
		}
	}
	return out
}
