package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"tacit/ike"
	"tacit/ipsec"
	"tacit/wheel"
)

// loop owns the peers of a shard and their IKE SAs (shards.go). Everything that happens to them happens in run, one input after the other, with the time
// taken once a turn. It never blocks: what does is a job of the data plane's goroutine or of a signer's, and comes back as a done.
type loop struct {
	*shared
	engine   *ike.Endpoint
	shard    int
	peers    map[key]*peer
	rota     wheel.Wheel[*peer] // of the housekeeping: all of them are there, and some that have gone
	bySA     map[ike.SAID]*peer
	pairs    map[uint32]*peer
	callers  callers
	refusals refusals
	packets  packets
	gateways gateways
	lodgers  lodgers

	datagrams   chan ike.Datagram
	strangers   chan ike.Datagram // first messages: whoever sends many of them fills no queue but theirs
	events      chan ipsec.Event
	calls       chan func(now time.Time)               // from lookups and status
	jobs        chan func()                            // to the data plane's goroutine, in order
	queue       []func()                               // jobs that wait for it
	done        chan func(now time.Time)               // what jobs and signers found
	wake        time.Time                              // of the engine
	measuring   bool                                   // the Pairs' counters are being read
	seeking     map[key][]func(now time.Time, p *peer) // what waits for room for a peer that another loop is to make
	usages      []evUsage                              // what was read last of some of them; its room is used again
	measured    time.Time                              // when they may be read again
	leaving     bool                                   // the SAs are being ended: no new ones
	ended       chan struct{}                          // closed when the loop has
	unheld      map[ipsec.Selector]time.Time           // holds that could not be set; the data plane goroutine's
	stuck       map[ipsec.Selector]bool                // what it may not release, since connections could not be ended
	ruled       moment                                 // when the rules changed last; zero: they did not
	quarantined map[key]time.Time                      // whose step panicked, and until when lookups do not reach them: peers, so max-peers bounds it
	endings     endings
	parting     parting // what a stop leaves to the end of all loops
}

const maxQueue = 400_000 // data plane calls that wait, two of each peer where max-peers is highest; beyond them installs fail and the peers see it

func newLoop(s *shared, engine *ike.Endpoint) *loop {
	return &loop{
		shared: s, engine: engine, peers: map[key]*peer{}, rota: wheel.Wheel[*peer]{Tick: tick}, bySA: map[ike.SAID]*peer{}, seeking: map[key][]func(time.Time, *peer){}, pairs: map[uint32]*peer{}, callers: newCallers(), refusals: refusals{asked: map[ike.SAID]ike.AuthorizationWanted{}},
		datagrams: make(chan ike.Datagram, 1024), strangers: make(chan ike.Datagram, 256), events: make(chan ipsec.Event, 1024), calls: make(chan func(time.Time), 64), jobs: make(chan func()),
		packets: newPackets(1), gateways: newGateways(), lodgers: newLodgers(), done: make(chan func(time.Time), 64), ended: make(chan struct{}), unheld: map[ipsec.Selector]time.Time{},
		stuck: map[ipsec.Selector]bool{}, quarantined: map[key]time.Time{}, endings: endings{of: map[ipsec.Selector]*ending{}},
	}
}

// run is the loop.
func (l *loop) run(ctx context.Context) error {
	defer close(l.ended)
	go l.work(ctx)
	defer l.withdraw()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		var jobs chan func()
		var next func()
		if len(l.queue) > 0 {
			jobs, next = l.jobs, l.queue[0]
		}
		if l.wake.IsZero() {
			timer.Reset(time.Hour)
		} else {
			timer.Reset(max(0, l.wake.Sub(l.now())))
		}
		select {
		case <-ctx.Done():
			l.turn("stop", l.stop)
			return nil
		case d := <-l.datagrams:
			l.turn("message", func() { l.receive(l.now(), d) })
		case d := <-l.strangers:
			l.turn("first message", func() { l.receive(l.now(), d) })
		case f := <-l.calls:
			l.turn("call", func() { f(l.now()) })
		case f := <-l.done:
			l.turn("finding", func() { f(l.now()) })
		case e := <-l.events:
			l.turn("event", func() { l.event(l.now(), e) })
		case jobs <- next:
			l.queue = l.queue[1:]
		case <-timer.C:
			l.turn("timer", func() { now := l.now(); l.output(now, l.engine.Advance(now)) })
		case <-ticker.C:
			l.turn("tick", func() { l.tick(l.now()) })
		}
	}
}

