package daemon

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"tacit/ike"
	"tacit/ipsec"
	"tacit/pad"
)

// Clients behind a NAT (TRUST.md R7, A-29). The address that they are seen at is not theirs alone, and the one that they have may be another's too, so each
// gets one of ours for as long as its IKE SA lives (`nat-pool`), and is a peer at that. No name leads to such an address. One that it tells counts as any
// initiator's does (callers.go), if the address that it is seen at is the name's: for its own address, and nothing else. Traffic with the NAT's own address,
// and with others behind it, is none of its business.

const (
	maxLodgers   = 256  // of one address
	lodgingTries = 4096 // addresses that are looked at for one that is free
)

// lodger is an IKE SA that an address was assigned to. waits is what it may be, while connections with an earlier one at the address are being ended.
type lodger struct {
	inner, outer netip.Addr
	waits        *ike.Authorization
}

// lodgers are those of a loop, which assigns addresses only that are its own (shards.go).
type lodgers struct {
	of    map[ike.SAID]lodger
	pairs map[uint32]netip.Addr // Pairs that the data plane may have, and the assigned address that they are of
	taken map[netip.Addr]int    // how many IKE SAs and Pairs have an address: none may be assigned that the data plane takes another's packets from
	at    map[netip.Addr]int    // how many there are, by the address that they are seen at
	last  map[netip.Prefix]netip.Addr
}

func newLodgers() lodgers {
	return lodgers{map[ike.SAID]lodger{}, map[uint32]netip.Addr{}, map[netip.Addr]int{}, map[netip.Addr]int{}, map[netip.Prefix]netip.Addr{}}
}

// authorize lets an initiator try.
func (l *loop) authorize(now time.Time, e ike.AuthorizationWanted, a ike.Authorization) {
	if e.Inner && !e.More { // of the answer to the first of two only Refuse counts
		l.lodge(now, e, a)
		return
	}
	l.output(now, l.engine.Authorize(now, e.SA, a))
}

// lodge lets a client try that is behind a NAT, at an address that it is assigned. Connections that this host had with an earlier one at the same address are
// ended before. What it may be can change meanwhile: its name has been found.
func (l *loop) lodge(now time.Time, e ike.AuthorizationWanted, a ike.Authorization) {
	local, outer := e.Local.Addr().Unmap(), e.Remote.Addr().Unmap()
	if x, ok := l.lodgers.of[e.SA]; ok {
		*x.waits = a
		return
	}
	inner, why := l.assign(local, outer)
	if why != "" {
		l.refuse(now, e, why)
		return
	}
	if l.d.lodging.CompareAndSwap(false, true) {
		l.shutting.Go(func() { l.shutPools(inner) })
	}
	l.lodgers.of[e.SA] = lodger{inner, outer, &a}
	l.lodgers.taken[inner]++
	l.lodgers.at[outer]++
	l.endAt(ipsec.Host(local, inner), time.Time{}, func(now time.Time, _ int, err error) {
		if err != nil {
			l.refuse(now, e, "connections with an earlier client cannot be ended: "+err.Error())
			return
		}
		if x, ok := l.lodgers.of[e.SA]; ok {
			x.waits = nil
			l.lodgers.of[e.SA] = x
		}
		a.Inner = inner
		l.output(now, l.engine.Authorize(now, e.SA, a))
	})
}

// waits reports whether an IKE SA has not been told yet what it may be, since its address is not free yet.
func (l *lodgers) waits(sa ike.SAID) bool { return l.of[sa].waits != nil }

// unwelcome says why a client may not come to be at an address that it is seen at; "": it may. Who has proved a name has proved it of the address where he began.
func (l *loop) unwelcome(p *peer, outer netip.Addr) string {
	if slices.ContainsFunc(p.sas, func(a *association) bool { return a.key != nil }) {
		if outer != p.place() {
			return "what it has proved is proven of " + p.place().String()
		}
		return ""
	}
	ok, why := pad.Claimable(outer, l.d.host.forResponder(), "")
	switch r := l.d.rules.Load().ForAddr(outer); {
	case !ok:
		return why
	case closed(r.Class):
		return "the class of its NAT's address is " + r.Class.String()
	case !r.AcceptAnonymous:
		return "no anonymous clients are accepted"
	}
	return ""
}

// shutPools has the data plane refuse what no SA carries to addresses that clients are assigned, of which one is or was. If it cannot, it is asked again.
func (l *loop) shutPools(inner netip.Addr) {
	var err error
	if l.beside("rules for packets", inner, func() { err = l.d.reinstruct() }) == nil && err == nil {
		return
	}
	time.AfterFunc(tick, func() { // not after a stop, which sets the last rules
		l.report(func(time.Time) { l.shutting.Go(func() { l.shutPools(inner) }) })
	})
}

