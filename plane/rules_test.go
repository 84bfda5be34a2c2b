package plane

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tacit/guard"
	"tacit/ipsec"
)

// naive is the rule of an address, found by looking at all of them.
func naive(rules []ipsec.Rule, exempt []netip.Prefix, a netip.Addr) ipsec.Action {
	for _, e := range exempt {
		if e.Contains(a) {
			return ipsec.Bypass
		}
	}
	best, action := -1, ipsec.Bypass
	for _, r := range rules {
		if r.Remote.Contains(a) && r.Remote.Bits() > best {
			best, action = r.Remote.Bits(), r.Action
		}
	}
	return action
}

// Flattened, rules are disjoint and in order, and say of every address what the longest prefix says. The prefixes are drawn from few bits, so that
// they nest, touch and repeat.
func TestFlatten(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var rules []ipsec.Rule
		var exempt []netip.Prefix
		prefix := func() netip.Prefix {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(random.UintN(32)) << 3})
			bits := 24 + random.IntN(9)
			if random.UintN(3) == 0 {
				a, bits = netip.AddrFrom16([16]byte{0: 0x20, 15: byte(random.UintN(32)) << 3}), 120+random.IntN(9)
			}
			return netip.PrefixFrom(a, bits).Masked()
		}
		for range random.IntN(12) {
			rules = append(rules, ipsec.Rule{Remote: prefix(), Action: ipsec.Action(random.UintN(5))})
		}
		for range random.IntN(3) {
			exempt = append(exempt, prefix())
		}
		spans := flatten(rules, exempt)
		for i := range spans {
			if spans[i].First.Compare(spans[i].Last) > 0 || i > 0 && spans[i-1].Last.Compare(spans[i].First) >= 0 {
				t.Fatalf("%+v, but %v: spans %v overlap", rules, exempt, spans)
			}
		}
		var r Rules
		r.spans.Store(&spans)
		for i := range 256 {
			for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), netip.AddrFrom16([16]byte{0: 0x20, 15: byte(i)})} {
				if got, want := r.Action(a), naive(rules, exempt, a); got != want {
					t.Fatalf("%+v, but %v: %v: got %v, want %v", rules, exempt, a, got, want)
				}
			}
		}
		checkRanges(t, spans)
	}
}

// checkRanges: guard's ranges hold the same addresses, and none follows on the one before it in its own list.
func checkRanges(t *testing.T, spans []span) {
	t.Helper()
	g := guardRules(spans)
	for action, list := range map[ipsec.Action][]guard.Range{ipsec.Hold: g.Hold, ipsec.Trap: g.Trap, ipsec.Block: g.Block, ipsec.Watch: g.Watch} {
		for i, r := range list {
			if i > 0 && list[i-1].Last.Next() == r.First {
				t.Fatalf("%v: %v touch", action, list)
			}
		}
		for _, s := range spans {
			inside := slices.ContainsFunc(list, func(r guard.Range) bool { return r.First.Compare(s.First) <= 0 && r.Last.Compare(s.Last) >= 0 })
			if inside != (s.rule.Action == action) {
				t.Fatalf("%v: %v for %+v", action, list, s)
			}
		}
	}
}

