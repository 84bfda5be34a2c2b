package daemon

import (
	"fmt"
	"maps"
	"net/netip"
	"runtime/debug"
	"sync/atomic"
	"time"

	"tacit/policy"
)

// What goes wrong with one peer, one message or one record stays with it: a panic ends neither the loop nor the process (TRUST.md ). A name that
// meets one is not looked at again for a while, and others are answered.

// quarantine is how long lookups at an address do not reach the peer whose step panicked.
const quarantine = time.Minute

// contained calls f and makes an error of its panic.
func contained(n *atomic.Uint64, f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			n.Add(1)
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return f()
}

// turn does one input of the loop.
func (l *loop) turn(what string, f func()) {
	if err := contained(&l.panics, func() error { f(); return nil }); err != nil {
		l.log.Error("contained", "what", what, "err", err)
	}
}

// beside does what belongs to an address and runs in a goroutine of its own. The error is that of a panic.
func (s *shared) beside(what string, remote netip.Addr, f func()) error {
	err := contained(&s.panics, func() error { f(); return nil })
	if err != nil {
		s.log.Error("contained", "what", what, "peer", remote, "err", err)
	}
	return err
}

// pardon ends what has been in quarantine for long enough.
func (l *loop) pardon(now time.Time) {
	maps.DeleteFunc(l.quarantined, func(_ key, until time.Time) bool { return !now.Before(until) })
}

// step gives a peer an event and does what it says. Where that panics, or has a short time ago, a lookup is answered that it cannot be.
func (l *loop) step(now time.Time, p *peer, e any) {
	shunned := now.Before(l.quarantined[p.key])
	if _, isLookup := e.(evLookup); !isLookup || !shunned {
		err := contained(&l.panics, func() error { l.advance(now, p, e); return nil })
		if err == nil {
			return
		}
		l.rota.Set(p, now, now.Add(tick))
		if !shunned {
			l.log.Error("contained: lookups at this address are withheld for a while", "peer", p.remote, "event", fmt.Sprintf("%T", e), "for", quarantine, "err", err)
		}
		l.quarantined[p.key] = now.Add(quarantine)
		l.listen(now, p)
	}
	if e, ok := e.(evLookup); ok && e.w.reply != nil {
		select {
		case e.w.reply <- outcome{ede: policy.EDEOther, why: "an internal error, met at this address a short time ago"}:
		default: // it was answered before the panic
		}
	}
}
