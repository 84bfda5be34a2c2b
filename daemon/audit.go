package daemon

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"tacit/control"
	"tacit/ike"
	"tacit/ipseckey"
)

// What happened and why: the one place that makes audit events. Each is a line of the log and waits for who watches (control.Events). A peer says what
// became of it by doAudit, lookups and refused initiators are heard of where they are judged.

const (
	auditKept  = 1024        // events that are remembered for who asks later
	auditBurst = 1000        // events of a kind at once
	auditRate  = 200         // and in a second: who floods us with one kind hides no other
	auditAgain = time.Minute // between two events that say the same of a name and an address
	auditSaid  = 4096        // of which so many are remembered
)

// trail is the audit events of a daemon. Its zero value is ready.
type trail struct {
	mu   sync.Mutex // all loops and all lookups speak, and everybody waits for the next event
	seq  uint64
	kept []control.Event // the last auditKept, the oldest first
	news chan struct{}   // closed when the next one comes; nil: nobody waits
	kind map[control.Kind]*allowance
	said map[saying]time.Time
}

// allowance is how many events of a kind may still come, as of a time, and how many were left out since the last that did.
type allowance struct {
	left float64
	at   time.Time
	out  uint64
}

// saying is what makes a lookup's or an initiator's event the same as one before.
type saying struct {
	kind    control.Kind
	address netip.Addr
	name    string
	why     string
}

// record takes an event. Lookups are repeated by programs, and initiators try again: what they are told again within a minute is
// counted, not said.
func (t *trail) record(log *slog.Logger, now time.Time, e control.Event) {
	e.Name, e.Suite, e.Why = control.Clean(strings.TrimSuffix(e.Name, ".")), control.Clean(e.Suite), control.Clean(e.Why)
	e.Assurance = cmp.Or(e.Assurance, control.NoAssurance)
	e.Time = now
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.kind == nil {
		t.kind, t.said = map[control.Kind]*allowance{}, map[saying]time.Time{}
	}
	a := t.kind[e.Kind]
	if a == nil {
		a = &allowance{left: auditBurst, at: now}
		t.kind[e.Kind] = a
	}
	a.left = min(auditBurst, a.left+max(0, now.Sub(a.at).Seconds())*auditRate)
	a.at = now
	if a.left < 1 || t.repeats(now, e) { // what is left out has not been said
		a.out++
		return
	}
	a.left--
	t.seq++
	e.Seq, e.LeftOut, a.out = t.seq, a.out, 0
	if len(t.kept) == auditKept {
		t.kept = t.kept[:copy(t.kept, t.kept[1:])]
	}
	t.kept = append(t.kept, e)
	if t.news != nil {
		close(t.news)
		t.news = nil
	}
	log.Info("audit", "event", e.Kind, "address", e.Address, "local", e.Local, "name", e.Name, "assurance", e.Assurance, "key_id", e.KeyID,
		"suite", e.Suite, "why", e.Why, "left_out", e.LeftOut)
}

// repeats reports whether the same was said a short time ago, and remembers that it is now.
func (t *trail) repeats(now time.Time, e control.Event) bool {
	switch e.Kind {
	case control.Withhold, control.Conflict, control.Downgrade:
	default:
		return false // a state that changed
	}
	s := saying{e.Kind, e.Address, e.Name, e.Why}
	if at, ok := t.said[s]; ok && now.Sub(at) < auditAgain {
		return true
	}
	if len(t.said) >= auditSaid {
		for k, at := range t.said {
			if now.Sub(at) >= auditAgain {
				delete(t.said, k)
			}
		}
	}
	if len(t.said) < auditSaid {
		t.said[s] = now
	}
	return false
}

// after returns what came after an event, at once or when something has; nothing when ctx ends.
func (t *trail) after(ctx context.Context, seq uint64) (e control.Events) {
	for {
		news := t.since(seq, &e)
		if news == nil {
			return e
		}
		select {
		case <-news:
		case <-ctx.Done():
			return e
		}
	}
}

