package policy

import (
	"net/netip"
	"slices"
	"strings"
)

// Table finds the rule for a name or an address; the most specific match wins. A lookup costs a map access for each label of
// the name, or for each prefix length in use. It never changes after NewTable, so that any goroutine may ask.
type Table struct {
	rules    []Rule
	exact    map[string]int
	below    map[string]int // "*.zone" under "zone"
	prefixes map[netip.Prefix]int
	bits4    []int // prefix lengths in use, longest first
	bits6    []int
	unnamed  int // for names that no rule names: see ForName

	endpoints map[string][]string // see WithEndpoints
}

// NewTable indexes the rules. Of two rules with the same match the earlier one counts (package config refuses such a file). The
// built-in default stands behind them all.
func NewTable(rules []Rule) *Table {
	t := &Table{
		rules:    append(slices.Clone(rules), Default()),
		exact:    make(map[string]int),
		below:    make(map[string]int),
		prefixes: make(map[netip.Prefix]int),
	}
	for i, r := range t.rules {
		for _, n := range r.Names {
			t.addName(n, i)
		}
		for _, p := range r.Prefixes {
			t.addPrefix(p, i)
		}
	}
	t.unnamed = t.strictestPrefix()
	return t
}

func (t *Table) addName(pattern string, rule int) {
	zone, below := strings.CutPrefix(pattern, "*.")
	if !below {
		if tree, ok := strings.CutPrefix(pattern, "."); ok && tree != "" {
			zone, below = tree, true
		}
		setOnce(t.exact, zone, rule)
	}
	if zone == "" {
		zone = "."
	}
	if below {
		setOnce(t.below, zone, rule)
	}
}

func (t *Table) addPrefix(p netip.Prefix, rule int) {
	p = p.Masked()
	setOnce(t.prefixes, p, rule)
	bits := &t.bits6
	if p.Addr().Is4() {
		bits = &t.bits4
	}
	if !slices.Contains(*bits, p.Bits()) {
		*bits = append(*bits, p.Bits())
		slices.SortFunc(*bits, func(a, b int) int { return b - a })
	}
}

func setOnce[K comparable](m map[K]int, k K, v int) {
	if _, there := m[k]; !there {
		m[k] = v
	}
}

// strictestPrefix is the strictest rule that some address falls under. Block is left out: which addresses are blocked can be
// said without a key, when they are known.
func (t *Table) strictestPrefix() int {
	best := -1
	for _, i := range t.prefixes {
		c := t.rules[i].Class
		if c == Block {
			continue
		}
		if best < 0 || c < t.rules[best].Class || c == t.rules[best].Class && i < best {
			best = i
		}
	}
	if best < 0 {
		return len(t.rules) - 1
	}
	return best
}

// Match is why a rule is a name's or an address's.
type Match struct {
	Rule    Rule
	Pattern string // of the rule's names, or its prefix
}

// MatchName returns the rule that names the name.
func (t *Table) MatchName(name string) (m Match, ok bool) {
	name = canonical(name)
	i, ok := t.named(name)
	if !ok {
		return m, false
	}
	m.Rule = t.rules[i]
	for _, p := range m.Rule.Names { // the most specific of them, as named
		if covers(p, name) && len(p) > len(m.Pattern) {
			m.Pattern = p
		}
	}
	return m, true
}

// MatchAddr returns the rule of an address.
func (t *Table) MatchAddr(addr netip.Addr) (m Match) {
	m.Rule = t.ForAddr(addr)
	best := -1
	for _, p := range m.Rule.Prefixes {
		if p.Contains(addr.Unmap().WithZone("")) && p.Bits() > best {
			m.Pattern, best = p.String(), p.Bits()
		}
	}
	return m
}

// covers reports whether a pattern names a name: as NewTable reads it.
func covers(pattern, name string) bool {
	return NewTable([]Rule{{Names: []string{pattern}, Line: -1}}).ForName(name).Line == -1
}

// named returns the rule that names the name.
func (t *Table) named(name string) (int, bool) {
	if i, ok := t.exact[name]; ok {
		return i, true
	}
	for rest := name; rest != "" && rest != "."; {
		_, parent, ok := cutLabel(rest)
		if !ok || parent == "" {
			parent = "."
		}
		if i, ok := t.below[parent]; ok {
			return i, true
		}
		rest = parent
	}
	return 0, false
}

// cutLabel splits a name in presentation form behind its first label; a dot after a backslash belongs to the label.
func cutLabel(name string) (label, rest string, ok bool) {
	for i := 0; i < len(name); i++ {
		switch name[i] {
		case '\\':
			i++
		case '.':
			return name[:i], name[i+1:], true
		}
	}
	return name, "", false
}

// canonical is lower case (of ASCII) with the final dot.
func canonical(name string) string {
	name = strings.ToLower(name)
	if !strings.HasSuffix(name, ".") {
		name += "."
	}
	return name
}

// ForName returns the rule for a name whose addresses are not known yet. Where no rule names it, that is the strictest rule that
// its addresses may turn out to fall under: to ask for a key that is not needed is a loss of time, the opposite one of security.
func (t *Table) ForName(name string) Rule {
	if i, ok := t.named(canonical(name)); ok {
		return t.rules[i]
	}
	return t.rules[t.unnamed]
}

// ForAddr returns the rule for an address: that of the longest prefix.
func (t *Table) ForAddr(addr netip.Addr) Rule {
	addr = addr.Unmap().WithZone("")
	bits := t.bits6
	if addr.Is4() {
		bits = t.bits4
	}
	for _, n := range bits {
		p, err := addr.Prefix(n)
		if err != nil {
			continue
		}
		if i, ok := t.prefixes[p]; ok {
			return t.rules[i]
		}
	}
	return t.rules[len(t.rules)-1]
}

// For returns the rule for a name at an address. A rule that names the name is more specific than any prefix.
func (t *Table) For(name string, addr netip.Addr) Rule {
	if i, ok := t.named(canonical(name)); ok {
		return t.rules[i]
	}
	return t.ForAddr(addr)
}

// ForChain is For where the name that was asked is an alias of another, the owner of the address. A rule that names one of them is
// more specific than any prefix; if rules name both the stricter counts: an alias is no way around the rule of the name that it leads to.
func (t *Table) ForChain(asked, owner string, addr netip.Addr) Rule {
	if asked == owner {
		return t.For(asked, addr)
	}
	a, o := t.For(asked, addr), t.For(owner, addr)
	_, named := t.named(canonical(asked))
	_, ownerNamed := t.named(canonical(owner))
	if ownerNamed && !named || named == ownerNamed && o.Class < a.Class {
		return o
	}
	return a
}

// NamedAddr reports whether a rule names the address, by a prefix of less than all addresses.
func (t *Table) NamedAddr(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	bits := t.bits6
	if addr.Is4() {
		bits = t.bits4
	}
	return slices.ContainsFunc(bits, func(n int) bool {
		p, err := addr.Prefix(n)
		_, ok := t.prefixes[p]
		return err == nil && ok && n > 0
	})
}

// Named reports whether a rule names the name: "matched" of the configuration's `identify`. A rule for every name ("*.") names
// none.
func (t *Table) Named(name string) bool {
	i, ok := t.named(canonical(name))
	if !ok {
		return false
	}
	all, ok := t.below["."]
	return !ok || all != i
}
