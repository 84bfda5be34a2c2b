package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tacit/control"
	"tacit/ike"
	"tacit/ipsec"
	"tacit/pad"
)

// hears fails the test unless exactly these events came since it was asked last: "kind name assurance".
func (p *play) hears(what string, want ...string) {
	p.t.Helper()
	var got []string
	for _, e := range p.said {
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s", e.Kind, strings.TrimSuffix(e.Name, "."), e.Assurance)))
		if e.Address != p.p.remote || e.Local != p.p.local || e.Why == "" || (e.KeyID == "") != (e.Assurance != control.Authenticated) {
			p.t.Errorf("%s: %+v", what, e)
		}
	}
	if !slices.Equal(got, want) {
		p.t.Errorf("%s: got %q, want %q", what, got, want)
	}
	p.said = nil
}

// TestAuditOfPeers: one event for each thing that becomes of a peer, and none for what does not.
func TestAuditOfPeers(t *testing.T) {
	const up, down = "sa-up bob.example authenticated", "sa-down bob.example authenticated"
	for _, tt := range []struct {
		name string
		play func(p *play)
	}{
		{"sa-up and sa-down", func(p *play) {
			p.lookup("bob.example.", 1)
			p.hears("keying")
			p.established(1, true, 1)
			p.hears("keyed", up)
			p.lookup("bob.example.", 1)
			p.pass(3 * tick)
			p.hears("while it stands")
			p.ended(1, ike.ErrTimeout)
			p.hears("ended", down)
			p.pass(testLinger + tick)
			p.hears("released")
		}},
		{"a rekey of either SA", func(p *play) {
			p.lookup("bob.example.", 1)
			p.established(1, true, 1)
			p.hears("keyed", up)
			p.event(ike.ChildUp{SA: 1, Rekey: true, Pair: ipsec.Pair{ID: 101}})
			p.event(ike.Rekeyed{SA: 1, Initiator: true, Summary: "another"})
			p.event(ike.ChildUp{SA: 1, Pair: ipsec.Pair{ID: 102}}) // the peer wants a second one
			p.event(ike.ChildDown{SA: 1, Pair: 102})
			p.hears("rekeyed")
		}},
		{"both at once: one of two SAs ends", func(p *play) {
			p.lookup("bob.example.", 1)
			p.established(1, true, 1)
			p.event(ike.Established{SA: 7, Key: testKey(1)})
			p.event(ike.ChildUp{SA: 7, Pair: ipsec.Pair{ID: 107}})
			p.event(evFirst{107})
			p.ended(1, nil)
			p.hears("crossed", up)
		}},
		{"nobody, who is somebody", func(p *play) {
			p.established(7, false, 0)
			p.hears("anonymous", "sa-up  anonymous")
			p.event(evNamed{7, p.claim("bob.example.", 1)})
			p.event(ike.Promoted{SA: 7, Key: testKey(1)})
			p.hears("promoted", "promoted bob.example authenticated")
			p.event(evFirst{107})
			p.hears("used")
			p.ended(7, nil)
			p.hears("ended", down)
		}},
		{"the host's key is rolled over", func(p *play) {
			p.lookup("bob.example.", 1)
			p.established(1, true, 1)
			p.p.pad.Ask(p.now, p.claim("bob.example.", 1, 2))
			p.event(ike.Established{SA: 7, Key: testKey(2)})
			p.event(evNamed{7, p.claim("bob.example.", 1, 2)})
			p.event(ike.ChildUp{SA: 7, Pair: ipsec.Pair{ID: 107}})
			p.event(evFirst{107})
			p.hears("rolled", up, "roll-over bob.example authenticated")
		}},
		{"another's name, and the incumbent answers", func(p *play) {
			p.lookup("bob.example.", 1)
			p.established(1, true, 1)
			p.lookup("evil.example.", 2)
			p.hears("contested", up, "conflict evil.example authenticated")
			p.event(ike.Alive{SA: 1})
			p.hears("it stays")
		}},
		{"A-56: another's name, and the incumbent has left", func(p *play) {
			p.lookup("bob.example.", 1)
			p.established(1, true, 1)
			p.lookup("next.example.", 2)
			p.pass(2 * tick)
			p.hears("it lost", up, "conflict next.example authenticated", down)
			p.ended(1, ike.ErrTimeout)
			p.hears("its end")
			p.established(2, true, 2)
			p.hears("the next one's", "sa-up next.example authenticated", "roll-over next.example authenticated")
		}},
		{"what the rules do not allow", func(p *play) {
			p.lookup("bob.example.", 1)
			p.established(1, true, 1)
			p.event(evRules{func(*association) bool { return false }, true})
			if why := p.said[len(p.said)-1].Why; why != "the new rules do not allow it" {
				t.Errorf("why %q", why)
			}
			p.hears("reloaded", up, down)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) { p := newPlay(t); tt.play(p) })
	}
}

