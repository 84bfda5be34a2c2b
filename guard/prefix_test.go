package guard

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

func between(first, last string) Range {
	return Range{netip.MustParseAddr(first), netip.MustParseAddr(last)}
}

// someRules are of all kinds and both families; one has as many ranges as need several messages.
func someRules() Rules {
	r := Rules{
		Hold:  []Range{between("10.0.0.0", "10.0.0.255"), between("2001:db8::", "2001:db8::ffff")},
		Block: []Range{between("10.0.1.0", "10.0.1.255")},
		DNS:   []Range{between("10.0.0.0", "10.0.1.255")},
		Ports: []Ports{{between("10.0.0.0", "10.0.0.255"), []Port{{6, 22}, {17, 123}}}, {between("2001:db8::", "2001:db8::ffff"), []Port{{6, 22}}}},
	}
	for i := range 2 * chunk {
		a := netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 0})
		r.Trap = append(r.Trap, Range{a, a})
	}
	return r
}

// count is how many elements the kernel has in a set.
func (g *Guard) count(t *testing.T, set string) (n int) {
	t.Helper()
	for i := range g.sets.rules {
		for _, s := range append(g.sets.rules[i].all(), g.sets.live) {
			if s.Name != set {
				continue
			}
			listed, err := g.conn.GetSetElements(s)
			if err != nil {
				t.Fatal(err)
			}
			return len(listed)
		}
	}
	t.Fatalf("there is no set %s", set)
	return 0
}

func (g *Guard) checkRules(t *testing.T, want map[string]int) {
	t.Helper()
	for set, n := range want {
		if got := g.count(t, set); got != n {
			t.Errorf("%s: %d elements, want %d", set, got, n)
		}
	}
}

// The kernel holds what SetRules says, also where it overlaps what was there, and for a dead process until its time is over.
func TestSetRules(t *testing.T) {
	newNamespace(t)
	g, _, err := Open(Config{Device: "tacit0"})
	if err != nil {
		t.Fatal(err)
	}
	if g.sets.live == nil {
		t.Fatal("the kernel refuses the rules' sets or chains")
	}
	whole := map[string]int{"rule_hold4": 2, "rule_hold6": 2, "rule_trap4": 4 * chunk, "rule_block4": 2, "rule_dns4": 2, "rule_ports4": 2,
		"rule_ports6": 1, "live": 2, "rule_block6": 0}
	for range 3 {
		if err := g.SetRules(someRules(), time.Minute); err != nil {
			t.Fatal(err)
		}
		g.checkRules(t, whole)
	}
	if err := g.SetRules(Rules{Hold: []Range{between("10.0.0.128", "10.0.3.255")}}, 400*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	g.checkRules(t, map[string]int{"rule_hold4": 2, "rule_hold6": 0, "rule_trap4": 0, "rule_block4": 0, "live": 2})
	time.Sleep(450 * time.Millisecond)
	g.checkRules(t, map[string]int{"live": 0})
	if err := g.RenewRules(time.Minute); err != nil {
		t.Fatal(err)
	}
	g.checkRules(t, map[string]int{"live": 2})
	if err := errors.Join(g.SetRules(someRules(), time.Minute), g.Close(true)); err != nil {
		t.Fatal(err)
	}
	if g, _, err = Open(Config{Device: "tacit0"}); err != nil {
		t.Fatal(err)
	}
	if !g.RulesLeft() {
		t.Error("no rules are left")
	}
	g.checkRules(t, whole)
	if err := g.SetRules(Rules{}, time.Minute); err != nil {
		t.Fatal(err)
	}
	g.checkRules(t, map[string]int{"rule_hold4": 0, "rule_trap4": 0, "live": 0})
	if err := errors.Join(g.Close(true)); err != nil {
		t.Fatal(err)
	}
	if g, _, err = Open(Config{Device: "tacit0"}); err != nil || g.RulesLeft() {
		t.Errorf("rules are left (%v), though there were none", err)
	}
	if err := g.Close(false); err != nil {
		t.Error(err)
	}
}
