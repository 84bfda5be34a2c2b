package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"tacit/flows"
	"tacit/ipsec"
)

// Ending connections takes the kernel longer than any other call: it lists the sockets of the host, and loads modules when that is asked of it first.
// So it is done beside the data plane's goroutine, and an SA with one address does not wait for the connections with another. What is asked of the data
// plane for the same address stays behind, in order: it may open the address, or be an SA with somebody else (TRUST.md R9, latch.go).

// ending is an address whose connections are being ended.
type ending struct {
	s      ipsec.Selector
	until  time.Time // how long the address is held on if they cannot be ended; zero: no longer than it is
	then   func(now time.Time, n int, err error)
	behind []func() // what is asked of the data plane afterwards
}

// endings are those of a loop.
type endings struct {
	of      map[ipsec.Selector]*ending
	next    []*ending // that wait for a list that is newer than they are
	busy    bool      // connections are being listed and ended
	waiting int       // calls that are behind any of them
}

// endAt ends the connections of an address as they are when the data plane has done what was asked of it before.
func (l *loop) endAt(s ipsec.Selector, until time.Time, then func(now time.Time, n int, err error)) {
	l.behind(s, func() {
		if l.leaving { // part has ended them
			return
		}
		x := &ending{s: s, until: until, then: then}
		l.endings.of[s] = x
		l.job("ending connections", func() error { return nil }, func(now time.Time, err error) {
			if err != nil {
				l.wasEnded(now, x, 0, err)
				return
			}
			l.endings.next = append(l.endings.next, x)
			l.endNext()
		})
	})
}

// behind does f, or has it done when the connections of an address are ended.
func (l *loop) behind(s ipsec.Selector, f func()) {
	if x := l.endings.of[ipsec.Host(s.Local.Addr(), s.Remote.Addr())]; x != nil {
		x.behind = append(x.behind, f)
		l.endings.waiting++
		return
	}
	f()
}

// jobAt is job for a call that may change what becomes of an address's packets.
func (l *loop) jobAt(s ipsec.Selector, what string, call func() error, then func(now time.Time, err error)) {
	if l.endings.waiting >= maxQueue {
		then(l.now(), fmt.Errorf("%s: %d calls of the data plane wait for connections to be ended", what, l.endings.waiting))
		return
	}
	l.behind(s, func() { l.job(what, call, then) })
}

// endNext ends the connections of all addresses that wait, with one list.
func (l *loop) endNext() {
	if l.endings.busy || len(l.endings.next) == 0 {
		return
	}
	batch, list := l.endings.next, l.d.cfg.Flows
	l.endings.busy, l.endings.next = true, nil
	go func() {
		var found sockets
		err := contained(&l.panics, func() (err error) { found, err = listed(list); return err })
		for _, x := range batch {
			n, err := 0, err
			if err == nil {
				err = contained(&l.panics, func() (err error) { n, err = found.end(x.s); return err })
			}
			l.report(func(now time.Time) { l.wasEnded(now, x, n, err) })
		}
		l.report(func(time.Time) {
			l.endings.busy = false
			l.endNext()
		})
	}()
}

// wasEnded goes on with an address whose connections have been ended, or cannot be.
func (l *loop) wasEnded(now time.Time, x *ending, n int, err error) {
	if l.endings.of[x.s] != x {
		return // a stop was quicker
	}
	l.unblock(x, err)
	x.then(now, n, err)
}

// unblock has the data plane asked for what was behind. err: they cannot be ended.
func (l *loop) unblock(x *ending, err error) {
	delete(l.endings.of, x.s)
	l.endings.waiting -= len(x.behind)
	if err != nil && !x.until.IsZero() {
		l.job("holding", func() error {
			l.stuck[x.s] = true
			return l.hold(x.s, x.until)
		}, l.failed("holding the address", x.s.Remote.Addr()))
	}
	for _, f := range x.behind {
		l.behind(x.s, f)
	}
}

// after calls then when the data plane has done what was asked of it so far: for a remote address, or for all if it is not valid.
func (l *loop) after(remote netip.Addr, then func(now time.Time)) {
	n, nothing := 1, func() error { return nil }
	done := func(now time.Time, _ error) {
		if n--; n == 0 {
			then(now)
		}
	}
	for s := range l.endings.of {
		if !remote.IsValid() || s.Remote.Addr() == remote {
			n++
			l.behind(s, func() { l.job("waiting", nothing, done) })
		}
	}
	l.job("waiting", nothing, done)
}

// sockets are the connections of this host, by their addresses.
type sockets map[ipsec.Selector][]flows.Flow

// listed lists them; nil: they are left alone.
func listed(list func() ([]flows.Flow, error)) (sockets, error) {
	found := sockets{}
	if list == nil {
		return found, nil
	}
	all, err := list()
	if err != nil {
		return nil, err
	}
	for _, f := range all {
		k := ipsec.Host(f.Local.Addr(), f.Remote.Addr())
		found[k] = append(found[k], f)
	}
	return found, nil
}

// end ends those of an address, and says how many there were.
func (s sockets) end(sel ipsec.Selector) (n int, err error) {
	for _, f := range s[sel] {
		if e := f.End(); e != nil {
			err = errors.Join(err, e)
			continue
		}
		n++
	}
	return n, err
}