// since fills in what came after an event. Where nothing did it returns what is closed when something does. A number that no event
// has yet asks where the next one will be: of a daemon that was started again, or of nothing yet.
func (t *trail) since(seq uint64, e *control.Events) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.Next = t.seq
	if seq > t.seq {
		return nil
	}
	n := t.seq - seq
	if n > 0 {
		had := min(n, uint64(len(t.kept)))
		e.Missed = n - had
		e.Events = append([]control.Event(nil), t.kept[uint64(len(t.kept))-had:]...)
		return nil
	}
	if t.news == nil {
		t.news = make(chan struct{})
	}
	return t.news
}

// doAudit is something that became of a peer.
type doAudit struct{ e control.Event }

// face is what a peer is to others: what its events are about.
type face struct {
	level control.Assurance // none: it has no SA
	name  string
	key   string // the fingerprint that the address proved last; empty: none yet
	a     *association
}

// face is taken before and after a step.
func (p *peer) face() (f face) {
	f.level = control.NoAssurance
	k, _, _ := p.pad.Key()
	f.key = k.ID
	if f.a = p.authenticated(); f.a != nil {
		f.level, f.name = control.Authenticated, f.a.claim.Name
		if f.name == "" {
			f.name = p.last.Name
		}
		return f
	}
	for _, a := range p.sas {
		if a.up && !a.deleting {
			f.a, f.level = a, control.Anonymous
		}
	}
	return f
}

// event is one about a peer that has, or had, that face.
func (p *peer) event(kind control.Kind, f face, why string) doAudit {
	if p.outer.IsValid() {
		why = join(why, "behind a NAT at "+p.outer.String())
	}
	e := control.Event{Kind: kind, Address: p.remote, Local: p.local, Name: f.name, Assurance: f.level, Why: why}
	if f.a != nil {
		e.Suite = f.a.suite
	}
	if f.level == control.Authenticated {
		if e.KeyID = f.key; e.KeyID == "" {
			e.KeyID = ipseckey.Fingerprint(f.a.key)
		}
	}
	return doAudit{e}
}

// changed says what a step has made of the peer: one event for each thing that happened. That one of two SAs has ended, or was
// rekeyed, is none.
func (p *peer) changed(before face, cause any) (do []action) {
	now := p.face()
	ends := func() { do = append(do, p.event(control.SADown, before, p.whyEnded(cause))) }
	switch {
	case before.level == now.level:
	case before.level == control.NoAssurance:
		do = append(do, p.event(control.SAUp, now, p.describe(now.a)))
	case now.level == control.Authenticated:
		do = append(do, p.event(control.Promoted, now, p.describe(now.a)))
	case now.level == control.NoAssurance:
		ends()
	default: // somebody's SA has gone, and nobody's is left
		ends()
		do = append(do, p.event(control.SAUp, now, p.describe(now.a)))
	}
	if now.level == control.Authenticated && before.key != "" && before.key != now.key {
		do = append(do, p.event(control.RollOver, now, "the address proved another key than before, which was "+before.key))
	}
	p.ending = ""
	return do
}

// whyEnded says why the peer has no SA any more.
func (p *peer) whyEnded(cause any) string {
	if e, ok := cause.(ike.ChildDown); ok && p.ending == "" {
		if e.Err == nil {
			return "the other host ended it"
		}
		return e.Err.Error()
	}
	return cmp.Or(p.ending, "ended by this host")
}

// audit records an event.
func (d *Daemon) audit(now time.Time, e control.Event) { d.trail.record(d.log, now, e) }

// withheld is the event of an address that was left out of an answer.
func (d *Daemon) withheld(now time.Time, name string, addr netip.Addr, o outcome) {
	if d.cfg.Observe {
		d.log.Info("would withhold", "name", name, "peer", addr, "why", o.why)
		return
	}
	kind := control.Withhold
	if o.downgrade {
		kind = control.Downgrade
	}
	d.audit(now, control.Event{Kind: kind, Address: addr, Name: name, Why: o.why})
}