// TestAuditOfInitiators: who comes with less than the address has proved is refused, and that is said.
func TestAuditOfInitiators(t *testing.T) {
	p := newProven(t)
	l := idleLoop(t, p)
	defer close(l.ended)
	l.peers[p.p.key] = p.p
	p.p.pad.Alive(p.now)
	e := ike.AuthorizationWanted{SA: 9, Null: true, Local: netip.AddrPortFrom(p.p.local, 500), Remote: netip.AddrPortFrom(p.p.remote, 500)}
	l.judge(p.now, e, pad.Claim{}, "")
	e.Null, e.ID = false, ike.ID{Kind: ike.IDFQDN, Value: "evil\x1b.example"}
	l.judge(p.now, e, p.claim("evil.example.", 2), "")
	got := l.d.trail.after(t.Context(), 0).Events
	if len(got) != 2 || got[0].Kind != control.Downgrade || got[1].Kind != control.Conflict || got[1].Name != `evil\x1b.example` {
		t.Errorf("got %+v", got)
	}
}

// TestAuditOfLookups: an address that is left out of an answer is one event, however often a program asks again.
func TestAuditOfLookups(t *testing.T) {
	d := &Daemon{log: slog.New(slog.DiscardHandler)}
	now, addr := time.Unix(1e9, 0), netip.MustParseAddr("192.0.2.2")
	for range 5 {
		d.withheld(now, "bob.example.", addr, outcome{why: "no proof"})
		d.withheld(now, "bob.example.", addr, outcome{why: "shows it no more", downgrade: true})
		now = now.Add(time.Second)
	}
	d.withheld(now.Add(auditAgain), "bob.example.", addr, outcome{why: "no proof"})
	var got []string
	for _, e := range d.trail.after(t.Context(), 0).Events {
		got = append(got, fmt.Sprintf("%s %s %s %s %d", e.Kind, e.Name, e.Assurance, e.Why, e.LeftOut))
	}
	if want := []string{"withheld bob.example none no proof 0", "downgrade-refused bob.example none shows it no more 0",
		"withheld bob.example none no proof 4"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	d.cfg.Observe = true
	d.withheld(now, "other.example.", addr, outcome{why: "no proof"})
	if n := len(d.trail.after(t.Context(), 0).Events); n != 3 {
		t.Errorf("observing: %d events, want none that did not happen", n-3)
	}
}

// TestAuditRecord: each kind is a line of the log with the same keys as its JSON. Text from outside is escaped and bounded.
func TestAuditRecord(t *testing.T) {
	for _, kind := range control.Kinds {
		var d Daemon
		var text bytes.Buffer
		d.log = slog.New(slog.NewTextHandler(&text, nil))
		d.audit(time.Unix(1e9, 0), control.Event{Kind: kind, Address: netip.MustParseAddr("192.0.2.2"), Name: strings.Repeat("\x1b[2J", 1000) + ".",
			Suite: "a\nb", Why: "because \u202e of " + strings.Repeat("x", 1000)})
		e := d.trail.after(t.Context(), 0).Events
		if len(e) != 1 || e[0].Seq != 1 || e[0].Assurance != control.NoAssurance {
			t.Fatalf("%s: %+v", kind, e)
		}
		for _, s := range []string{e[0].Name, e[0].Suite, e[0].Why} {
			if len(s) > control.MaxText+3 || strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' }) {
				t.Errorf("%s: %q", kind, s)
			}
		}
		b, err := json.Marshal(e[0])
		var keys map[string]any
		if err != nil || json.Unmarshal(b, &keys) != nil {
			t.Fatal(err)
		}
		if n := strings.Count(text.String(), "\n"); n != 1 || !strings.Contains(text.String(), "msg=audit event="+string(kind)+" ") {
			t.Errorf("%s: %d lines: %s", kind, n, text.String())
		}
		for key := range keys {
			if key != "seq" && !strings.Contains(text.String(), " "+key+"=") && !strings.HasPrefix(text.String(), key+"=") {
				t.Errorf("%s: the log lacks %q: %s", kind, key, text.String())
			}
		}
	}
}