// work does the data plane's jobs, in order.
func (l *loop) work(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-l.jobs:
			f()
		}
	}
}

// job queues a call of the data plane; then is called in the loop with what it returned.
func (l *loop) job(what string, call func() error, then func(now time.Time, err error)) {
	if len(l.queue) >= maxQueue {
		then(l.now(), fmt.Errorf("%s: %d calls of the data plane wait already", what, len(l.queue)))
		return
	}
	l.queue = append(l.queue, func() {
		err := contained(&l.panics, call)
		l.report(func(now time.Time) { then(now, err) })
	})
}

// acknowledged waits until the data plane has done what was asked of it so far.
func (l *loop) acknowledged(ctx context.Context) error {
	done := make(chan struct{})
	if err := l.ask(ctx, func(time.Time) {
		l.after(netip.Addr{}, func(time.Time) { close(done) })
	}); err != nil {
		return err
	}
	return l.await(ctx, done)
}

// withdraw ends all grants: nobody keeps them true any more.
func (l *loop) withdraw() {
	for _, p := range l.peers {
		p.withdraw()
	}
}

// report brings what was found beside the loop back into it.
func (l *loop) report(f func(now time.Time)) {
	select {
	case l.done <- f:
	case <-l.ended:
	}
}

// reportAndWait is report that returns when f has.
func (l *loop) reportAndWait(f func(now time.Time)) {
	done := make(chan struct{})
	l.report(func(now time.Time) { defer close(done); f(now) })
	select {
	case <-done:
	case <-l.ended:
	}
}

// failed logs a call of the data plane that went wrong and that nobody else hears of.
func (l *loop) failed(what string, remote netip.Addr) func(time.Time, error) {
	return func(_ time.Time, err error) {
		if err != nil {
			l.log.Error(what, "peer", remote, "err", err)
		}
	}
}

// post runs f in the loop.
func (l *loop) post(ctx context.Context, f func(now time.Time)) error {
	select {
	case l.calls <- f:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-l.ended:
		return errEnded
	}
}

// ask runs f in the loop and waits for it.
func (l *loop) ask(ctx context.Context, f func(now time.Time)) error {
	done := make(chan struct{})
	if err := l.post(ctx, func(now time.Time) { defer close(done); f(now) }); err != nil {
		return err
	}
	return l.await(ctx, done)
}

// await waits until done is closed.
func (l *loop) await(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-l.ended:
		return errEnded
	}
}

var errEnded = errors.New("the daemon has ended")

func (l *loop) receive(now time.Time, d ike.Datagram) {
	l.trace("in", d)
	out := l.engine.Receive(now, d)
	l.unmet(now, d.Remote, out.Dropped)
	l.output(now, out)
}

// trace logs a message of IKE. Nearly always nobody wants to know.
func (l *loop) trace(dir string, d ike.Datagram) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("ike", "dir", dir, "peer", d.Remote, "bytes", len(d.Data))
	}
}

// output does what the engine asks: datagrams first, but for the answer that a successor must precede.
func (l *loop) output(now time.Time, out ike.Output) {
	l.wake = out.Wake
	later := slices.ContainsFunc(out.Events, succeeds)
	if !later {
		l.sendAll(out.Send)
	}
	for _, e := range out.Events {
		l.engineEvent(now, e)
	}
	if later {
		l.job("switching", func() error { return nil }, func(time.Time, error) { l.sendAll(out.Send) })
		return
	}
	l.engine.Recycle(out)
}

// succeeds reports whether the peer has deleted an SA that has a successor. It no longer reads the old one when it has our answer, so
// that waits until the data plane sends with the new one: nothing is lost.
func succeeds(e ike.Event) bool {
	p, ok := e.(ike.ChildPreferred)
	return ok && p.Rekey
}

func (l *loop) sendAll(list []ike.Datagram) {
	for _, d := range list {
		l.send(d)
	}
}

