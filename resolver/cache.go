package resolver

import (
	"container/list"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
	"tacit/ipseckey"
)

// The cache's bounds.
const (
	maxEntries  = 8192
	maxBytes    = 32 << 20       // of answers in wire form, uncompressed
	maxPositive = 24 * time.Hour // RFC 8767, 4 is where a day to a week is argued
	maxNegative = time.Hour      // RFC 2308, 5: one to three hours
	failureTime = time.Second    // RFC 9520, 3.2: a failure is remembered for at least one second
)

// question is a canonical name and a type of class IN.
type question struct {
	name string
	typ  uint16
}

// entry is what one lookup brought, filtered and parsed once; it never changes.
type entry struct {
	ans    dnssec.Answer
	at     time.Time // when it came
	until  time.Time // when the cache forgets it
	answer []dns.RR  // what may be released of the answer section
	ns     []dns.RR  // and of the authority section
	groups []group   // the addresses in answer
	keys   []ipseckey.Record
	keyWhy string
	size   int
}

// good says whether the entry is data or a denial, and not a failure.
func (e *entry) good() bool { return e.ans.Status >= dnssec.Insecure && e.ans.Msg != nil }

// cache holds entries until their end; the least recently used goes when there are too many. Not safe for concurrent use.
type cache struct {
	m     map[question]*list.Element
	lru   *list.List // of cached; front is fresh
	bytes int
}

type cached struct {
	q question
	e *entry
}

func newCache() cache { return cache{m: map[question]*list.Element{}, lru: list.New()} }

// get returns the entry if it has not ended. Nothing stale is ever served, not even while the upstream is silent (RFC 8767): an
// address whose proof has ended is nobody's.
func (c *cache) get(q question, now time.Time) *entry {
	el, ok := c.m[q]
	if !ok {
		return nil
	}
	e := el.Value.(cached).e
	if !now.Before(e.until) {
		c.remove(el)
		return nil
	}
	c.lru.MoveToFront(el)
	return e
}

// put keeps e until its end.
func (c *cache) put(q question, e *entry) {
	if el, ok := c.m[q]; ok {
		c.remove(el)
	}
	if !e.at.Before(e.until) {
		return
	}
	c.m[q] = c.lru.PushFront(cached{q, e})
	c.bytes += e.size
	for len(c.m) > maxEntries || c.bytes > maxBytes {
		c.remove(c.lru.Back())
	}
}

func (c *cache) remove(el *list.Element) {
	v := c.lru.Remove(el).(cached)
	delete(c.m, v.q)
	c.bytes -= v.e.size
}

// lifetime is how long an answer may be kept: its smallest TTL, or the zone's negative TTL, and never beyond Until. What is bogus
// or could not be found out is remembered for a second, so that a broken zone is not asked for every query, and never counts
// as data.
func lifetime(a *dnssec.Answer, answer []dns.RR, now time.Time) time.Time {
	if a.Msg == nil || a.Status < dnssec.Insecure || a.Rcode != dns.RcodeSuccess && a.Rcode != dns.RcodeNameError {
		return now.Add(failureTime)
	}
	d := maxPositive
	for _, rr := range answer {
		d = min(d, seconds(rr.Header().Ttl))
	}
	if len(a.RRs) == 0 {
		d = min(d, negativeTTL(a.Msg))
	}
	end := now.Add(d)
	if !a.Until.IsZero() && a.Until.Before(end) {
		end = a.Until
	}
	return end
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
