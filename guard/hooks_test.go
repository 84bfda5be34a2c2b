package guard

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// hooksThere reports whether the table has hooks, as another process sees it.
func hooksThere(t *testing.T) bool {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		t.Fatal(err)
	}
	return len(tables) > 0 && tables[0].Flags == 0
}

func checkHooks(t *testing.T, when string, want bool) {
	t.Helper()
	if got := hooksThere(t); got != want {
		t.Errorf("%s: hooks: %v, want %v", when, got, want)
	}
}

// router notes what Routing is told, and whether hooks stand then: they never do.
type router struct {
	t    *testing.T
	told []bool
	err  error
}

func (r *router) route(marked bool) error {
	if hooksThere(r.t) && (!marked || len(r.told) > 0) { // a successor finds those of a dead process
		r.t.Errorf("routing is told %v while there are hooks", marked)
	}
	r.told = append(r.told, marked)
	return r.err
}

// guardConfigs are those that the kernel can do.
func guardConfigs(t *testing.T) map[string]Config {
	t.Helper()
	all := map[string]Config{"device": {Device: "tacit0"}, "queue": {Queue: 0x7ac1}}
	g, _, err := Open(all["queue"])
	if err != nil {
		t.Logf("without a queue: %v", err)
		delete(all, "queue")
		return all
	}
	if err := g.Close(false); err != nil {
		t.Fatal(err)
	}
	return all
}

// Hooks are there with the first that stands, of whatever kind, and until nothing has stood for a minute; and again with the next.
func TestHooksStandWithWhatStands(t *testing.T) {
	newNamespace(t)
	hour := time.Hour
	for name, cfg := range guardConfigs(t) {
		for kind, step := range map[string]struct{ bring, take func(g *Guard) error }{
			"element": {func(g *Guard) error { return g.Apply([]Change{{key4, Divert, hour}}) }, func(g *Guard) error { return g.Apply([]Change{{Key: key4}}) }},
			"clear":   {func(g *Guard) error { return g.Apply([]Change{{key6, Clear, hour}}) }, func(g *Guard) error { return g.Apply([]Change{{Key: key6}}) }},
			"rules": {func(g *Guard) error { return g.SetRules(someRules(), hour) }, func(g *Guard) error {
				return errors.Join(g.SetRules(Rules{}, hour), g.RenewRules(hour))
			}},
			"latch": {func(g *Guard) error { return g.Latch(key4, hour) }, func(g *Guard) error { return g.Unlatch(key4) }},
		} {
			if kind == "latch" && name != "queue" {
				continue
			}
			r := &router{t: t}
			cfg.Routing = r.route
			g, _, err := Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			when := func(what string) string { return name + ", " + kind + ", " + what }
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatalf("%s: %v", when("step"), err)
				}
			}
			checkHooks(t, when("at first"), false)
			now := time.Unix(1000, 0)
			for round := range 2 {
				must(step.bring(g))
				checkHooks(t, when("brought"), true)
				must(errors.Join(g.Rest(now), g.Rest(now.Add(hour/2))))
				checkHooks(t, when("standing"), true)
				now = now.Add(hour/2 + restAfter/2)
				must(errors.Join(step.take(g), g.Rest(now), g.Rest(now.Add(restAfter-1))))
				checkHooks(t, when("a moment ago"), true)
				must(errors.Join(step.bring(g), step.take(g), g.Rest(now.Add(restAfter))))
				checkHooks(t, when("again a moment ago"), true)
				must(errors.Join(g.Rest(now.Add(2*restAfter)), g.Rest(now.Add(hour))))
				checkHooks(t, when("a minute ago"), false)
				now = now.Add(hour)
				if want := []bool{false, true, false, true, false}[:2*round+3]; !slices.Equal(r.told, want) {
					t.Errorf("%s: routing was told %v, want %v", when("at last"), r.told, want)
				}
			}
			must(g.Close(false))
		}
	}
}

