package dnssec

import (
	"time"

	"github.com/miekg/dns"
)

// Times of RFC 5011, 2.3 and 2.4.
const (
	holdDown    = 30 * 24 * time.Hour  // how long a new key must be there before it is trusted, and a revoked one is remembered
	keepMissing = 366 * 24 * time.Hour // how long a trusted key that is gone is remembered, where another one is there
	minSeen     = 2                    // how often a new key must have been seen
	maxRolling  = 64                   // keys of one trust point
)

// KeyState is the state of a key of a trust point (RFC 5011, 4.2). The numbers are those of unbound's files.
type KeyState uint8

// The states. Start is also that of a key that the configuration gave and no probe has confirmed.
const (
	KeyStart KeyState = iota
	KeyAddPend
	KeyValid
	KeyMissing
	KeyRevoked
	KeyRemoved
)

func (s KeyState) String() string {
	if s > KeyRemoved {
		return "unknown"
	}
	return [...]string{"START", "ADDPEND", "VALID", "MISSING", "REVOKED", "REMOVED"}[s]
}

// RollingKey is a key of a trust point.
type RollingKey struct {
	Key     *dns.DNSKEY
	State   KeyState
	Seen    int       // probes that saw it while it was ADDPEND
	Changed time.Time // since when it is in this state
}

// TrustPoint is what RFC 5011 knows of the keys of one zone: a machine that is handed DNSKEY RRsets and the time. It is not safe for concurrent use.
type TrustPoint struct {
	Zone        string // canonical
	DS          []*dns.DS
	Keys        []RollingKey
	LastQueried time.Time
	LastSuccess time.Time
	Next        time.Time // when to ask again; zero: at once, or never if Revoked
	Failed      int       // probes in a row that brought no proven set
	Interval    time.Duration
	Retry       time.Duration
}

// initial says whether no probe has succeeded yet: then the configuration's word stands.
func (p *TrustPoint) initial() bool {
	for _, k := range p.Keys {
		if k.State != KeyStart {
			return false
		}
	}
	return true
}

// Revoked says whether the zone has taken back all its keys: it is as if it had no trust anchor (RFC 5011, 5).
func (p *TrustPoint) Revoked() bool {
	for _, k := range p.Keys {
		if k.State != KeyRevoked {
			return false
		}
	}
	return len(p.Keys) > 0
}

// trusted are the anchors that the trust point stands for now: nil if there are none.
func (p *TrustPoint) trusted() *anchor {
	a := new(anchor)
	start := p.initial()
	if start {
		a.ds = p.DS
	}
	for _, k := range p.Keys {
		if k.State == KeyValid || k.State == KeyMissing || start {
			a.keys = append(a.keys, k.Key)
		}
	}
	if len(a.ds)+len(a.keys) == 0 {
		return nil
	}
	return a
}

// sameKey says whether two DNSKEYs are one key, revoked or not.
func sameKey(a, b *dns.DNSKEY) bool {
	return a.Algorithm == b.Algorithm && a.PublicKey == b.PublicKey && (a.Flags^b.Flags)&^dns.REVOKE == 0
}

// find is the entry of a key, nil if it is new.
func (p *TrustPoint) find(k *dns.DNSKEY) *RollingKey {
	for i := range p.Keys {
		if sameKey(p.Keys[i].Key, k) {
			return &p.Keys[i]
		}
	}
	return nil
}

// observe takes in the answer to a DNSKEY question for the zone, nil if there was none, and says whether anything but the times of asking changed.
//
// Three steps, as unbound takes them: what the time alone does; revocations, which a key's own signature is enough for (RFC 5011, 2.1); and, if one of
// the keys that are still trusted has signed the set, all else.
func (p *TrustPoint) observe(c *checker, msg *dns.Msg) (changed bool) {
	p.LastQueried = c.now
	changed = p.ripen(c.now)
	var set *rrset
	if msg != nil {
		set = group(msg.Answer).find(p.Zone, dns.TypeDNSKEY)
	}
	if set != nil && p.revoke(c, set) {
		changed = true
	}
	if set == nil || p.Revoked() {
		p.failed(c.now)
		return changed
	}
	got := p.verify(c, set)
	if got.status != Secure {
		p.failed(c.now)
		return changed
	}
	p.schedule(c.now, set, got)
	return p.update(c, set) || changed
}

// ripen makes VALID what has been seen often and long enough: RFC 5011, 2.4.1 has it take effect with the time and not with the next probe.
func (p *TrustPoint) ripen(now time.Time) (changed bool) {
	for i := range p.Keys {
		k := &p.Keys[i]
		if k.State == KeyAddPend && k.Seen >= minSeen && now.Sub(k.Changed) >= holdDown {
			*k = RollingKey{Key: k.Key, State: KeyValid, Changed: now}
			changed = true
		}
	}
	return changed
}

