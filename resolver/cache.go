package resolver

import (
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// The cache's bounds.
const (
	maxEntries  = 1 << 18        // a hundred thousand names, each with addresses of both families, and room
	maxBytes    = 64 << 20       // what they take, as entry.size counts it
	maxPositive = 24 * time.Hour // RFC 8767, 4 is where a day to a week is argued
	maxNegative = time.Hour      // RFC 2308, 5: one to three hours
	failureTime = time.Second    // RFC 9520, 3.2: a failure is remembered for at least one second
)

// cache holds entries until their end; the least recently used goes when there are too many. Not safe for concurrent use.
type cache struct {
	m     map[question]*entry
	none  noKeys
	lru   entry // the ring's fixed point: older is the most recently used, newer the least
	bytes int
}

func newCache() *cache {
	c := &cache{m: map[question]*entry{}, none: noKeys{m: map[string]noKey{}}}
	c.lru.newer, c.lru.older = &c.lru, &c.lru
	return c
}

// get returns the entry if it has not ended. Nothing stale is ever served, not even while the upstream is silent (RFC 8767): an
// address whose proof has ended is nobody's.
func (c *cache) get(q question, now time.Time) *entry {
	if e := c.live(c.m[q], now); e != nil || q.typ != dns.TypeIPSECKEY {
		return e
	}
	if e := new(entry); c.none.get(q.name, now, e) {
		return e
	}
	return nil
}

// named is get for a name that is no string yet, and not for keys.
func (c *cache) named(name []byte, typ uint16, now time.Time) *entry {
	return c.live(c.m[question{string(name), typ}], now)
}

// key is what is known of a name's key; it may be written into room.
func (c *cache) key(name string, now time.Time, room *entry) *entry {
	if e := c.live(c.m[question{name, dns.TypeIPSECKEY}], now); e != nil {
		return e
	}
	if c.none.get(name, now, room) {
		return room
	}
	return nil
}

func (c *cache) live(e *entry, now time.Time) *entry {
	if e == nil {
		return nil
	}
	if now.Sub(epoch)-e.at >= e.life {
		c.remove(e)
		return nil
	}
	if c.lru.older != e {
		e.unlink()
		c.use(e)
	}
	return e
}

// put keeps e until its end.
func (c *cache) put(e *entry) {
	if old := c.m[e.q]; old != nil {
		c.remove(old)
	}
	if e.compact() {
		c.none.put(e)
		return
	}
	if e.q.typ == dns.TypeIPSECKEY {
		c.none.remove(e.q.name)
	}
	if e.life <= 0 {
		return
	}
	c.m[e.q] = e
	c.use(e)
	c.bytes += e.size()
	for len(c.m) > maxEntries || c.bytes > maxBytes {
		c.remove(c.lru.newer)
	}
}

// use makes e, which is in no place, the most recently used.
func (c *cache) use(e *entry) {
	e.newer, e.older = &c.lru, c.lru.older
	e.newer.older, e.older.newer = e, e
}

func (e *entry) unlink() { e.newer.older, e.older.newer = e.older, e.newer }

func (c *cache) remove(e *entry) {
	e.unlink()
	delete(c.m, e.q)
	c.bytes -= e.size()
}

// lifetime is how long an answer may be kept: its smallest TTL, or the zone's negative TTL, and never beyond Until. What is bogus
// or could not be found out is remembered for a second, so that a broken zone is not asked for every query, and never counts
// as data.
func lifetime(a *dnssec.Answer, answer []dns.RR, now time.Time) time.Duration {
	if a.Msg == nil || a.Status < dnssec.Insecure || a.Rcode != dns.RcodeSuccess && a.Rcode != dns.RcodeNameError {
		return failureTime
	}
	d := maxPositive
	for _, rr := range answer {
		d = min(d, seconds(rr.Header().Ttl))
	}
	if len(a.RRs) == 0 {
		d = min(d, negativeTTL(a.Msg))
	}
	if !a.Until.IsZero() {
		d = min(d, a.Until.Sub(now))
	}
	return d
}

// negativeTTL is the lesser of the SOA's TTL and its MINIMUM field (RFC 2308, 5); without an SOA a denial is not kept.
func negativeTTL(m *dns.Msg) time.Duration {
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(seconds(soa.Hdr.Ttl), seconds(soa.Minttl), maxNegative)
		}
	}
	return 0
}

// seconds reads a TTL; one with the highest bit set is 0 (RFC 2181, 8).
func seconds(ttl uint32) time.Duration {
	if ttl > 1<<31-1 {
		return 0
	}
	return time.Duration(ttl) * time.Second
}
