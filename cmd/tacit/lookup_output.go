package main

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"tacit/dnssec"
	"tacit/policy"
	"tacit/upstream"
)

// lookupResult is what `tacit lookup --json` prints.
type lookupResult struct {
	SchemaVersion int    `json:"schema_version"`
	Name          string `json:"name"`  // asked, canonical
	Owner         string `json:"owner"` // where aliases ended
	// Validation is "own", or says to whom it is delegated: then all statuses are that resolver's word.
	Validation string        `json:"validation"`
	Queries    []lookupQuery `json:"queries"`
	// Trust is the chain of zones from the trust anchors down that all links hang on.
	Trust []lookupLink `json:"trust,omitempty"`
	// Ways are the upstreams, and the authorities where they may be asked, and what a probe found to pass by each.
	Ways      []upstream.State `json:"ways"`
	Keys      []lookupKey      `json:"keys"`
	Addresses []lookupAddress  `json:"addresses"`
}

// lookupQuery is a question and what validation made of the answer.
type lookupQuery struct {
	Name   string        `json:"name"`
	Type   string        `json:"type"`
	Status dnssec.Status `json:"status"`
	Rcode  string        `json:"rcode"`
	Denied bool          `json:"denied"`
	Chain  []string      `json:"chain,omitempty"`
	Data   []string      `json:"data"` // RDATA in presentation form
	Links  []lookupLink  `json:"links,omitempty"`
	Via    string        `json:"via,omitempty"`    // the way that the answer came; empty: from proofs at hand
	Detour string        `json:"detour,omitempty"` // why not by the first way
	EDE    *uint16       `json:"ede,omitempty"`    // RFC 8914, where nothing is proven
	Why    string        `json:"why"`
	Micros int64         `json:"microseconds"`
}

// lookupLink is a link of the chain that an answer hangs on: whose signature or which proof.
type lookupLink struct {
	Of        string        `json:"of"` // an RRset, or "no" and the one that is denied
	Status    dnssec.Status `json:"status"`
	Zone      string        `json:"zone,omitempty"`
	KeyTag    uint16        `json:"key_tag,omitempty"`
	Algorithm string        `json:"algorithm,omitempty"` // its mnemonic (RFC 8624, 3.1)
	Proof     string        `json:"proof,omitempty"`
	Why       string        `json:"why,omitempty"`
}

// add takes a question in, with the zones that its answer hangs on.
func (r *lookupResult) add(q lookupQuery, trust []dnssec.Link) {
	r.Queries = append(r.Queries, q)
	for _, l := range trust {
		if link := newLookupLink(l); !slices.Contains(r.Trust, link) && len(r.Trust) < maxShown {
			r.Trust = append(r.Trust, link)
		}
	}
}

func newLookupLink(l dnssec.Link) lookupLink {
	out := lookupLink{Of: l.Of, Status: l.Status, Zone: l.Zone, KeyTag: l.KeyTag, Proof: l.Proof, Why: l.Why}
	if l.Algorithm != 0 {
		if out.Algorithm = dns.AlgorithmToString[l.Algorithm]; out.Algorithm == "" {
			out.Algorithm = fmt.Sprintf("algorithm %d", l.Algorithm)
		}
	}
	return out
}

// String says what stands behind the link.
func (l lookupLink) String() string {
	said := l.Proof
	if l.Zone != "" {
		said = strings.TrimSpace(said + " of " + l.Zone)
	}
	if l.Algorithm != "" {
		said += fmt.Sprintf(", key %d %s", l.KeyTag, l.Algorithm)
	}
	if l.Status != dnssec.Secure && l.Why != "" {
		said = strings.TrimPrefix(said+": "+l.Why, ": ")
	}
	return said
}

// lookupKey is a published key.
type lookupKey struct {
	Owner       string `json:"owner"`
	Record      string `json:"record"`
	Fingerprint string `json:"key_id"` // empty where unusable
	Unusable    string `json:"unusable,omitempty"`
}

// lookupAddress is the decision for an address (TRUST.md 1).
type lookupAddress struct {
	Address    netip.Addr     `json:"address"`
	Class      policy.Class   `json:"class"`
	Rule       string         `json:"rule"` // "line 12" of the configuration, or "default"
	Decision   policy.Outcome `json:"decision"`
	ReportedAs string         `json:"reported_as"`
	EDE        *uint16        `json:"ede,omitempty"` // RFC 8914
	Why        string         `json:"why"`
}

