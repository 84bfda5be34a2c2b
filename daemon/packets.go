package daemon

import (
	"net/netip"
	"slices"
	"time"

	"tacit/control"
	"tacit/ipsec"
	"tacit/pad"
	"tacit/policy"
)

// Traffic without a lookup (`packets = true`): a packet waits for an address that no name has led to. Its reverse zone is asked for a key. With one the
// address is keyed, or nothing leaves; without one it is let go in clear or stays shut, as its rule says, after an attempt with whoever is there if the rule
// takes anybody. What is found counts for some time, so that a storm to thousands of addresses costs a lookup each at most.

const (
	maxQuests    = 256                     // reverse lookups of a loop under way at once
	maxNetQuests = 32                      // of one network's (IPv4 /24, IPv6 /56)
	maxQueued    = 4096                    // that wait for their turn; the packets of more are dropped, and the next one asks again
	maxProvoked  = 32                      // under way because of what came in clear, which anybody can send in another's name
	mostRefused  = 10 * time.Second        // packets that are refused may be judged anew then
	maxWait      = 2500 * time.Millisecond // of a packet that may leave in clear: less than a data plane keeps it
)

// quest is an address whose reverse zone is being asked.
type quest struct {
	remote   netip.Addr
	locals   []netip.Addr // that packets wait at
	begun    time.Time
	provoked bool
	flying   bool
}

// packets is what a loop knows of such traffic.
type packets struct {
	quests   map[netip.Addr]*quest
	queue    []*quest // that wait for their turn
	flying   int
	provoked int
	networks map[netip.Prefix]int // flying, by network
	watched  map[key]time.Time    // since when
	denials  *denials
	// watchedBefore are those that leave in clear unasked. They have a cache of their own: whom a host answers is for others to say, and they must not
	// take the room of what was found out.
	watchedBefore *denials

	lookups, letGo, keptShut, overflow uint64
}

func newPackets(loops int) packets {
	return packets{quests: map[netip.Addr]*quest{}, networks: map[netip.Prefix]int{}, watched: map[key]time.Time{}, denials: newDenials(max(maxDenials/loops, 2)),
		watchedBefore: newDenials(max(maxWatched/loops, 2))}
}

// packetRule is the rule under which packets to an address ask for protection; ok: they do.
func (l *loop) packetRule(remote netip.Addr) (r policy.Rule, ok bool) {
	r = l.d.rules.Load().ForAddr(remote)
	return r, r.Packets && (r.Class == policy.Private || r.Class == policy.PrivateOrClear)
}

// acquire is a packet of ours that waits or is watched, or, provoked, one of the peer's that was dropped since it came in clear.
func (l *loop) acquire(now time.Time, local, remote netip.Addr, provoked bool) {
	if !provoked && l.watch(now, local, remote) {
		return
	}
	if p := l.peers[key{local, remote}]; p != nil {
		var e any = evAcquire{}
		if provoked {
			e = evClear{}
		}
		l.step(now, p, e)
		if p.pad.Held(now) || p.covers() {
			return
		}
	}
	if assigned(l.d.host.environment(), remote) { // whoever it was is not there, or comes again at another one
		return
	}
	r, ok := l.packetRule(remote)
	if !ok {
		return
	}
	if pins := l.d.rules.Load().PinsAt(remote); len(pins) > 0 { // the administrator's word comes before the reverse zone's (R3)
		l.keyFor(now, local, &quest{remote: remote, provoked: provoked}, []pad.Claim{atAddress(remote, pins, now.Add(2*lookAnyway))})
		return
	}
	q := l.packets.quests[remote]
	switch d := l.packets.denials.get(now, remote); {
	case q != nil:
		if !slices.Contains(q.locals, local) && len(q.locals) < denialLocals {
			q.locals = append(q.locals, local)
		}
	case d != nil:
		l.unproven(now, r, &quest{remote: remote, begun: now, provoked: provoked}, local, d)
	case provoked && l.packets.provoked >= maxProvoked, len(l.packets.queue) >= maxQueued:
		l.packets.overflow++
	default:
		q = &quest{remote: remote, locals: []netip.Addr{local}, begun: now, provoked: provoked}
		l.packets.quests[remote] = q
		if provoked {
			l.packets.provoked++
		}
		l.packets.queue = append(l.packets.queue, q)
		l.turns(now)
	}
}

