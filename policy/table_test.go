package policy

import (
	"fmt"
	"net/netip"
	"testing"
)

func prefixes(s ...string) (all []netip.Prefix) {
	for _, p := range s {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}

// rules marks each rule by its Line.
var rules = []Rule{
	{Names: []string{"example."}, Line: 1},
	{Names: []string{"*.example."}, Line: 2, Class: Clear},
	{Names: []string{".tree.example."}, Line: 3},
	{Names: []string{"*.deep.tree.example.", "x.tree.example."}, Line: 4},
	{Prefixes: prefixes("192.0.2.0/24", "2001:db8::/32"), Line: 5, Class: Clear},
	{Prefixes: prefixes("192.0.2.128/25"), Line: 6, Class: PrivateOrClear},
	{Prefixes: prefixes("2001:db8::1/128"), Line: 7, Class: Private},
	{Names: []string{"example."}, Prefixes: prefixes("192.0.2.0/24"), Line: 8}, // repeats: the earlier counts
}

func TestForName(t *testing.T) {
	table := NewTable(rules)
	for _, tt := range []struct {
		name string
		line int
	}{
		{"example.", 1},
		{"EXAMPLE", 1},
		{"www.example.", 2},
		{"a.b.c.example.", 2},
		{"notexample.", 7},
		{"tree.example.", 3},
		{"a.tree.example.", 3},
		{"deep.tree.example.", 3},
		{"a.deep.tree.example.", 4},
		{"a.b.deep.tree.example.", 4},
		{"x.tree.example.", 4},
		{"y.x.tree.example.", 3},
		{`a\.example.`, 7}, // one label: not below example.
		{`a\\.example.`, 2},
		{".", 7},
		{"", 7},
		{"other.", 7}, // unnamed: the strictest that its address may fall under
	} {
		if got := table.ForName(tt.name).Line; got != tt.line {
			t.Errorf("ForName(%q) is the rule of line %d, want %d", tt.name, got, tt.line)
		}
	}
}

func TestForAddr(t *testing.T) {
	table := NewTable(rules)
	for _, tt := range []struct {
		addr string
		line int
	}{
		{"192.0.2.1", 5},
		{"::ffff:192.0.2.1", 5},
		{"192.0.2.200", 6},
		{"198.51.100.1", 0},
		{"2001:db8::2", 5},
		{"2001:db8::1", 7},
		{"2001:db8::1%eth0", 7},
		{"2001:db9::1", 0},
	} {
		if got := table.ForAddr(netip.MustParseAddr(tt.addr)).Line; got != tt.line {
			t.Errorf("ForAddr(%s) is the rule of line %d, want %d", tt.addr, got, tt.line)
		}
	}
	if r := table.ForAddr(netip.Addr{}); r.Line != 0 {
		t.Errorf("no address falls under line %d", r.Line)
	}
}

func TestFor(t *testing.T) {
	table := NewTable(rules)
	for _, tt := range []struct {
		name, addr string
		line       int
	}{
		{"www.example.", "192.0.2.200", 2},
		{"other.", "192.0.2.200", 6},
		{"other.", "203.0.113.1", 0},
	} {
		if got := table.For(tt.name, netip.MustParseAddr(tt.addr)).Line; got != tt.line {
			t.Errorf("For(%s, %s) is the rule of line %d, want %d", tt.name, tt.addr, got, tt.line)
		}
	}
}

func TestForChain(t *testing.T) {
	table, addr := NewTable(rules), netip.MustParseAddr("203.0.113.1")
	for _, tt := range []struct {
		asked, owner string
		want         Class
	}{
		{"www.example.", "cdn.test.", Clear}, // named, by an alias to a name that nobody names
		{"cdn.test.", "www.example.", Clear},
		{"www.example.", "ftp.example.", Clear},
	} {
		if got := table.ForChain(tt.asked, tt.owner, addr).Class; got != tt.want {
			t.Errorf("%s to %s: %v, want %v", tt.asked, tt.owner, got, tt.want)
		}
	}
}

func TestUnnamed(t *testing.T) {
	all := Default()
	all.Line, all.Class = 1, Clear
	blocked := Rule{Prefixes: prefixes("192.0.2.0/24"), Class: Block, Line: 2}
	private := Rule{Prefixes: prefixes("198.51.100.0/24"), Class: PrivateOrClear, Line: 3}
	for _, tt := range []struct {
		why   string
		rules []Rule
		want  Class
	}{
		{"nothing configured", nil, PrivateOrClear},
		{"all in clear", []Rule{all}, Clear},
		{"one network blocked", []Rule{all, blocked}, Clear},
		{"one network wants keys", []Rule{all, private}, PrivateOrClear},
		{"IPv4 only in clear", []Rule{{Prefixes: prefixes("0.0.0.0/0"), Class: Clear}}, PrivateOrClear},
	} {
		if got := NewTable(tt.rules).ForName("host.example.").Class; got != tt.want {
			t.Errorf("%s: %v, want %v", tt.why, got, tt.want)
		}
	}
}

func TestNamed(t *testing.T) {
	table := NewTable(append([]Rule{{Names: []string{"*."}, Line: 9}}, rules...))
	for name, want := range map[string]bool{"example.": true, "www.example.": true, "other.": false, "a.b.": false} {
		if got := table.Named(name); got != want {
			t.Errorf("Named(%s) is %v, want %v", name, got, want)
		}
	}
	if r := table.ForName("other."); r.Line != 9 {
		t.Errorf(`"*." does not match other.: line %d`, r.Line)
	}
}

func TestClassOf(t *testing.T) {
	for c := Block; c <= Clear; c++ {
		if got, ok := ClassOf(c.String()); !ok || got != c {
			t.Errorf("ClassOf(%v) is %v, %v", c, got, ok)
		}
	}
	if _, ok := ClassOf("secret"); ok {
		t.Error(`"secret" is no class`)
	}
	if got := Class(9).String(); got != "unknown" {
		t.Errorf("class 9 is %q", got)
	}
}

// A lookup costs the labels of the name, not the number of rules.
func BenchmarkForName(b *testing.B) {
	for _, n := range []int{10, 100_000} {
		rules := make([]Rule, n)
		for i := range rules {
			rules[i].Names = []string{fmt.Sprintf("*.z%d.example.", i)}
		}
		table := NewTable(rules)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				table.ForName("a.b.c.d.z5.example.")
			}
		})
	}
}

func TestMatch(t *testing.T) {
	table := NewTable(rules)
	for name, want := range map[string]string{
		"example": "example.", "www.example.": "*.example.", "tree.example.": ".tree.example.", "a.tree.example.": ".tree.example.",
		"a.deep.tree.example.": "*.deep.tree.example.", "x.tree.example.": "x.tree.example.",
	} {
		if m, ok := table.MatchName(name); !ok || m.Pattern != want || m.Rule.Line != table.ForName(name).Line {
			t.Errorf("%s: %+v, want %s", name, m, want)
		}
	}
	if m, ok := table.MatchName("other."); ok {
		t.Errorf("other: %+v, want nothing", m)
	}
	for addr, want := range map[string]string{"192.0.2.1": "192.0.2.0/24", "192.0.2.129": "192.0.2.128/25", "2001:db8::1": "2001:db8::1/128", "198.51.100.1": "0.0.0.0/0"} {
		if m := table.MatchAddr(netip.MustParseAddr(addr)); m.Pattern != want {
			t.Errorf("%s: %+v, want %s", addr, m, want)
		}
	}
}
