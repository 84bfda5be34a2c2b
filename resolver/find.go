package resolver

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// verdicts is what the Watcher said of all addresses of an answer.
type verdicts struct {
	withheld map[netip.Addr]Withheld // of an address in two groups the stricter word stands
	ttl      time.Duration           // 0: no cap
}

func (v *verdicts) add(w Verdict) {
	for _, x := range w.Withhold {
		v.withheld[x.Addr.Unmap()] = x
	}
	if w.TTL > 0 && (v.ttl == 0 || w.TTL < v.ttl) {
		v.ttl = w.TTL
	}
}

// watch finds the key of every group of addresses and asks the Watcher. The groups of one answer wait side by side.
func (s *Server) watch(ctx context.Context, q *query, e *entry, key pending) verdicts {
	v := verdicts{withheld: map[netip.Addr]Withheld{}}
	now := s.now()
	gs := e.groups()
	if len(gs) == 1 {
		v.add(s.watchGroup(ctx, q, e, gs[0], key, now))
		return v
	}
	said := make([]Verdict, len(gs))
	var wg sync.WaitGroup
	for i, g := range gs {
		wg.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					s.stats.panics.Add(1)
					s.log.Error("watch panicked", "name", q.name, "err", fmt.Sprint(p))
					said[i] = withholdAll(g.addrs, dns.ExtendedErrorCodeOther, "internal error")
				}
			}()
			said[i] = s.watchGroup(ctx, q, e, g, key, now)
		})
	}
	wg.Wait()
	for _, w := range said {
		v.add(w)
	}
	return v
}

func withholdAll(as []netip.Addr, ede uint16, why string) (v Verdict) {
	for _, a := range as {
		v.Withhold = append(v.Withhold, Withheld{Addr: a, EDE: ede, Why: why})
	}
	return v
}

// watchGroup is the decision over the addresses of one owner.
func (s *Server) watchGroup(ctx context.Context, q *query, e *entry, g group, key pending, addrAt time.Time) Verdict {
	f := s.found(ctx, q, e, g, key, addrAt)
	// CD lets bogus data out, but not in place of an address whose name has a proven key.
	if f.AddrStatus < dnssec.Insecure && f.KeyStatus == dnssec.Secure && !f.Denied {
		return withholdAll(g.addrs, e.ede(), "not the proven address of a name with a key: "+e.why())
	}
	if f.KeyStatus == dnssec.Secure && !f.Denied && (q.typ == dns.TypeA || q.typ == dns.TypeAAAA) {
		// A peer that does not answer takes the whole hold, and then there is no time to ask.
		s.start(q.by, q.name, otherFamily(q.typ)) // its answer is wanted at once if nothing of this one can be released
	}
	s.stats.watched.Add(1)
	return s.cfg.Watcher.Watch(ctx, f)
}

// found joins the addresses of one owner with the key beside them.
func (s *Server) found(ctx context.Context, q *query, e *entry, g group, key pending, addrAt time.Time) Found {
	f := Found{
		Asked: q.name, Owner: g.owner, Addrs: g.addrs, AddrStatus: e.status, Until: e.until(),
		AskedAt: q.in, AddrAt: addrAt, CD: q.cd, Hint: g.hint,
	}
	k := s.keyOf(ctx, q, e, g, key)
	if k == nil {
		return f
	}
	f.KeyAt = s.now()
	f.key(k)
	// The weakest link of the chain: hints of a target in an unsigned zone are no more than its own addresses would be.
	if g.hint && g.owner != e.owner && k.status == dnssec.Insecure && f.AddrStatus == dnssec.Secure {
		f.AddrStatus = dnssec.Insecure
	}
	return f
}

// key takes what a key answer says.
func (f *Found) key(k *entry) {
	f.KeyStatus, f.Denied = k.status, k.denied
	if m := k.more; m != nil {
		f.Keys, f.KeyWhy = m.keys, cmp.Or(m.why, m.keyWhy)
	}
	if until := k.until(); !until.IsZero() && (f.Until.IsZero() || until.Before(f.Until)) {
		f.Until = until
	}
	// What a Watcher may take for a denial has to be one.
	if f.KeyStatus == dnssec.Secure && len(f.Keys) == 0 && !f.Denied {
		f.KeyStatus, f.KeyWhy = dnssec.Indeterminate, "neither keys nor a denial"
	}
}