// covers reports whether an SA carries what we send.
func (p *peer) covers() bool {
	return slices.ContainsFunc(p.sas, func(a *association) bool { return a.up && a.armed && !a.deleting })
}

// turns begins the lookups whose turn it is.
func (l *loop) turns(now time.Time) {
	t := &l.packets
	t.queue = slices.DeleteFunc(t.queue, func(q *quest) bool {
		net := network(q.remote)
		switch {
		case now.Sub(q.begun) >= maxWait: // its packets are as good as gone: the next one asks again
			l.finish(q)
			return true
		case t.flying >= maxQuests || t.networks[net] >= maxNetQuests:
			return false
		}
		l.fly(q)
		return true
	})
}

// fly asks beside the loop.
func (l *loop) fly(q *quest) {
	t := &l.packets
	q.flying = true
	t.flying++
	t.networks[network(q.remote)]++
	t.lookups++
	go func() {
		r := l.reverse(q.remote)
		l.report(func(now time.Time) {
			l.finish(q)
			l.conclude(now, q, r)
			l.turns(now)
		})
	}()
}

// reverse is what the reverse zone says. It may take the whole hold.
func (l *loop) reverse(remote netip.Addr) (r reversed) {
	if l.beside("reverse zone", remote, func() { r = l.d.reverse(remote) }) != nil {
		return reversed{shut: true, why: "an internal error"}
	}
	return r
}

// finish ends a quest, whatever came of it.
func (l *loop) finish(q *quest) {
	t := &l.packets
	delete(t.quests, q.remote)
	if q.provoked {
		t.provoked--
	}
	if !q.flying {
		return
	}
	t.flying--
	net := network(q.remote)
	if t.networks[net]--; t.networks[net] == 0 {
		delete(t.networks, net)
	}
}

// conclude acts on what the reverse zone said.
func (l *loop) conclude(now time.Time, q *quest, r reversed) {
	rule, ok := l.packetRule(q.remote)
	if !ok {
		return // there is another rule by now
	}
	if len(r.claims) > 0 {
		for _, local := range q.locals {
			l.keyFor(now, local, q, r.claims)
		}
		return
	}
	d := &denial{addr: q.remote, why: r.why, shut: r.shut}
	if wait, again := l.packets.denials.failed(q.remote); r.shut {
		d.until, d.again = now.Add(wait), again
	} else {
		d.until = clamp(r.until, now.Add(leastDenial), now.Add(mostDenial))
	}
	if gone := l.packets.denials.put(d); gone != nil {
		l.release(gone)
	}
	for _, local := range q.locals {
		l.unproven(now, rule, q, local, d)
	}
}

func clamp(t, least, most time.Time) time.Time {
	if t.Before(least) {
		return least
	}
	if t.After(most) {
		return most
	}
	return t
}

// keyFor has an address keyed by its own zone's word, or the administrator's, which holds it: nothing leaves in clear any more.
func (l *loop) keyFor(now time.Time, local netip.Addr, q *quest, claims []pad.Claim) {
	p := l.peerOf(now, local, q.remote)
	if p == nil {
		return
	}
	p.provokedBy(now, q)
	l.step(now, p, evRequired{claims[0]})
	for _, c := range claims {
		l.step(now, p, evLookup{waiter{claim: c, packet: &waiting{provoked: q.provoked, over: true}}}) // the word stands, whatever comes of the attempt
	}
}

// askReverseAgain finds out whether the reverse zone still names the key of an address. Where it cannot be asked now it is later.
func (l *loop) askReverseAgain(p *peer) {
	t := &l.packets
	if t.flying >= maxQuests {
		return
	}
	t.flying++
	t.lookups++
	go func() {
		r := l.reverse(p.remote)
		l.report(func(now time.Time) {
			t.flying--
			for _, c := range r.claims {
				if l.peers[p.key] == p {
					l.step(now, p, evClaim{c})
				}
			}
			l.turns(now)
		})
	}()
}