// TestAuditBounds: a flood of one kind is bounded, counted, and hides no other kind; who asks late learns how many he missed.
func TestAuditBounds(t *testing.T) {
	d := &Daemon{log: slog.New(slog.DiscardHandler)}
	now := time.Unix(1e9, 0)
	flood := func(n int) {
		for i := range n {
			d.withheld(now, fmt.Sprintf("n%d.example.", i), netip.MustParseAddr("192.0.2.2"), outcome{why: "no proof"})
		}
	}
	flood(auditBurst + 500)
	d.audit(now, control.Event{Kind: control.SAUp})
	if d.trail.seq != auditBurst+1 {
		t.Errorf("%d events, want %d", d.trail.seq, auditBurst+1)
	}
	now = now.Add(time.Second)
	d.withheld(now, "last.example.", netip.MustParseAddr("192.0.2.2"), outcome{why: "no proof"})
	all := d.trail.after(t.Context(), 0)
	if last := all.Events[len(all.Events)-1]; last.LeftOut != 500 || all.Events[len(all.Events)-2].Kind != control.SAUp {
		t.Errorf("left out %d, want 500", last.LeftOut)
	}
	now = now.Add(2 * auditAgain)
	flood(auditBurst)
	all = d.trail.after(t.Context(), 1)
	if len(all.Events) != auditKept || all.Missed != d.trail.seq-1-auditKept || all.Events[0].Seq != d.trail.seq-auditKept+1 {
		t.Errorf("%d events, %d missed, of %d", len(all.Events), all.Missed, d.trail.seq)
	}
	for i := range 20 {
		now = now.Add(5 * time.Second)
		flood(auditBurst + i)
	}
	if len(d.trail.said) > auditSaid || len(d.trail.kept) > auditKept {
		t.Errorf("remembered: %d sayings, %d events", len(d.trail.said), len(d.trail.kept))
	}
}

// TestAuditOfWhatWasLeftOut: an event that there was no room for counts as not said: when it comes again, and there is, it is told.
func TestAuditOfWhatWasLeftOut(t *testing.T) {
	d := &Daemon{log: slog.New(slog.DiscardHandler)}
	now, addr := time.Unix(1e9, 0), netip.MustParseAddr("192.0.2.2")
	for i := range auditBurst {
		d.withheld(now, fmt.Sprintf("n%d.example.", i), addr, outcome{why: "no proof"})
	}
	for range 2 {
		d.withheld(now, "bob.example.", addr, outcome{why: "no proof"})
		now = now.Add(10 * time.Second)
	}
	all := d.trail.after(t.Context(), 0).Events
	if last := all[len(all)-1]; last.Name != "bob.example" || last.LeftOut != 1 {
		t.Errorf("the last event is %+v, want that of bob.example, with one left out before", last)
	}
}

// Who waits for the next event gets it when it comes, and nothing when he goes.
func TestAuditWaits(t *testing.T) {
	d := &Daemon{log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if e := d.trail.after(ctx, 0); len(e.Events) != 0 || e.Next != 0 {
		t.Errorf("nothing happened: %+v", e)
	}
	got := make(chan control.Events)
	go func() { got <- d.trail.after(t.Context(), 0) }()
	time.Sleep(5 * time.Millisecond)
	d.audit(time.Now(), control.Event{Kind: control.SAUp})
	if e := <-got; len(e.Events) != 1 || e.Next != 1 {
		t.Errorf("got %+v", e)
	}
	if e := d.trail.after(t.Context(), 1<<64-1); len(e.Events) != 0 || e.Next != 1 {
		t.Errorf("where the next one will be: %+v", e)
	}
}

// A downgrade that a lookup meets is told as one: the host proved a key lately, its name has none now, and the rule takes anybody.
func TestAuditOfDowngrade(t *testing.T) {
	p := newProven(t)
	p.ended(1, ike.ErrTimeout)
	w := waiter{claim: pad.Claim{Addr: p.p.remote}, reply: make(chan outcome, 1)}
	p.event(evLookup{w})
	if r, ok := p.done[len(p.done)-1].(doReply); !ok || r.o.ok || !r.o.downgrade {
		t.Errorf("got %+v", p.done)
	}
}
