package daemon

import (
	"slices"
	"time"

	"tacit/ike"
	"tacit/ipsec"
)

// How an SA of ours ends that nobody uses any more. The peer forgets it when it hears of that: what we send with it afterwards is lost, and so is
// what it has sent before, if we forget it first. So we hold what is sent, send nothing with it any more, tell the peer, and
// listen for a moment after its answer.

// lastPackets is within what time packets come that the peer has sent on an SA before it answered that it is gone.
const lastPackets = time.Second

type (
	// doDelete ends an SA.
	doDelete struct {
		sa    ike.SAID
		pairs []uint32 // that are sent with: no more, before the peer is told
	}
	// doRemove takes a Pair from the data plane.
	doRemove struct {
		pair uint32
		late bool // after lastPackets
	}
)

// end deletes an SA, retransmitted (R10). The peer forgets it as soon as it hears of that, so nothing is sent with it any more: what is sent
// meanwhile waits behind a hold.
func (p *peer) end(now time.Time, a *association) []action {
	used := a.up && a.armed
	do := p.finish(a)
	if used && !p.covers() {
		p.parting = at(now).Add(p.linger)
	}
	return append(p.settle(now), do...)
}

// finish has an SA deleted that is not used any more before the peer hears of it.
func (p *peer) finish(a *association) []action {
	if a.deleting {
		return nil
	}
	a.deleting = true
	if p.authenticated() == nil {
		p.pad.Lost()
	}
	do := doDelete{sa: a.id}
	if a.up && a.armed {
		a.armed, a.parted = false, true
		for _, pair := range append(a.more, a.pair) {
			do.pairs = append(do.pairs, pair.ID)
		}
	}
	return []action{do}
}

// parts ends the hold of an SA that we have ended, with the last of them.
func (p *peer) parts(now time.Time) {
	if p.parting.IsZero() || slices.ContainsFunc(p.sas, func(a *association) bool { return a.up && a.parted }) {
		return
	}
	p.parting = 0
	if until := p.holdUntil(now); !p.held.IsZero() && until.Before(p.held) {
		p.held = latest(until, now) // for settle
	}
}

// delete tells the peer that an SA ends, once nothing is sent with it any more, and what is to wait does.
func (l *loop) delete(now time.Time, p *peer, a doDelete) {
	tell := func(now time.Time) { l.output(now, l.engine.Do(now, a.sa, ike.Delete)) }
	if len(a.pairs) == 0 {
		tell(now)
		return
	}
	s := ipsec.Host(p.local, p.remote)
	l.jobAt(s, "disarming", func() error {
		err := l.holdAgain(s)
		for _, id := range a.pairs {
			if err == nil {
				err = l.dp.Disarm(id)
			}
		}
		return err
	}, func(now time.Time, err error) {
		l.failed("disarming an SA", p.remote)(now, err)
		tell(now)
	})
}

// removeOf is doRemove.
func (l *loop) removeOf(now time.Time, p *peer, a doRemove) {
	remove := func(time.Time) {
		delete(l.pairs, a.pair)
		l.remove(ipsec.Host(p.local, p.remote), a.pair)
	}
	if !a.late {
		remove(now)
		return
	}
	time.AfterFunc(lastPackets, func() { l.report(remove) })
}