// write is a lookup for people: what was found, then what is done about it.
func (r *lookupResult) write(w io.Writer) error {
	head := strings.TrimSuffix(r.Name, ".")
	if r.Owner != "" && r.Owner != r.Name {
		head += ", an alias of " + strings.TrimSuffix(r.Owner, ".")
	}
	fmt.Fprintln(w, clean(head))
	if r.Validation != "" && r.Validation != "own" {
		fmt.Fprintln(w, "  validation is "+clean(r.Validation)+": what follows is its word")
	}
	rows := [][]string{}
	for _, q := range r.Queries {
		what := q.Type
		if q.Name != r.Name {
			what += " of " + strings.TrimSuffix(q.Name, ".")
		}
		rows = append(rows, q.rows(what)...)
	}
	if err := table(w, rows); err != nil {
		return err
	}
	if trust := lines(r.Trust); len(trust) > 0 {
		fmt.Fprintln(w)
		if err := table(w, trust); err != nil {
			return err
		}
	}
	if links := r.links(); len(links) > 0 {
		fmt.Fprintln(w)
		if err := table(w, links); err != nil {
			return err
		}
	}
	if ways := r.ways(); len(ways) > 0 {
		fmt.Fprintln(w)
		if err := table(w, ways); err != nil {
			return err
		}
	}
	for i, k := range r.Keys {
		if k.Unusable == "" {
			if i == 0 {
				fmt.Fprintln(w)
			}
			fmt.Fprintf(w, "  %s is a key of %s\n", k.Fingerprint, clean(strings.TrimSuffix(k.Owner, ".")))
		} else {
			fmt.Fprintf(w, "\n  a key of %s cannot be used: %s\n", clean(k.Owner), clean(k.Unusable))
		}
	}
	fmt.Fprintln(w)
	if len(r.Addresses) == 0 {
		what := "  no address"
		if slices.ContainsFunc(r.Queries, func(q lookupQuery) bool { return q.Type != "IPSECKEY" && q.Status < dnssec.Insecure }) {
			what += ": programs get SERVFAIL"
		}
		_, err := fmt.Fprintln(w, what)
		return err
	}
	rows = nil
	for _, a := range r.Addresses {
		rows = append(rows, []string{a.Address.String(), a.Decision.String(), a.ReportedAs, fmt.Sprintf("%s (%v, %s)", clean(a.Why), a.Class, a.Rule)})
	}
	return table(w, rows)
}

// ways is a line for each way that was taken, with the answers that came by it and why the first way was not taken; and for each by which something does
// not pass.
func (r *lookupResult) ways() (rows [][]string) {
	type taken struct{ via, detour string }
	seen := map[taken]int{}
	for _, q := range r.Queries {
		t, what := taken{q.Via, q.Detour}, q.Type
		if q.Name != r.Name {
			what += " of " + strings.TrimSuffix(q.Name, ".")
		}
		if i, ok := seen[t]; ok {
			rows[i][1] += ", " + clean(what)
			continue
		}
		if t.via == "" || len(rows) == maxShown {
			continue
		}
		seen[t] = len(rows)
		row := []string{"by " + clean(t.via), clean(what)}
		if t.detour != "" {
			row = append(row, "since "+clean(t.detour))
		}
		rows = append(rows, row)
	}
	for _, s := range r.Ways {
		if !s.OK && len(rows) < maxShown {
			rows = append(rows, []string{"not by " + clean(s.Name), "", clean(s.Why)})
		}
	}
	return rows
}

// links is a line for each link of all answers.
func (r *lookupResult) links() [][]string {
	var all []lookupLink
	for _, q := range r.Queries {
		all = append(all, q.Links...)
	}
	return lines(all)
}

// lines is a line for each link, none twice.
func lines(links []lookupLink) (rows [][]string) {
	seen := map[lookupLink]bool{}
	for _, l := range links {
		if !seen[l] && len(rows) < maxShown {
			seen[l] = true
			rows = append(rows, []string{clean(l.Of), l.Status.String(), clean(l.String())})
		}
	}
	return rows
}

// why is the reason, with its code where there is one (RFC 8914).
func (q lookupQuery) why() string {
	if q.EDE == nil {
		return q.Why
	}
	return strings.TrimSpace(fmt.Sprintf("%s (EDE %d %s", q.Why, *q.EDE, dns.ExtendedErrorCodeToString[*q.EDE])) + ")"
}

// rows is a line for each record, or one that says why there is none.
func (q lookupQuery) rows(what string) (rows [][]string) {
	took := fmt.Sprintf("%.1f ms", float64(q.Micros)/1000)
	if len(q.Data) == 0 {
		none := strings.ToLower(q.Rcode)
		switch proven := q.Status >= dnssec.Insecure; { // I8: a denial that is bogus is no denial
		case q.Denied && !proven:
			none = "denied without proof"
		case q.Denied && q.Rcode == "NXDOMAIN":
			none = "no such name"
		case q.Denied:
			none = "there is none"
		}
		if q.Why != "" {
			none += ": " + q.why()
		}
		return [][]string{{what, q.Status.String(), took, none}}
	}
	for i, d := range q.Data {
		if i > 0 {
			what, took = "", ""
		}
		rows = append(rows, []string{what, q.Status.String(), took, d})
	}
	if q.Status != dnssec.Secure && q.Why != "" {
		rows = append(rows, []string{"", "", "", q.why()})
	}
	return rows
}