// unproven is what becomes of packets to an address that nobody is proven to be at: they are shut in, or anybody is asked for encryption, or they leave in
// clear.
func (l *loop) unproven(now time.Time, r policy.Rule, q *quest, local netip.Addr, d *denial) {
	if d.shut || !r.Anonymous {
		l.settleFor(now, r, local, d, d.until)
		return
	}
	p := l.peerOf(now, local, d.addr)
	if p == nil {
		l.settleFor(now, r, local, d, d.until)
		return
	}
	p.provokedBy(now, q)
	w := waiter{claim: pad.Claim{Addr: d.addr}, packet: &waiting{local: local, provoked: q.provoked}}
	l.step(now, p, evLookup{w})
	if r.Class != policy.PrivateOrClear || w.packet.over {
		return
	}
	wait := min(l.d.cfg.File.DNS.Hold, maxWait) - now.Sub(q.begun)
	time.AfterFunc(max(0, wait), func() {
		l.report(func(now time.Time) { l.waited(now, p, w, outcome{why: "no encryption within the hold"}) })
	})
}

// waiting is the part of a waiter that stands for packets.
type waiting struct {
	local    netip.Addr
	over     bool // it had its outcome
	provoked bool // no packet of ours waits: the peer speaks clear to us, and is not heard
}

// waited is the outcome for packets that waited for a peer. Those of an SA have left with it.
func (l *loop) waited(now time.Time, p *peer, w waiter, o outcome) {
	if o.ok && w.packet.provoked { // the peer sends with the SA once it has seen that we do (TRUST.md R10)
		l.job("nudging", func() error { return l.nudge(p.local, p.remote) }, l.failed("nudging the peer", p.remote))
	}
	if w.packet.over {
		return
	}
	w.packet.over = true
	r, ok := l.packetRule(p.remote)
	if !ok || o.ok {
		return
	}
	d := l.packets.denials.get(now, p.remote)
	if d == nil {
		return // it has ended meanwhile: the next packet asks again
	}
	until := now.Add(firstRefusal)
	if p.anybody.until.After(now) {
		until = p.anybody.until
	}
	l.settleFor(now, r, w.packet.local, d, clamp(until, now, d.until))
}

// settleFor lets the packets to an address go, or refuses them, until a time.
func (l *loop) settleFor(now time.Time, r policy.Rule, local netip.Addr, d *denial, until time.Time) {
	if p := l.peers[key{local, d.addr}]; p != nil && (p.pad.Held(now) || !p.held.IsZero() || p.covers()) {
		return // by what it has shown meanwhile (TRUST.md I1)
	}
	action := ipsec.Block
	if (r.Class == policy.PrivateOrClear || watches(r)) && !d.shut {
		action = ipsec.Bypass
		l.packets.letGo++
	} else {
		until = clamp(until, now, now.Add(mostRefused))
		l.packets.keptShut++
		l.d.audit(now, control.Event{Kind: control.Withhold, Address: d.addr, Local: local, Why: "packets without a lookup are refused: " + d.why})
	}
	if !slices.Contains(d.locals, local) {
		if len(d.locals) == denialLocals {
			return
		}
		d.locals = append(d.locals, local)
	}
	s := ipsec.Host(local, d.addr)
	l.log.Debug("packets without a lookup", "peer", d.addr, "local", local, "action", action, "why", d.why, "for", until.Sub(now))
	l.jobAt(s, "settling", func() error { return l.dp.SetPolicy(s, action, until) }, l.failed("settling packets without a lookup", d.addr))
}

// release takes back what the data plane was told because of a denial.
func (l *loop) release(d *denial) {
	for _, local := range d.locals {
		if p := l.peers[key{local, d.addr}]; p != nil && !p.held.IsZero() {
			continue // the policy is the peer's by now
		}
		s := ipsec.Host(local, d.addr)
		l.jobAt(s, "releasing", func() error { return l.dp.ClearPolicy(s) }, l.failed("releasing the address", d.addr))
	}
	d.locals = nil
}

// forgetDenials forgets what was found under rules that say something else now.
func (l *loop) forgetDenials(old, rules *policy.Table) {
	for _, c := range []*denials{l.packets.denials, l.packets.watchedBefore} {
		for addr, d := range c.of {
			if was, is := old.ForAddr(addr), rules.ForAddr(addr); was.Class != is.Class || was.Packets != is.Packets || was.Anonymous != is.Anonymous {
				c.drop(d)
				l.release(d)
			}
		}
	}
}