// With what no rule concerns taken out no range reaches the end of the address space, where an interval would have no end.
func TestNever(t *testing.T) {
	all := []ipsec.Rule{{Remote: netip.MustParsePrefix("0.0.0.0/0"), Action: ipsec.Hold}, {Remote: netip.MustParsePrefix("::/0"), Action: ipsec.Hold},
		{Remote: netip.MustParsePrefix("127.0.0.1/32"), Action: ipsec.Hold}, {Remote: netip.MustParsePrefix("fe80::1/128"), Action: ipsec.Block}}
	gateway := netip.MustParseAddr("192.0.2.1")
	spans := flatten(all, append(slices.Clone(never), netip.PrefixFrom(gateway, 32)))
	var r Rules
	r.spans.Store(&spans)
	for _, s := range []string{"127.0.0.1", "127.9.9.9", "0.0.0.0", "169.254.1.1", "224.0.0.251", "255.255.255.255", "::", "::1", "fe80::1", "ff02::fb", "192.0.2.1"} {
		if got := r.Action(netip.MustParseAddr(s)); got != ipsec.Bypass {
			t.Errorf("%s: %v", s, got)
		}
	}
	for _, s := range []string{"1.0.0.0", "126.255.255.255", "192.0.2.0", "192.0.2.2", "223.255.255.255", "::2", "2001:db8::1", "feff::1"} {
		if got := r.Action(netip.MustParseAddr(s)); got != ipsec.Hold {
			t.Errorf("%s: %v", s, got)
		}
	}
	for _, h := range guardRules(spans).Hold {
		if !h.Last.Next().IsValid() {
			t.Errorf("%v has no end", h)
		}
	}
}

// What a rule says of a flow's packets: without a policy of its own it waits where a rule holds or traps; what is let go goes.
func TestFate(t *testing.T) {
	now := time.Unix(1000, 0)
	p := Policies[*traffic]{Linger: 10 * time.Second, Now: func() time.Time { return now }}
	spans := flatten([]ipsec.Rule{{Remote: netip.PrefixFrom(bob, bob.BitLen()), Action: ipsec.Trap}}, nil)
	carol := netip.MustParseAddr("192.0.2.3")
	spans = append(spans, flatten([]ipsec.Rule{{Remote: netip.PrefixFrom(carol, 32), Action: ipsec.Watch}}, nil)...)
	p.Rules.spans.Store(&spans)
	later := now.Add(time.Minute)
	for name, tt := range map[string]struct {
		peer   netip.Addr
		asked  bool
		policy ipsec.Action
		until  time.Time
		fate   Fate
		ends   time.Time
		then   Fate
	}{
		"trapped":                        {peer: bob, fate: Wait},
		"watched":                        {peer: carol, fate: Copy},
		"let go, though watched":         {peer: carol, asked: true, policy: ipsec.Bypass, until: later, fate: Release, ends: later, then: Copy},
		"held, though a rule watches":    {peer: carol, asked: true, policy: ipsec.Hold, until: later, fate: Wait, ends: later, then: Copy},
		"no rule":                        {peer: alice, fate: Drop},
		"kept until it is due":           {peer: alice, until: later, fate: Drop},
		"let go, though trapped":         {peer: bob, asked: true, policy: ipsec.Bypass, until: later, fate: Release, ends: later, then: Wait},
		"let go":                         {peer: alice, asked: true, policy: ipsec.Bypass, until: later, fate: Release, ends: later},
		"let go, which is over":          {peer: bob, asked: true, policy: ipsec.Bypass, until: now, fate: Wait},
		"held, which is over":            {peer: alice, asked: true, policy: ipsec.Hold, until: now, fate: Drop},
		"held":                           {peer: alice, asked: true, policy: ipsec.Hold, until: later, fate: Wait, ends: later},
		"refused, though a rule traps":   {peer: bob, asked: true, policy: ipsec.Block, until: later, fate: Drop, ends: later, then: Wait},
		"a rule, and kept until due yet": {peer: bob, until: later, fate: Wait},
	} {
		fate, ends, then := p.FateOf(&Flow{Key: guard.Key{Own: alice, Peer: tt.peer}, asked: tt.asked, policy: tt.policy, until: tt.until})
		if fate != tt.fate || !ends.Equal(tt.ends) || then != tt.then {
			t.Errorf("%s: %v until %v, then %v, want %v until %v, then %v", name, fate, ends, then, tt.fate, tt.ends, tt.then)
		}
	}
	p.Rules.unknown.Store(true)
	if fate, _, _ := p.FateOf(&Flow{Key: guard.Key{Own: bob, Peer: alice}}); fate != Wait {
		t.Error("under a dead process's rules packets do not wait")
	}
}