// What a dead process left keeps its hooks while it stands, in its hands and in those of a successor, whatever that knows of it.
func TestHooksOfADeadProcess(t *testing.T) {
	newNamespace(t)
	now := time.Unix(1000, 0)
	long, brief := time.Hour, 300*time.Millisecond
	for name, cfg := range guardConfigs(t) {
		for kind, leave := range map[string]func(g *Guard, d time.Duration) error{
			"elements": func(g *Guard, d time.Duration) error { return g.Apply([]Change{{key4, Block, d}}) },
			"rules":    func(g *Guard, d time.Duration) error { return g.SetRules(someRules(), d) },
		} {
			when := func(what string) string { return name + ", " + kind + ", " + what }
			g, _, err := Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(leave(g, long), g.Close(true)); err != nil {
				t.Fatal(err)
			}
			checkHooks(t, when("left"), true)
			r := &router{t: t}
			cfg.Routing = r.route
			if g, _, err = Open(cfg); err != nil {
				t.Fatal(err)
			}
			checkHooks(t, when("taken over"), true)
			if err := errors.Join(g.Rest(now), g.Rest(now.Add(time.Minute)), g.Rest(now.Add(2*time.Minute))); err != nil {
				t.Fatal(err)
			}
			checkHooks(t, when("a while later"), true)
			if !slices.Equal(r.told, []bool{true}) {
				t.Errorf("%s: routing was told %v", when("taken over"), r.told)
			}
			if err := errors.Join(leave(g, brief), g.Close(true)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(brief + 50*time.Millisecond)
			checkHooks(t, when("at its end"), true)
			if g, _, err = Open(cfg); err != nil {
				t.Fatal(err)
			}
			checkHooks(t, when("after its end"), false)
			if err := g.Close(true); err != nil {
				t.Fatal(err)
			}
			if err := Cleanup(); err != nil {
				t.Errorf("%s: cleanup without hooks: %v", when(""), err)
			}
			cfg.Routing = nil
		}
	}
}

// A table of an older version has hooks though nothing stands.
func TestHooksOfAnOlderVersion(t *testing.T) {
	newNamespace(t)
	g, _, err := Open(Config{Device: "tacit0"})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(g.setHooks(true), g.Close(true)); err != nil {
		t.Fatal(err)
	}
	checkHooks(t, "the older version", true)
	if g, _, err = Open(Config{Device: "tacit0"}); err != nil {
		t.Fatal(err)
	}
	checkHooks(t, "taken over", false)
	if err := g.Close(false); err != nil {
		t.Error(err)
	}
}

// Who cannot have marked packets routed marks none; and hooks that could not be removed, or not wholly, are removed later, or used.
func TestHooksAfterErrors(t *testing.T) {
	newNamespace(t)
	injected := errors.New("injected")
	var fault error
	r := &router{t: t}
	g, _, err := Open(Config{Device: "tacit0", Routing: r.route, Fault: func(string) error { return fault }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = g.Close(false) }()
	divert, pass := []Change{{key4, Divert, time.Minute}}, []Change{{Key: key4}}
	r.err = injected
	if err := g.Apply(divert); !errors.Is(err, injected) || len(verdicts(t, g)) > 0 {
		t.Errorf("without routing: %v, %v", err, verdicts(t, g))
	}
	checkHooks(t, "without routing", false)
	now := time.Unix(1000, 0)
	if err := errors.Join(g.Rest(now), g.Rest(now.Add(time.Minute))); !errors.Is(err, injected) {
		t.Errorf("the routing that was not told: %v", err)
	}
	r.err = nil
	g.have[key4] = Block // the first transaction finds no such element
	if err := g.Apply(divert); err != nil || verdicts(t, g)[key4] != Divert {
		t.Errorf("at the second trial: %v, %v", err, verdicts(t, g))
	}
	checkHooks(t, "at the second trial", true)

	now = now.Add(time.Hour)
	if err := errors.Join(g.Apply(pass), g.Rest(now)); err != nil {
		t.Fatal(err)
	}
	fault = injected
	if err := g.Rest(now.Add(time.Minute)); !errors.Is(err, injected) {
		t.Errorf("hooks that cannot be removed: %v", err)
	}
	fault, r.err = nil, injected
	if err := g.Rest(now.Add(2*time.Minute - 1)); err != nil {
		t.Errorf("too early: %v", err)
	}
	checkHooks(t, "which could not be removed", true)
	if err := g.Rest(now.Add(2 * time.Minute)); !errors.Is(err, injected) {
		t.Errorf("the routing that could not be ended: %v", err)
	}
	checkHooks(t, "while the routing could not be ended", false)
	told := len(r.told)
	r.err = nil
	if err := g.Apply(divert); err != nil || len(r.told) == told || !r.told[told] {
		t.Errorf("the next: %v; routing was told %v", err, r.told[told:])
	}
	checkHooks(t, "the next", true)
	// Somebody takes the table away while it sleeps.
	if err := errors.Join(g.Apply(pass), g.rest(), Cleanup()); err != nil {
		t.Fatal(err)
	}
	if err := g.Apply(divert); !errors.Is(err, unix.ENOENT) {
		t.Errorf("without a table: %v", err)
	}
}

// No packet gets out between the return of what refuses it and the end of that, however often the hooks come and go.
func TestHooksAreInForceAtOnce(t *testing.T) {
	newNetwork(t)
	g, _, err := Open(Config{Device: "tacit0"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = g.Close(false) }()
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(key4.Peer, 9)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	send := func() error { _, err := c.Write([]byte("x")); return err }
	rules := Rules{Block: []Range{between("192.0.2.2", "192.0.2.2")}}
	for i := range 100 {
		shut := func() error { return g.Apply([]Change{{key4, Block, time.Minute}}) }
		open := func() error { return g.Apply([]Change{{Key: key4}}) }
		if i%2 == 1 {
			shut, open = func() error { return g.SetRules(rules, time.Minute) }, func() error { return g.SetRules(Rules{}, 0) }
		}
		if err := shut(); err != nil {
			t.Fatal(err)
		}
		if err := send(); !errors.Is(err, unix.EPERM) {
			t.Fatalf("round %d, shut: %v", i, err)
		}
		if err := open(); err != nil {
			t.Fatal(err)
		}
		if err := send(); err != nil {
			t.Fatalf("round %d, open: %v", i, err)
		}
		if err := g.rest(); err != nil {
			t.Fatal(err)
		}
		checkHooks(t, "at rest", false)
	}
	// Elements in a table that sleeps concern no packet: its hooks are not there.
	element := []nftables.SetElement{{Key: encodeKey(key4), Timeout: time.Minute}}
	if err := errors.Join(g.conn.SetAddElements(g.sets.block[0], element), g.conn.Flush(), send()); err != nil {
		t.Errorf("at rest: %v", err)
	}
}

// Hooks that were brought before anything stands go like the others, after a minute without.
func TestHooksThatWereCalled(t *testing.T) {
	newNamespace(t)
	r := &router{t: t}
	g, _, err := Open(Config{Device: "tacit0", Routing: r.route})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = g.Close(false) }()
	checkHooks(t, "at first", false)
	r.err = errors.New("no rule")
	if err := g.Wake(); !errors.Is(err, r.err) {
		t.Errorf("no routing: %v", err)
	}
	checkHooks(t, "without routing", false)
	r.err = nil
	now := time.Unix(1000, 0)
	for range 2 {
		if err := errors.Join(g.Wake(), g.Rest(now), g.Rest(now.Add(restAfter-1)), g.Wake(), g.Rest(now.Add(restAfter))); err != nil {
			t.Fatal(err)
		}
		checkHooks(t, "called", true)
		if err := g.Rest(now.Add(2 * restAfter)); err != nil {
			t.Fatal(err)
		}
		checkHooks(t, "a minute later", false)
	}
}