func (l *loop) send(d ike.Datagram) {
	unspecified := netip.IPv4Unspecified()
	if d.Remote.Addr().Unmap().Is6() {
		unspecified = netip.IPv6Unspecified()
	}
	c := l.conns[netip.AddrPortFrom(unspecified, d.Local.Port())]
	if c == nil {
		l.log.Warn("no socket to send from", "local", d.Local, "peer", d.Remote)
		return
	}
	l.trace("out", d)
	if err := c.Write(d.Data, d.Local, d.Remote); err != nil {
		l.log.Debug("sending IKE", "peer", d.Remote, "err", err) // it is sent again like any lost datagram
	}
}

// peerOf returns the peer between two addresses, made on the first call; nil when there are too many.
func (l *loop) peerOf(now time.Time, local, remote netip.Addr) *peer {
	return l.peerUpTo(now, local, remote, l.d.cfg.File.MaxPeers)
}

// peerUpTo makes a peer unless there would be more than so many.
func (l *loop) peerUpTo(now time.Time, local, remote netip.Addr, most int) *peer {
	k := key{local.Unmap(), remote.Unmap()}
	p := l.peers[k]
	if p == nil && l.known.Add(1) > int64(most) {
		l.known.Add(-1)
		return nil
	}
	if p == nil {
		p = newPeer(k, l.d.cfg.File.Linger, l.d.cfg.File.IKELifetime, now)
		l.peers[k] = p
		l.rota.Set(p, now, now.Add(tick))
	}
	return p
}

// advance is step, which may panic.
func (l *loop) advance(now time.Time, p *peer, e any) {
	before, why := p.state, p.why
	l.catchUp(now, p)
	do, wake := p.step(now, e)
	l.publish(p)
	l.listen(now, p)
	spreading := l.spread(now, p)
	if p.state != before || p.why != why {
		l.log.Info("peer", "peer", p.remote, "local", p.local, "state", p.state, "was", before, "why", p.why)
	}
	for _, a := range do {
		if r, ok := a.(doReply); ok && spreading { // it leaves when the data plane has acknowledged the holds that were queued before
			l.after(p.remote, func(now time.Time) { l.do(now, p, r) })
			continue
		}
		l.do(now, p, a)
	}
	if wake.IsZero() && l.peers[p.key] == p && p.quiet(now) {
		if _, quarantined := l.quarantined[p.key]; !quarantined {
			delete(l.peers, p.key)
			l.known.Add(-1)
			return
		}
	}
	l.rota.Set(p, now, latest(wake, now.Add(tick)))
}

// event takes what the packet path saw.
func (l *loop) event(now time.Time, e ipsec.Event) {
	switch e.Kind {
	case ipsec.FirstPacket:
		if p := l.pairs[e.ID]; p != nil {
			l.step(now, p, evFirst{e.ID})
		}
	case ipsec.Expiring:
		if p := l.pairs[e.ID]; p != nil {
			for _, a := range p.sas {
				if a.pair.ID == e.ID {
					l.output(now, l.engine.Do(now, a.id, ike.RekeyChild))
				}
			}
		}
	case ipsec.Acquire:
		l.acquire(now, e.Selector.Local.Addr(), e.Selector.Remote.Addr(), false)
	case ipsec.ClearSeen:
		if p := l.peers[key{e.Selector.Local.Addr(), e.Selector.Remote.Addr()}]; p != nil && at(now).Sub(p.clearLogged) >= clearLogs {
			p.clearLogged = at(now) // anybody can send packets that look like the peer's
			l.log.Warn("clear packets of a protected peer were dropped", "peer", p.remote)
		}
		l.acquire(now, e.Selector.Local.Addr(), e.Selector.Remote.Addr(), true)
	case ipsec.Moved:
		l.moved(now, e)
	}
}

// stop ends what may not go on in clear, then the SAs by DELETE, and waits a moment for the answers.
func (l *loop) stop() {
	now := l.now()
	l.leaving = true
	l.withdraw()
	if l.d.handing.Load() {
		return
	}
	l.part(now)
	for _, p := range l.peers {
		l.step(now, p, evLeave{})
	}
	for id := range l.bySA {
		l.output(now, l.engine.Do(now, id, ike.Delete))
	}
	end := time.NewTimer(500 * time.Millisecond)
	defer end.Stop()
	for len(l.bySA) > 0 {
		select {
		case d := <-l.datagrams:
			l.receive(l.now(), d)
		case f := <-l.done:
			f(l.now())
		case <-end.C:
			return
		}
	}
}