// assign finds an address for a client, the one after the last: what was somebody's is not soon another's.
func (l *loop) assign(local, outer netip.Addr) (inner netip.Addr, why string) {
	pools := l.d.host.environment().Pools
	i := slices.IndexFunc(pools, func(p netip.Prefix) bool { return p.Addr().Is4() == local.Is4() })
	switch {
	case i < 0:
		return inner, "it is behind a NAT, and there is no nat-pool of its family"
	case l.lodgers.at[outer] >= maxLodgers:
		return inner, "too many clients are behind its NAT"
	}
	pool := pools[i]
	at, ok := l.lodgers.last[pool]
	if !ok {
		at = somewhere(pool)
	}
	for range lodgingTries {
		if at = at.Next(); !pool.Contains(at) {
			at = pool.Addr().Next() // the first one is no host's in many a network
		}
		if !l.owns(at) || l.lodgers.taken[at] > 0 || l.peers[key{local, at}] != nil {
			continue
		}
		if err := l.routed(at); err != nil { // what we send to it is routed before it is put into the tunnel
			return inner, "it is behind a NAT, and nat-pool has no route here: " + err.Error()
		}
		l.lodgers.last[pool] = at
		return at, ""
	}
	return inner, "no address of nat-pool is free"
}

// somewhere is an address of a prefix: a process does not begin where the one before it has begun.
func somewhere(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= byte(rand.IntN(2)) << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// owns reports whether what is known of an address is this loop's.
func (l *loop) owns(addr netip.Addr) bool { return l.d.shards.of(addr) == l }

// house notes a Pair that the data plane is about to be given, if its IKE SA is one that an address was assigned to.
func (l *lodgers) house(sa ike.SAID, pair uint32) {
	x, ok := l.of[sa]
	if _, housed := l.pairs[pair]; !ok || housed {
		return
	}
	l.pairs[pair] = x.inner
	l.taken[x.inner]++
}

// gone notes that the data plane does not have a Pair any more.
func (l *lodgers) gone(pair uint32) {
	if inner, housed := l.pairs[pair]; housed {
		delete(l.pairs, pair)
		fewer(l.taken, inner)
	}
}

// depart takes the address of an IKE SA back, if it has one. It may be assigned again when the data plane has none of its Pairs.
func (l *loop) depart(sa ike.SAID) {
	x, ok := l.lodgers.of[sa]
	if !ok {
		return
	}
	delete(l.lodgers.of, sa)
	fewer(l.lodgers.taken, x.inner)
	fewer(l.lodgers.at, x.outer)
}

// fewer counts one less at an address.
func fewer(n map[netip.Addr]int, at netip.Addr) {
	if n[at]--; n[at] == 0 {
		delete(n, at)
	}
}

// moved: valid packets of a Pair come from another address. Clients behind a NAT are followed there, unless they could not begin there: whoever is between
// us may have sent the packets on.
func (l *loop) moved(now time.Time, e ipsec.Event) {
	p := l.pairs[e.ID]
	if p == nil || !p.outer.IsValid() {
		l.log.Warn("a peer's packets come from another address; one that is behind no NAT is not followed", "peer", e.Remote)
		return
	}
	if why := l.unwelcome(p, e.Remote.Addr().Unmap()); why != "" {
		l.log.Warn("a client is not followed", "peer", p.remote, "to", e.Remote, "why", why)
		return
	}
	for _, a := range p.sas {
		if a.carries(e.ID) {
			l.output(now, l.engine.Follow(now, a.id, e.Remote))
		}
	}
}

// redirect has a Pair follow its client. Who has said himself that he is where he could not begin ends.
func (l *loop) redirect(now time.Time, e ike.Redirected) {
	p, outer := l.bySA[e.SA], e.Pair.Remote.Addr().Unmap()
	if p == nil {
		return
	}
	why := l.unwelcome(p, outer)
	if x, ok := l.lodgers.of[e.SA]; ok && x.outer != outer {
		if why == "" && l.lodgers.at[outer] >= maxLodgers {
			why = "too many clients are behind its NAT"
		}
		fewer(l.lodgers.at, x.outer)
		l.lodgers.at[outer]++
		x.outer = outer
		l.lodgers.of[e.SA] = x
	}
	if why != "" {
		l.log.Warn("a client has moved to where it may not be", "peer", p.remote, "to", e.Pair.Remote, "why", why)
		l.output(now, l.engine.Do(now, e.SA, ike.Delete))
		return
	}
	p.outer = e.Pair.Remote
	l.log.Info("a client's NAT has moved it", "peer", p.remote, "to", p.outer)
	l.job("redirecting", func() error { return l.dp.Redirect(e.Pair.ID, e.Pair.Local, e.Pair.Remote) }, l.failed("redirecting", p.remote))
}

// place is the address that a peer's rule is of: that of the NAT before it, if there is one.
func (p *peer) place() netip.Addr {
	if p.outer.IsValid() {
		return p.outer.Addr().Unmap()
	}
	return p.remote
}

// poolsOf are the pools that no network of this host's overlaps, and into which it has no route: where one leads to a part of a pool there are hosts.
func poolsOf(pools, networks, routes []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(pools), func(p netip.Prefix) bool {
		return slices.ContainsFunc(networks, p.Overlaps) || slices.ContainsFunc(routes, func(r netip.Prefix) bool { return r.Bits() > p.Bits() && p.Contains(r.Addr()) })
	})
}

// assigned reports whether an address is one for clients behind a NAT.
func assigned(env *pad.Environment, addr netip.Addr) bool {
	return slices.ContainsFunc(env.Pools, func(p netip.Prefix) bool { return p.Contains(addr) })
}
