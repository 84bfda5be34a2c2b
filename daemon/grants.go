package daemon

import (
	"context"
	"crypto"
	"encoding/binary"
	"hash/maphash"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"tacit/dnssec"
	"tacit/ipseckey"
	"tacit/pad"
	"tacit/resolver"
)

// maxGrants bounds the table of grants: a power of two, half of what the resolver's cache holds.
const maxGrants = 4096

// grants is what lookups may read of the loop's knowledge without asking the loop: claims that it found satisfied. Only the loop
// writes. A claim has one slot, by the hash of its names and address; one that comes later takes the slot of one that was there,
// whose next lookup asks the loop again.
type grants struct {
	seed  maphash.Seed
	start time.Time // standing counts from here
	slots [maxGrants]atomic.Pointer[grant]
}

// grant says that the loop found a claim satisfied, and all that its finding depended on. It never changes; what does change is
// the standing of the address, which all its grants share.
type grant struct {
	asked, owner string
	addr         netip.Addr
	keys         *ipseckey.Record // the first of the validated records: the set, as the resolver's cache keeps it, is this very one
	until        time.Time
	env          *pad.Environment // our addresses and routes: another snapshot, another decision
	standing     *standing
}

// standing is the live key of an address. The loop moves its end with each proof, and withdraws it before it does anything to
// the SA that the key authenticated (TRUST.md I1, I2).
type standing struct {
	key   pad.Key
	until atomic.Int64 // when the hold on the address ends, in nanoseconds since grants.start; 0: withdrawn
}

func newGrants(start time.Time) *grants { return &grants{seed: maphash.MakeSeed(), start: start} }

func (g *grants) slot(asked, owner string, addr netip.Addr) *atomic.Pointer[grant] {
	a := addr.As16()
	h := maphash.String(g.seed, asked) ^ 3*maphash.String(g.seed, owner) ^ binary.LittleEndian.Uint64(a[8:])*0x9e3779b97f4a7c15
	return &g.slots[h>>32%maxGrants]
}

// put records that the claim of an address of f is satisfied by the address's standing.
func (g *grants) put(f resolver.Found, addr netip.Addr, env *pad.Environment, s *standing) {
	g.slot(f.Asked, f.Owner, addr).Store(&grant{
		asked: f.Asked, owner: f.Owner, addr: addr, keys: &f.Keys[0], until: f.Until, env: env, standing: s})
}

// ttl is how long an answer with all addresses of f may be kept; false if the loop has to be asked. It is pad.Address.Satisfied
// and pad.Address.TTL for claims that the loop knows.
func (g *grants) ttl(now time.Time, f *resolver.Found, env *pad.Environment) (time.Duration, bool) {
	if f.AddrStatus != dnssec.Secure || f.KeyStatus != dnssec.Secure || f.Denied || len(f.Keys) == 0 || len(f.Addrs) == 0 {
		return 0, false
	}
	left := f.Until.Sub(now)
	since := now.Sub(g.start)
	for _, addr := range f.Addrs {
		x := g.slot(f.Asked, f.Owner, addr).Load()
		if x == nil || x.addr != addr || x.keys != &f.Keys[0] || x.env != env || !x.until.Equal(f.Until) ||
			x.owner != f.Owner || x.asked != f.Asked {
			return 0, false
		}
		hold := time.Duration(x.standing.until.Load()) - since
		if hold < time.Second {
			return 0, false
		}
		left = min(left, hold)
	}
	if left <= 0 {
		return 0, false
	}
	return max(left.Truncate(time.Second), time.Second), true
}

// granted answers a lookup whose claims the loop has found satisfied before.
func (d *Daemon) granted(f *resolver.Found) (resolver.Verdict, bool) {
	if d.shards == nil {
		return resolver.Verdict{}, false
	}
	ttl, ok := d.shards.grants.ttl(d.now(), f, d.host.environment())
	if ok && d.log.Enabled(context.Background(), slog.LevelDebug) {
		d.log.Debug("granted", "name", f.Asked, "owner", f.Owner, "ttl", ttl)
	}
	return resolver.Verdict{TTL: ttl}, ok
}

// publish shows lookups how the live key of an address stands. It is called after each step of the peer and before what the step
// says is done, so that no lookup is answered from a grant once the loop has begun to take its SA down.
func (l *loop) publish(p *peer) {
	s := p.standing
	k, _, _ := p.pad.Key()
	live := p.pad.Live() && p.shows(k.Public)
	if s != nil && (!live || s.key.ID != k.ID) {
		p.withdraw()
	}
	if !live {
		return
	}
	if p.standing == nil {
		p.standing = &standing{key: k}
	}
	p.standing.until.Store(int64(p.pad.HoldUntil().Sub(l.grants.start)))
}

// withdraw ends all grants of the address, at once.
func (p *peer) withdraw() {
	if p.standing != nil {
		p.standing.until.Store(0)
		p.standing = nil
	}
}

// shows reports whether an SA is up, and not about to go, that the key authenticated.
func (p *peer) shows(k crypto.PublicKey) bool {
	for _, a := range p.sas {
		if !a.up || a.deleting {
			continue
		}
		if e, ok := a.key.(interface{ Equal(crypto.PublicKey) bool }); ok && e.Equal(k) {
			return true
		}
	}
	return false
}