// Find is what DNS says of the addresses of a name, A or AAAA, and of the key beside them, for the host itself: no Watcher is asked, or two
// hosts that look each other up would wait for each other. Without addresses Addrs is empty, and AddrStatus and KeyWhy say what came instead. It
// takes no longer than the hold.
func (s *Server) Find(ctx context.Context, name string, typ uint16) Found {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Hold)
	defer cancel()
	q := &query{name: dns.CanonicalName(name), typ: typ, in: s.now(), by: ourselves}
	key := s.start(q.by, q.name, dns.TypeIPSECKEY)
	e := s.lookup(ctx, q.by, q.name, typ)
	gs := e.groups()
	if len(gs) == 0 {
		return Found{Asked: q.name, Owner: e.owner, AddrStatus: e.status, KeyWhy: e.why(), AskedAt: q.in}
	}
	return s.found(ctx, q, e, gs[0], key, s.now())
}

// FindKey is what DNS says of the key at a name whose addresses are not asked for, as of the reverse name of an address (RFC 4025, 1.2), for the
// host itself. Of the rest of Found it has Asked, Owner (where aliases end, as in RFC 2317's zones), Until and the times. It takes no longer than the hold.
func (s *Server) FindKey(ctx context.Context, name string) Found {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Hold)
	defer cancel()
	q := question{dns.CanonicalName(name), dns.TypeIPSECKEY}
	f := Found{Asked: q.name, AskedAt: s.now()}
	e := s.wait(ctx, q, s.start(ourselves, q.name, q.typ))
	f.Owner, f.KeyAt = e.owner, s.now()
	f.key(e)
	return f
}

// keyOf is the key answer at the owner of the addresses; nil where nobody has to wait for one: the key of an insecure address
// proves nothing, and is at best a hint that is here already (RFC 7672, 2.2 has the same rule for mail).
//
// For addresses of A and AAAA the key has to stand at the very name where their chain ended: a key from elsewhere would speak for
// somebody else's host. Hints say whose they are by TargetName; where that is an alias, its end is the owner of the key.
func (s *Server) keyOf(ctx context.Context, q *query, e *entry, g group, key pending) *entry {
	if g.hint && g.owner != q.name {
		key = s.start(q.by, g.owner, dns.TypeIPSECKEY)
	}
	if e.status == dnssec.Insecure {
		k := key.ready()
		if k == nil || k.owner != g.owner {
			return nil
		}
		return k
	}
	zone := signer(e)
	blamed := zone
	if g.owner != q.name { // the key of an alias, or of a target, is asked of others than signed the addresses
		blamed = q.name
		if g.hint {
			blamed = g.owner
		}
	}
	k := s.waitKey(ctx, blamed, question{q.name, dns.TypeIPSECKEY}, key)
	if k.owner == g.owner {
		return k
	}
	if !g.hint {
		// They took different ways, or the key's way is broken: the owner of the addresses is the one to ask.
		k = s.waitKey(ctx, zone, question{g.owner, dns.TypeIPSECKEY}, s.start(q.by, g.owner, dns.TypeIPSECKEY))
		if k.owner == g.owner {
			return k
		}
	}
	if k.status < dnssec.Insecure {
		return k
	}
	return failed(question{g.owner, dns.TypeIPSECKEY}, s.now(), dns.ExtendedErrorCodeOther,
		fmt.Sprintf("the key is of %s, the addresses are of %s", k.owner, g.owner))
}

// waitKey waits for a key until ctx ends; where the zone is known to let everybody wait, only a moment: its other names are
// not to suffer from those that stall.
func (s *Server) waitKey(ctx context.Context, zone string, q question, p pending) *entry {
	if e := p.ready(); e != nil {
		return e
	}
	if ctx.Err() != nil { // it has not had any time to answer: that is nobody's fault
		return s.wait(ctx, q, p)
	}
	tripped := s.zones.open(zone, s.now())
	if tripped {
		short, cancel := context.WithTimeout(ctx, s.cfg.Hold/breakerPatience)
		defer cancel()
		ctx = short
	}
	e := s.wait(ctx, q, p)
	answered := p.ready() != nil
	if tripped && !answered {
		s.stats.tripped.Add(1)
		return failed(q, s.now(), dns.ExtendedErrorCodeNoReachableAuthority, zone+" does not answer for keys")
	}
	if s.base.Err() == nil {
		s.zones.done(zone, answered, s.now())
	}
	return e
}

// signer is the zone that signed the addresses, by their RRSIG; without one it is the owner.
func signer(e *entry) string {
	answer, _ := e.sections()
	for _, rr := range answer {
		if sig, ok := rr.(*dns.RRSIG); ok && sig.TypeCovered == e.q.typ {
			return dns.CanonicalName(sig.SignerName)
		}
	}
	return e.owner
}

func otherFamily(typ uint16) uint16 {
	if typ == dns.TypeA {
		return dns.TypeAAAA
	}
	return dns.TypeA
}
