package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"tacit/control"
	"tacit/ipsec"
	"tacit/policy"
)

// What becomes of the connections with an address when its protection ends (TRUST.md R9, R11): what is still there then is ended before the
// first packet could leave in clear. Where the kernel cannot end them the address is held on.

// doEnd ends the connections with the address. It comes before what ends its protection.
type doEnd struct{}

// holdMargin is by how much the data plane's holds outlast ours: they end by themselves if we die, and we end the connections before.
const holdMargin = 3 * time.Second

// evLeft: a process before us left the address shut, until then if nobody renews it.
type evLeft struct{ until time.Time }

// takeOver makes peers of what a process before us left shut: its connections are to end before it is released.
func (d *Daemon) takeOver(ctx context.Context) error {
	left, err := d.cfg.Dataplane.Existing()
	if err != nil {
		return err
	}
	for _, x := range left {
		local, remote := x.Selector.Local.Addr(), x.Selector.Remote.Addr()
		l := d.shards.of(remote)
		if assigned(d.host.environment(), remote) && d.lodging.CompareAndSwap(false, true) { // whoever was there has no SA with us
			l.shutPools(remote)
		}
		if err := l.ask(ctx, func(now time.Time) {
			if p := l.peerOf(now, local, remote); p != nil && x.Until.After(now) {
				l.step(now, p, evLeft{clamp(x.Until, now, now.Add(p.linger))})
			}
		}); err != nil {
			return err
		}
	}
	return nil
}

// evLeave: we stop.
type evLeave struct{}

// leave: the SAs are about to be ended.
func (p *peer) leave() {
	p.ending = "tacit stops here"
	for _, a := range p.sas {
		a.deleting = true
	}
}

// evStuck: they could not be ended; the address is held until then.
type evStuck struct{ until time.Time }

// shuts reports whether packets to or from the address cannot pass in clear, because of an SA that was used or of a hold.
func (p *peer) shuts() bool {
	for _, a := range p.sas {
		if a.up && a.armed {
			return true
		}
	}
	return !p.held.IsZero()
}

// opened puts the end of the connections before the actions of a step that opens an address which was shut.
func (p *peer) opened(shut bool, do []action) []action {
	if shut && !p.shuts() {
		return append([]action{doEnd{}}, do...)
	}
	return do
}

// endFlows is doEnd.
func (l *loop) endFlows(now time.Time, p *peer) {
	until := now.Add(p.linger)
	l.endAt(ipsec.Host(p.local, p.remote), until, func(now time.Time, n int, err error) {
		l.saidEnded(now, p, n)
		if err != nil {
			l.log.Error("connections that were protected cannot be ended: the address is held", "peer", p.remote, "err", err)
			if l.peers[p.key] == p {
				l.step(now, p, evStuck{until})
			}
		}
	})
}

// saidEnded is the event of connections that were ended.
func (l *loop) saidEnded(now time.Time, p *peer, n int) {
	if n > 0 {
		l.d.audit(now, p.event(control.Ended, p.face(), fmt.Sprintf("%d of this host's connections had been protected, and are not any more", n)).e)
	}
}

// unhold ends the hold on an address, unless its connections could not be ended. It runs in the data plane's goroutine.
func (l *loop) unhold(s ipsec.Selector) error {
	delete(l.unheld, s)
	if l.stuck[s] {
		delete(l.stuck, s)
		return nil
	}
	return l.dp.ClearPolicy(s)
}

// staysShut reports whether a stop leaves an address shut: where nothing may ever pass in clear, or as `on-failure` says.
func (p *peer) staysShut(now time.Time, onFailure string, rules *policy.Table) bool {
	if onFailure == "open" || !p.shuts() {
		return false
	}
	rule := rules.ForAddr(p.place())
	if p.last.Name != "" {
		rule = rules.For(p.last.Name, p.place())
	}
	return rule.Class == policy.Private || onFailure == "closed" && p.holdUntil(now).After(now)
}

// partingPause lets the resets of connections that were ended go before the DELETE of the SA that carries them.
const partingPause = 20 * time.Millisecond

// parting is what a loop that stops leaves to the end of all.
type parting struct {
	shut  map[key]time.Time // addresses that stay shut, and until when
	open  []*peer           // that do not, and were
	pairs []uint32
	jobs  []func() // calls of the data plane that had not been made
}

