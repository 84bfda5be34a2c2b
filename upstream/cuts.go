package upstream

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// The measures of what is remembered of delegations.
const (
	maxCuts    = 4096           // zones; over it the memory starts afresh
	maxHosts   = 4096           // addresses of servers' names, the same
	maxServers = 4096           // servers, the same
	maxNS      = 13             // servers of a zone that are looked at
	maxGlue    = 6              // addresses of each
	maxCutTTL  = 24 * time.Hour // a delegation, however long its TTL
	minHostTTL = 30 * time.Second
	lameTTL    = time.Minute // how long a server that does not serve a zone is asked for it last
)

// cut is a delegation as the parent's servers told of it. It is never renewed by the zone's own servers, so that a name that the parent has withdrawn ends
// with its TTL ("ghost domains", A-34).
type cut struct {
	zone  string
	names []string                // of its servers
	glue  map[string][]netip.Addr // by name; good for this zone only, so that nobody's glue poisons another's zone
	until time.Time

	mu   sync.Mutex // guards lame, which every exchange reads in passing
	lame map[netip.Addr]time.Time
}

// shun has a server asked for the zone last for a while.
func (c *cut) shun(a netip.Addr, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lame == nil {
		c.lame = map[netip.Addr]time.Time{}
	}
	c.lame[a] = now.Add(lameTTL)
}

func (c *cut) shunned(a netip.Addr, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return now.Before(c.lame[a])
}

// known is what was learned on the way down. Every question reads and writes it in passing; so a mutex.
type known struct {
	mu    sync.Mutex
	cuts  map[string]*cut
	hosts map[string]host
}

// host is where a server's name was found to be; without addresses: nowhere.
type host struct {
	addrs []netip.Addr
	until time.Time
}

func (k *known) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cuts, k.hosts = map[string]*cut{}, map[string]host{}
}

// closest is the deepest zone that is known to hold name; nil if not even the root is.
func (k *known) closest(name string, now time.Time) *cut {
	k.mu.Lock()
	defer k.mu.Unlock()
	for n := name; ; n = parent(n) {
		if c := k.cuts[n]; c != nil && now.Before(c.until) {
			return c
		}
		if n == "." {
			return nil
		}
	}
}

func (k *known) putCut(c *cut) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.cuts) >= maxCuts {
		k.cuts = map[string]*cut{}
	}
	k.cuts[c.zone] = c
}

func (k *known) host(name string, now time.Time) (host, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	h, ok := k.hosts[name]
	return h, ok && now.Before(h.until)
}

func (k *known) putHost(name string, h host) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.hosts) >= maxHosts {
		k.hosts = map[string]host{}
	}
	k.hosts[name] = h
}

// referral reads a message that sends us on to the servers of a zone further down, on the way to name. Nil: it is none.
//
// RFC 1034, 4.3.2 has no mark for referrals: they have no answer and no SOA, but NS records of a zone between ours and the name.
func referral(z *cut, name string, m *dns.Msg, now time.Time) *cut {
	if m.Rcode != dns.RcodeSuccess || len(m.Answer) > 0 || has(m.Ns, dns.TypeSOA) {
		return nil
	}
	var next *cut
	for _, rr := range m.Ns {
		ns, ok := rr.(*dns.NS)
		if !ok || ns.Hdr.Class != dns.ClassINET {
			continue
		}
		// Further down only, and towards the name: so no chain of referrals is longer than the name has labels, and none is a circle.
		owner := dns.CanonicalName(ns.Hdr.Name)
		if !below(owner, z.zone) || !within(name, owner) || next != nil && next.zone != owner {
			continue
		}
		ttl := min(time.Duration(ns.Hdr.Ttl)*time.Second, maxCutTTL)
		if next == nil {
			next = &cut{zone: owner, glue: map[string][]netip.Addr{}, until: now.Add(ttl)}
		}
		if server := dns.CanonicalName(ns.Ns); len(next.names) < maxNS && !slices.Contains(next.names, server) {
			next.names = append(next.names, server)
		}
	}
	if next != nil {
		next.takeGlue(z.zone, m.Extra)
	}
	return next
}

// takeGlue keeps the addresses of the cut's servers that lie in zone, whose servers told of them: on others' names they have no say (RFC 5452, 6).
func (c *cut) takeGlue(zone string, extra []dns.RR) {
	for _, rr := range extra {
		name := dns.CanonicalName(rr.Header().Name)
		a, ok := addrOf(rr)
		if ok && within(name, zone) && slices.Contains(c.names, name) && len(c.glue[name]) < maxGlue && !slices.Contains(c.glue[name], a) {
			c.glue[name] = append(c.glue[name], a)
		}
	}
}

// scrub makes of what the servers of zone said about name an answer as a forwarder gives it: with the records that they may speak of and that belong to it.
func scrub(zone, name string, q, m *dns.Msg) *dns.Msg {
	out := new(dns.Msg)
	out.SetReply(q)
	out.Rcode, out.RecursionAvailable = m.Rcode, true
	chain := []string{name} // where the aliases of name lead, in this zone
	for i := 0; i < len(chain) && i < maxAliases; i++ {
		for _, rr := range m.Answer {
			owner := dns.CanonicalName(rr.Header().Name)
			if rr.Header().Class != dns.ClassINET || !within(owner, zone) || slices.ContainsFunc(out.Answer, func(old dns.RR) bool { return old == rr }) {
				continue
			}
			kind := rr.Header().Rrtype
			if sig, ok := rr.(*dns.RRSIG); ok {
				kind = sig.TypeCovered
			}
			if owner != chain[i] && !(kind == dns.TypeDNAME && below(chain[i], owner)) {
				continue
			}
			out.Answer = append(out.Answer, rr)
			if c, ok := rr.(*dns.CNAME); ok && owner == chain[i] && !slices.Contains(chain, dns.CanonicalName(c.Target)) {
				chain = append(chain, dns.CanonicalName(c.Target))
			}
		}
	}
	if !within(chain[len(chain)-1], zone) { // what becomes of the alias is for others to say
		out.Rcode = dns.RcodeSuccess
	}
	for _, rr := range m.Ns {
		kind := rr.Header().Rrtype
		if sig, ok := rr.(*dns.RRSIG); ok {
			kind = sig.TypeCovered
		}
		if within(dns.CanonicalName(rr.Header().Name), zone) && rr.Header().Class == dns.ClassINET &&
			(kind == dns.TypeSOA || kind == dns.TypeNSEC || kind == dns.TypeNSEC3) {
			out.Ns = append(out.Ns, rr)
		}
	}
	return out
}

// maxAliases bounds the aliases that are followed in one message.
const maxAliases = 12

// parent is the name without its first label.
func parent(name string) string {
	if i, end := dns.NextLabel(name, 0); !end {
		return name[i:]
	}
	return "."
}

// within says whether name is zone or lies below it, label by label.
func within(name, zone string) bool { return dns.IsSubDomain(zone, name) }

// below says whether name lies below zone.
func below(name, zone string) bool { return name != zone && within(name, zone) }
