package daemon

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tacit/config"
	"tacit/ike"
	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
	"tacit/policy"
)

// reloadPlay is a loop with a peer whose SA was begun by us for bob.example., and one with nobody.
func reloadPlay(t *testing.T) (*play, *loop) {
	p := newProven(t)
	return p, idleLoop(t, p)
}

// try puts rules in force and reports which SAs are left, and whether the address may be spoken to in clear.
func try(p *play, l *loop, rules ...policy.Rule) (left []ike.SAID, clear bool) {
	old := l.d.rules.Load()
	f := *l.d.cfg.File
	f.Policy = append(rules, policy.Default())
	l.d.obey(&f)
	l.reconsider(p.now, old, l.d.rules.Load())
	for _, a := range p.p.sas {
		if a.up && !a.deleting {
			left = append(left, a.id)
		}
	}
	return left, !p.p.pad.Held(p.now)
}

func TestReloadTouchesOnlyWhatChanged(t *testing.T) {
	named := func(class policy.Class, names ...string) policy.Rule {
		return policy.Rule{Names: names, Class: class, AcceptAnonymous: true}
	}
	for _, tt := range []struct {
		what  string
		rule  policy.Rule
		stays bool
	}{
		{"another name's", named(policy.Clear, "other.example."), true},
		{"stricter", named(policy.Private, "bob.example."), true},
		{"clear", named(policy.Clear, "*.example."), false},
		{"block", named(policy.Block, "bob.example."), false},
		{"the address is clear, and no rule names the name", policy.Rule{Prefixes: policy.Default().Prefixes, Class: policy.Clear}, false},
	} {
		p, l := reloadPlay(t)
		left, clear := try(p, l, tt.rule)
		if (len(left) == 1) != tt.stays || clear == tt.stays {
			t.Errorf("%s: left %v, clear %v", tt.what, left, clear)
		}
	}
}

func TestReloadEndsNobody(t *testing.T) {
	p := newPlay(t)
	p.established(5, false, 0)
	l := idleLoop(t, p)
	if left, _ := try(p, l, policy.Rule{Names: []string{"x."}, Class: policy.Clear}); len(left) != 1 {
		t.Error("an SA went whose rule did not change")
	}
	if left, _ := try(p, l, policy.Rule{Prefixes: policy.Default().Prefixes, Class: policy.PrivateOrClear}); len(left) != 0 {
		t.Error("nobody stays where nobody comes in")
	}
}

// What only a restart changes is refused, and nothing happens.
func TestReloadIsAtomic(t *testing.T) {
	p, l := reloadPlay(t)
	f := config.Default()
	f.Policy = append([]policy.Rule{{Names: []string{"bob.example."}, Class: policy.Clear}}, f.Policy...)
	f.Name, f.Identify = "carol.example", "all"
	rules := l.d.rules.Load()
	if err := l.d.Reload(t.Context(), f); err == nil || !strings.Contains(err.Error(), "restart changes name;") {
		t.Errorf("got %v", err)
	}
	if l.d.rules.Load() != rules || *l.d.identify.Load() != "matched" || !p.p.pad.Live() {
		t.Error("something has changed")
	}
	f.Name = ""
	if err := l.d.Reload(t.Context(), f); err != nil {
		t.Error(err)
	}
	if l.d.rules.Load() == rules || *l.d.identify.Load() != "all" {
		t.Error("nothing has changed")
	}
}

// Lookups and packets get their rules together, or both keep those that they have.
func TestReloadOfRulesForPackets(t *testing.T) {
	x := newTraffic(t, policy.Rule{Class: policy.PrivateOrClear})
	f := *x.l.d.cfg.File
	f.Policy = []policy.Rule{{Prefixes: policy.Default().Prefixes, Class: policy.Private}}
	if err := x.l.d.Reload(t.Context(), &f); err != nil {
		t.Fatal(err)
	}
	if r := x.fake.Rules(); len(r) != 2 || r[0].Action != ipsec.Block {
		t.Errorf("rules for packets: %+v", r)
	}
	rules := x.l.d.rules.Load()
	x.fake.FailOn("SetRules", ipsectest.ErrInjected)
	f.Policy = nil
	if err := x.l.d.Reload(t.Context(), &f); !errors.Is(err, ipsectest.ErrInjected) || x.l.d.rules.Load() != rules {
		t.Errorf("got %v", err)
	}
}

// Rules that are in force are heard of by every loop, though who asked for them has gone: what they do not allow any more ends.
func TestReloadGoesOnAlone(t *testing.T) {
	x := newEnd(t, "192.0.2.1", "")
	close(x.gate)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	f := *x.l.d.cfg.File
	for i := range 20 {
		x.do(t, func(now time.Time) {
			x.l.packets.denials.put(&denial{addr: netip.MustParseAddr("192.0.2.9"), until: now.Add(time.Minute)})
		})
		f.Policy = []policy.Rule{{Prefixes: policy.Default().Prefixes, Class: policy.PrivateOrClear, Packets: i%2 == 0}}
		_ = x.l.d.Reload(gone, &f)
		x.do(t, func(time.Time) {
			if n := len(x.l.packets.denials.of); n != 0 {
				t.Errorf("reload %d: what was found under other rules still counts", i)
			}
		})
	}
}