// part ends, at a stop, the connections that would go on in clear, while their end can still be told encrypted.
func (l *loop) part(now time.Time) {
	var list sockets
	told := 0
	for _, x := range l.endings.of { // their goroutine may be too late
		n, err := l.abort(&list, x.s)
		l.unblock(x, err)
		told += n
	}
	l.parting = parting{map[key]time.Time{}, nil, slices.Collect(maps.Keys(l.pairs)), l.queue}
	l.queue = nil
	for _, p := range l.peers {
		if p.staysShut(now, l.d.cfg.File.DNS.OnFailure, l.d.rules.Load()) {
			l.parting.shut[p.key] = latest(p.holdUntil(now), now.Add(time.Second))
			if p.authenticated() == nil && p.held.IsZero() { // nobody in particular: no proof has a time of its own
				l.parting.shut[p.key] = now.Add(p.linger)
			}
		} else if p.shuts() {
			l.parting.open = append(l.parting.open, p)
		}
	}
	if told+l.cut(now, &list) > 0 {
		time.Sleep(partingPause)
	}
}

// cut ends the connections with the peers that a stop opens, those of a list that is made once, and says how many.
func (l *loop) cut(now time.Time, list *sockets) (told int) {
	for _, p := range l.parting.open {
		n, _ := l.abort(list, ipsec.Host(p.local, p.remote))
		l.saidEnded(now, p, n)
		told += n
	}
	return told
}

// abort ends the connections with an address, out of a list that the first call makes. An error is logged.
func (l *loop) abort(list *sockets, s ipsec.Selector) (n int, err error) {
	if *list == nil {
		*list, err = listed(l.d.cfg.Flows)
	}
	if err == nil {
		n, err = list.end(s)
	}
	if err != nil {
		l.log.Error("connections that were protected cannot be ended", "peer", s.Remote.Addr(), "err", err)
	}
	return n, err
}

// clear leaves standing what is to stay shut, with no help from us, and nothing else. The loop has ended.
func (l *loop) clear() error {
	for _, job := range l.parting.jobs {
		job()
	}
	var errs []error
	for k, until := range l.parting.shut {
		errs = append(errs, l.dp.SetPolicy(ipsec.Host(k.local, k.remote), ipsec.Block, until))
	}
	for _, id := range l.parting.pairs {
		errs = append(errs, l.dp.Remove(id))
	}
	for k, p := range l.peers {
		if _, shut := l.parting.shut[k]; !shut && !p.held.IsZero() {
			errs = append(errs, l.dp.ClearPolicy(ipsec.Host(k.local, k.remote)))
		}
	}
	return errors.Join(errs...)
}

// end ends what the loops, which have stopped, do not leave standing: all, unless addresses are left shut, or the process hands over to the next.
func (s *shards) end() error {
	d, now := s.d, s.now()
	rest := d.resting()
	keep := d.handing.Load() || len(rest) > 0
	var all []shown
	for _, l := range s.loops {
		for _, x := range appendProofs(nil, now, maps.Values(l.peers)) {
			if _, shut := l.parting.shut[key{x.Local, x.Remote}]; shut || d.handing.Load() {
				all = append(all, x)
			}
		}
		keep = keep || len(l.parting.shut) > 0
	}
	var list sockets
	for _, l := range s.loops { // a program may have connected anew before the peer had heard of the end; now none can
		l.cut(now, &list)
	}
	var errs []error
	if d.cfg.SaveProofs != nil {
		var write func(io.Writer) error
		if keep {
			write = func(w io.Writer) error { return s.write(w, handOver(all)) }
		}
		errs = append(errs, d.cfg.SaveProofs(write))
	}
	for _, l := range s.loops {
		if keep && !d.handing.Load() {
			errs = append(errs, l.clear())
		}
	}
	if keep && !d.handing.Load() {
		errs = append(errs, d.cfg.Dataplane.SetRules(rest)) // else packets would wait for nobody
	}
	return errors.Join(append(errs, d.cfg.Dataplane.Close(keep))...)
}

// HandOver has Run, whose context is about to end, leave everything standing for the process that follows: the kernel's SAs and policies, and what
// was proven. Peers are told nothing.
func (d *Daemon) HandOver() { d.handing.Store(true) }