// revoke takes the trust from keys that are in the set with the REVOKE bit and have signed it themselves.
//
// RFC 5011, 2.1: "A key is considered revoked when the resolver sees the key in a self-signed RRSet and the key has the REVOKE bit set to '1'."
func (p *TrustPoint) revoke(c *checker, set *rrset) (changed bool) {
	for _, rr := range set.rrs {
		k, ok := rr.(*dns.DNSKEY)
		if !ok || k.Flags&dns.REVOKE == 0 {
			continue
		}
		old := p.find(k)
		if old == nil || old.State == KeyRevoked || old.State == KeyAddPend || old.State == KeyStart && !p.initial() {
			continue
		}
		self := &zone{name: p.Zone, verdict: verdict{until: c.now.Add(maxTTL)}, keys: []zoneKey{newZoneKey(k)}}
		if c.verify(set, self).status != Secure {
			continue
		}
		*old = RollingKey{Key: k, State: KeyRevoked, Changed: c.now}
		changed = true
	}
	return changed
}

// verify checks the set against the keys that are trusted now. They need not be in it.
func (p *TrustPoint) verify(c *checker, set *rrset) signed {
	a := p.trusted()
	if a == nil {
		return signed{verdict: bogus(dns.ExtendedErrorCodeDNSKEYMissing, "zone %s has no trusted key", p.Zone)}
	}
	z := &zone{name: p.Zone, verdict: verdict{until: c.now.Add(maxTTL)}}
	for _, k := range a.keys {
		z.keys = append(z.keys, newZoneKey(k))
	}
	for _, k := range usableKeys(set) {
		if c.vouched(k, a.ds) {
			z.keys = append(z.keys, k)
		}
	}
	return c.verify(set, z)
}

// failed plans the next probe after one that brought nothing.
func (p *TrustPoint) failed(now time.Time) {
	p.Failed++
	p.Next = time.Time{}
	if !p.Revoked() {
		p.Next = now.Add(max(p.Retry, time.Hour))
	}
}

// schedule plans the next probe after one that brought a proven set.
//
// RFC 5011, 2.3: "queryInterval = MAX(1 hr, MIN (15 days, 1/2*OrigTTL, 1/2*RRSigExpirationInterval))" and
// "retryTime = MAX (1 hour, MIN (1 day, .1 * origTTL, .1 * expireInterval))".
func (p *TrustPoint) schedule(now time.Time, set *rrset, got signed) {
	left := 15 * 24 * time.Hour * 2
	for _, sig := range set.sigs[:min(len(set.sigs), maxSetSigs)] {
		if sig.KeyTag == got.verdict.tag {
			left = min(left, seconds(sig.OrigTtl), time.Duration(int32(sig.Expiration-uint32(now.Unix())))*time.Second)
		}
	}
	p.Interval = max(time.Hour, min(15*24*time.Hour, left/2))
	p.Retry = max(time.Hour, min(24*time.Hour, left/10))
	p.LastSuccess, p.Failed = now, 0
	p.Next = now.Add(p.Interval)
}

// update moves the keys as a proven set tells (RFC 5011, 4.1).
func (p *TrustPoint) update(c *checker, set *rrset) (changed bool) {
	start := p.initial()
	if start {
		p.Keys, p.DS, changed = nil, nil, true
	}
	seen := make(map[*dns.DNSKEY]bool)
	for _, k := range usableKeys(set) {
		if k.rr.Flags&dns.SEP == 0 || !c.rules.supported(k.rr.Algorithm) {
			continue
		}
		if p.see(k.rr, start, c.now, seen) {
			changed = true
		}
	}
	for _, rr := range set.rrs { // a key that was revoked stays so as long as it is shown
		if k, ok := rr.(*dns.DNSKEY); ok {
			if old := p.find(k); old != nil && old.State == KeyRevoked {
				old.Changed = c.now
				seen[old.Key] = true
			}
		}
	}
	return p.age(c.now, seen) || changed
}

// see is the event that a key is in a proven set.
func (p *TrustPoint) see(k *dns.DNSKEY, start bool, now time.Time, seen map[*dns.DNSKEY]bool) (changed bool) {
	old := p.find(k)
	if old == nil {
		if len(p.Keys) == maxRolling {
			return false
		}
		n := RollingKey{Key: dns.Copy(k).(*dns.DNSKEY), State: KeyAddPend, Seen: 1, Changed: now}
		if start {
			n.State, n.Seen = KeyValid, 0
		}
		p.Keys = append(p.Keys, n)
		seen[n.Key] = true
		return true
	}
	seen[old.Key] = true
	switch old.State {
	case KeyAddPend:
		old.Seen++
		return true
	case KeyMissing:
		old.State, old.Changed = KeyValid, now
		return true
	}
	return false
}

// age is the event that a key is not in a proven set, and the end of those that have been gone for long.
func (p *TrustPoint) age(now time.Time, seen map[*dns.DNSKEY]bool) (changed bool) {
	valid := false
	for i := range p.Keys {
		k := &p.Keys[i]
		if k.State == KeyValid && !seen[k.Key] {
			k.State, k.Changed, changed = KeyMissing, now, true
		}
		valid = valid || k.State == KeyValid
	}
	kept := p.Keys[:0]
	for _, k := range p.Keys {
		gone := now.Sub(k.Changed)
		if k.State == KeyAddPend && !seen[k.Key] || k.State == KeyRevoked && !seen[k.Key] && gone >= holdDown && valid ||
			k.State == KeyMissing && gone >= keepMissing && valid {
			changed = true
			continue
		}
		kept = append(kept, k)
	}
	p.Keys = kept
	return changed
}