// What waited because of a rule is judged anew by the next rules, and its flow is forgotten then; rules that guard refuses change nothing.
func TestSetRules(t *testing.T) {
	if os.Getenv("TACIT_E2E") != "1" {
		t.Skip("needs root and network namespaces: set TACIT_E2E=1")
	}
	runtime.LockOSThread() // and never unlocked: the namespace ends with the thread
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	var fault error
	g, _, err := guard.Open(guard.Config{Device: "tacit0", Fault: func(string) error { return fault }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = g.Close(false) }()
	var fates []Fate
	gateway := netip.MustParseAddr("192.0.2.77")
	p := Policies[*traffic]{Guard: g, Linger: 10 * time.Second, Now: time.Now, Gateways: func() []netip.Addr { return []netip.Addr{gateway} },
		Made: func(k guard.Key) *traffic { return &traffic{Flow: Flow{Key: k}, settled: &fates} }}
	trap := []ipsec.Rule{{Remote: netip.MustParsePrefix("192.0.2.0/24"), Action: ipsec.Trap}}
	if err := p.SetRules(trap); err != nil {
		t.Fatal(err)
	}
	f := p.Flow(guard.Key{Own: alice, Peer: bob})
	if f.fate != Wait || p.Rules.Waits(gateway) {
		t.Errorf("a trapped address: fate %v; the gateway waits: %v", f.fate, p.Rules.Waits(gateway))
	}
	fault = errors.New("injected")
	if err := p.SetRules(nil); !errors.Is(err, fault) || !p.Rules.Waits(bob) || f.fate != Wait {
		t.Errorf("rules that could not be set: %v, fate %v", err, f.fate)
	}
	// What has a policy has that, and what comes behind it is the new rules' to say; a policy that has ended lets nothing go any more.
	fault = nil
	let, ended := p.Flow(guard.Key{Own: alice, Peer: netip.MustParseAddr("192.0.2.8")}), p.Flow(guard.Key{Own: alice, Peer: netip.MustParseAddr("192.0.2.9")})
	for _, f := range []*traffic{let, ended} {
		if err := p.Set(f.Selector(), ipsec.Bypass, time.Now().Add(time.Minute)); err != nil || f.fate != Release || f.then != Wait || f.waiting.IsZero() {
			t.Errorf("let go under a trap: %v, fate %v until %v, then %v", err, f.fate, f.waiting, f.then)
		}
	}
	p.end(ended, time.Now())
	fates = nil
	trap[0].Action = ipsec.Hold
	if err := p.SetRules(trap); err != nil || let.fate != Release || ended.fate != Wait {
		t.Errorf("held instead of trapped: %v, fates %v, %v", err, let.fate, ended.fate)
	}
	if n := len(slices.DeleteFunc(slices.Clone(fates), func(f Fate) bool { return f != Release })); n != 1 {
		t.Errorf("held instead of trapped: let go %d times, want once, by the policy that stands: %v", n, fates)
	}
	ended.settled = new([]Fate)
	if err := p.SetRules(nil); err != nil || let.fate != Release || let.then != Drop || !slices.Equal(*ended.settled, []Fate{Release, Drop}) {
		t.Errorf("no rules: %v, fate %v, then %v; what waited behind a policy that had ended: %v", err, let.fate, let.then, *ended.settled)
	}
	if err := p.Clear(let.Selector()); err != nil {
		t.Error(err)
	}
	if err := p.Clear(ended.Selector()); err != nil {
		t.Error(err)
	}
	trap[0].Action = ipsec.Trap
	if err := p.SetRules(trap); err != nil {
		t.Error(err)
	}
	p.Flow(guard.Key{Own: alice, Peer: bob})
	fates = nil
	if err := p.SetRules(nil); err != nil || !slices.Equal(fates, []Fate{Release, Drop}) || p.Len() != 0 {
		t.Errorf("no rules: %v, fates %v, %d flows", err, fates, p.Len())
	}
}
