package dnssec

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// recursor is the recursive server that a validator of a scenario stands behind. The scenarios are made for an iterating resolver: so this one iterates,
// from server to server as they refer to one another, and it remembers what they said. It validates nothing.
type recursor struct {
	s   *scenario
	now func() time.Time

	mu     sync.Mutex // one question at a time: what one of them learns is there for the next
	step   int
	told   map[question]told   // RRsets with their signatures
	denied map[question]told   // denials, with their authority section
	cuts   map[string]*servers // delegations by zone
	glue   map[string][]string // addresses by the name of a server
	from   map[question][]string
	shun   map[question]map[string]bool // addresses that gave what could not be proven
}

// told is something that a server said, and how long it stands.
type told struct {
	msg   *dns.Msg
	from  time.Time
	until time.Time
}

// left is what was told, with the TTLs that are left of it.
func (t told) left(now time.Time) *dns.Msg {
	m := t.msg.Copy()
	for _, rr := range slices.Concat(m.Answer, m.Ns) {
		rr.Header().Ttl -= min(rr.Header().Ttl, uint32(now.Sub(t.from)/time.Second))
	}
	return m
}

// servers are those of a zone: by address, or by names whose addresses are to be found.
type servers struct {
	zone    string
	names   []string
	addrs   []string
	forward bool
	until   time.Time
}

var errLame = errors.New("no server answers")

func newRecursor(s *scenario, now func() time.Time) *recursor {
	r := &recursor{s: s, now: now, shun: map[question]map[string]bool{}}
	r.forget()
	return r
}

// forget empties what was learned, and leaves what was configured.
func (r *recursor) forget() {
	r.told, r.denied, r.cuts, r.from = map[question]told{}, map[question]told{}, map[string]*servers{}, map[question][]string{}
	r.glue = map[string][]string{}
	r.cuts["."] = &servers{zone: ".", addrs: []string{"198.41.0.4", "193.0.14.129"}, until: r.now().Add(1 << 60)} // a and k, where nothing else is said
	for _, s := range r.s.stubs {
		r.cuts[s.name] = &servers{zone: s.name, addrs: s.addrs, forward: s.forward, until: r.now().Add(1 << 60)}
	}
}

// at sets the step of the scenario.
func (r *recursor) at(step int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.step = step
}

// Exchange is the Exchanger of the scenario's Validator.
func (r *recursor) Exchange(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	qu := question{dns.CanonicalName(q.Question[0].Name), q.Question[0].Qtype}
	m := new(dns.Msg)
	m.SetReply(q)
	told, denied := maps.Clone(r.told), maps.Clone(r.denied)
	if Way(ctx) != 0 {
		r.elsewhere(qu)
	}
	err := r.resolve(m, qu, 0)
	if err != nil && Way(ctx) != 0 { // nobody else knows: then what was said before stands
		r.told, r.denied = told, denied
		err = r.resolve(m, qu, 0)
	}
	if err != nil {
		m.Answer, m.Ns, m.Rcode = nil, nil, dns.RcodeServerFailure
	}
	b, err := m.Pack()
	if err != nil {
		return nil, err
	}
	out := new(dns.Msg)
	return out, out.Unpack(b)
}

// Ways: an iterating resolver has other servers to ask.
func (r *recursor) Ways() []int                        { return []int{1, 2} }
func (r *recursor) Chosen(string, uint16, int, string) {}

// elsewhere forgets what the servers said that answered q, and has others asked before them.
func (r *recursor) elsewhere(q question) {
	if r.shun[q] == nil {
		r.shun[q] = map[string]bool{}
	}
	for _, addr := range r.from[q] {
		r.shun[q][addr] = true
	}
	for n := q.name; ; n = parent(n) {
		delete(r.told, question{n, dns.TypeDNAME})
		if n == "." {
			break
		}
	}
	delete(r.told, q)
	delete(r.told, question{q.name, dns.TypeCNAME})
	delete(r.denied, q)
	delete(r.denied, question{q.name, dns.TypeNone})
}

// resolve answers q into m, from alias to alias.
func (r *recursor) resolve(m *dns.Msg, q question, depth int) error {
	for hop := 0; hop < 10; hop++ {
		part, err := r.one(q, depth)
		if err != nil {
			if hop > 0 {
				return nil // an unfinished chain
			}
			return err
		}
		m.Rcode = part.Rcode
		m.Ns = appendNew(m.Ns, part.Ns)
		next, done := r.chain(q, part, &m.Answer)
		if done {
			return nil
		}
		q.name = next
	}
	return nil
}

// chain takes from part what answers q, and returns where it leads if the end is not in it.
func (r *recursor) chain(q question, part *dns.Msg, answer *[]dns.RR) (next string, done bool) {
	before := len(*answer)
	*answer = appendNew(*answer, part.Answer)
	if q.rrtype == dns.TypeANY || q.rrtype == dns.TypeRRSIG {
		return "", true
	}
	sets, name := group(part.Answer), q.name
	for range 12 {
		if sets.find(name, q.rrtype) != nil || part.Rcode == dns.RcodeNameError && name != q.name {
			return "", true
		}
		if set := sets.dname(name); set != nil {
			target, ok := substituted(set, name)
			if !ok {
				return "", true
			}
			name = target
			continue
		}
		set := sets.find(name, dns.TypeCNAME)
		if set == nil || len(set.rrs) != 1 {
			break
		}
		name = dns.CanonicalName(set.rrs[0].(*dns.CNAME).Target)
	}
	return name, name == q.name || len(*answer) == before
}

// substituted is name under the DNAME of set.
func substituted(set *rrset, name string) (string, bool) {
	target, err := canonical(strings.TrimSuffix(name, set.name) + strings.TrimPrefix(dns.CanonicalName(set.rrs[0].(*dns.DNAME).Target), "."))
	return target, err == nil
}

func appendNew(to, from []dns.RR) []dns.RR {
	for _, rr := range from {
		if !slices.ContainsFunc(to, func(old dns.RR) bool { return old.String() == rr.String() }) {
			to = append(to, dns.Copy(rr))
		}
	}
	return to
}

// one answers q from memory, or by asking; an alias ends it.
func (r *recursor) one(q question, depth int) (*dns.Msg, error) {
	for _, q := range []question{q, {q.name, dns.TypeNone}} { // NXDOMAIN is for all types
		if t, ok := r.denied[q]; ok && r.now().Before(t.until) {
			return t.left(r.now()), nil
		}
	}
	for _, t := range []uint16{q.rrtype, dns.TypeCNAME} {
		if t, ok := r.told[question{q.name, t}]; ok && r.now().Before(t.until) && q.rrtype != dns.TypeANY && q.rrtype != dns.TypeRRSIG &&
			(t.msg.Question[0].Qtype == q.rrtype || q.rrtype != dns.TypeDS) {
			return t.left(r.now()), nil
		}
	}
	for n := parent(q.name); q.name != "."; n = parent(n) {
		if t, ok := r.told[question{n, dns.TypeDNAME}]; ok && r.now().Before(t.until) {
			return r.fromDNAME(t.left(r.now()), q)
		}
		if n == "." {
			break
		}
	}
	return r.iterate(q, depth)
}

// fromDNAME makes the answer to q from a DNAME that is known (RFC 6672, 3.3).
func (r *recursor) fromDNAME(known *dns.Msg, q question) (*dns.Msg, error) {
	m := known.Copy()
	m.Ns = nil
	set := group(m.Answer).dname(q.name)
	target, ok := substituted(set, q.name)
	if !ok {
		m.Rcode = dns.RcodeYXDomain
		return m, nil
	}
	m.Answer = append(m.Answer, &dns.CNAME{Hdr: dns.RR_Header{Name: q.name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: set.rrs[0].Header().Ttl}, Target: target})
	return m, nil
}

// iterate asks the servers of the closest zone that is known, and those that they refer to.
func (r *recursor) iterate(q question, depth int) (*dns.Msg, error) {
	if depth > 6 {
		return nil, errLame
	}
	for range 12 {
		z := r.closest(q)
		if z == nil {
			return nil, errLame
		}
		m, err := r.askZone(z, q, depth)
		if err != nil {
			return nil, err
		}
		if m.Question == nil { // a referral
			if r.closest(q) == z {
				for _, known := range []map[question]told{r.denied, r.told} {
					if d, ok := known[q]; ok {
						return d.left(r.now()), nil
					}
				}
				return nil, errLame
			}
			continue
		}
		r.learn(q, m)
		return m, nil
	}
	return nil, errLame
}

// closest are the servers of the deepest zone that is known to hold q.
func (r *recursor) closest(q question) *servers {
	for n := locus(q.name, q.rrtype); ; n = parent(n) {
		if z := r.cuts[n]; z != nil && r.now().Before(z.until) {
			return z
		}
		if n == "." {
			return nil
		}
	}
}

// askZone asks the servers of z in turn. A message without a question is a referral, and has been learned.
func (r *recursor) askZone(z *servers, q question, depth int) (*dns.Msg, error) {
	addrs := slices.Clone(z.addrs)
	for _, ns := range z.names {
		addrs = append(addrs, r.glue[ns]...)
		if depth > 3 || slices.ContainsFunc(addrs, func(a string) bool { return !r.shun[q][a] }) {
			continue
		}
		for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
			m := new(dns.Msg)
			if r.resolve(m, question{ns, t}, depth+2) != nil {
				continue
			}
			for _, rr := range m.Answer {
				addrs = append(addrs, addrOf(rr)...)
			}
		}
	}
	slices.SortStableFunc(addrs, func(a, b string) int {
		return map[bool]int{true: 1}[r.shun[q][a]] - map[bool]int{true: 1}[r.shun[q][b]]
	})
	var failed *dns.Msg
	for _, addr := range addrs {
		m := r.server(addr, q)
		if m == nil {
			continue
		}
		if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError && m.Rcode != dns.RcodeYXDomain {
			failed = m
			continue
		}
		r.from[q] = append(r.from[q], addr)
		if !z.forward && r.refers(z, q, m, addr) {
			return &dns.Msg{}, nil
		}
		if !z.forward && len(m.Answer) == 0 && m.Rcode == 0 && !soaOrDenial(m.Ns) && group(m.Ns).find(z.zone, dns.TypeNS) == nil && len(m.Ns) > 0 {
			continue // it refers upwards
		}
		return r.scrub(z, q, m), nil
	}
	if failed != nil && z.forward {
		return failed, nil
	}
	return nil, errLame
}

func soaOrDenial(ns []dns.RR) bool {
	return slices.ContainsFunc(ns, func(rr dns.RR) bool {
		t := rr.Header().Rrtype
		return t == dns.TypeSOA || t == dns.TypeNSEC || t == dns.TypeNSEC3
	})
}

// server is what the server at addr answers, nil if nothing.
func (r *recursor) server(addr string, q question) *dns.Msg {
	for _, tcp := range []bool{false, true} {
		for _, g := range r.s.ranges {
			if r.step < g.from || r.step > g.to || len(g.addrs) > 0 && !slices.Contains(g.addrs, addr) {
				continue
			}
			for _, e := range g.entries {
				if !e.fits(q, tcp) {
					continue
				}
				if e.broken || e.adjust["do_not_answer"] {
					return nil
				}
				if e.reply["TC"] && !tcp {
					goto again
				}
				m := e.msg.Copy()
				m.Question = []dns.Question{{Name: q.name, Qtype: q.rrtype, Qclass: dns.ClassINET}}
				m.Authoritative = e.reply["AA"]
				return m
			}
		}
		return nil
	again:
	}
	return nil
}

// fits says whether a canned answer is one for q.
func (e *entry) fits(q question, tcp bool) bool {
	m := e.match
	switch {
	case m["tcp"] && !tcp, m["udp"] && tcp:
		return false
	case (m["qname"] || m["question"]) && e.q.Name != q.name:
		return false
	case (m["qtype"] || m["question"]) && e.q.Qtype != q.rrtype:
		return false
	case m["subdomain"] && !within(q.name, e.q.Name):
		return false
	}
	return true
}

// refers says whether m sends us to servers of a zone further down, and learns them.
func (r *recursor) refers(z *servers, q question, m *dns.Msg, addr string) bool {
	sets := group(m.Ns)
	if len(m.Answer) > 0 || m.Rcode != dns.RcodeSuccess {
		return false
	}
	for _, set := range sets {
		if set.rrtype != dns.TypeNS || len(set.rrs) == 0 || !below(set.name, z.zone) || !within(q.name, set.name) || sets.find(z.zone, dns.TypeSOA) != nil {
			continue
		}
		if m.Authoritative && q.name == set.name && q.rrtype == dns.TypeNS {
			return false
		}
		next := &servers{zone: set.name, until: r.now().Add(seconds(set.rrs[0].Header().Ttl))}
		for _, rr := range set.rrs {
			ns := dns.CanonicalName(rr.(*dns.NS).Ns)
			next.names = append(next.names, ns)
			for _, glue := range m.Extra {
				if dns.CanonicalName(glue.Header().Name) == ns && within(ns, z.zone) {
					next.addrs = append(next.addrs, addrOf(glue)...)
					r.glue[ns] = append(r.glue[ns], addrOf(glue)...)
				}
			}
		}
		r.cuts[set.name] = next
		r.learnDS(set.name, sets, next.until)
		ds := question{set.name, dns.TypeDS}
		r.from[ds] = append(r.from[ds], addr)
		return true
	}
	return false
}

// learnDS keeps what a referral says about the DS of child.
func (r *recursor) learnDS(child string, sets rrsets, until time.Time) {
	q := question{child, dns.TypeDS}
	m := &dns.Msg{Question: []dns.Question{{Name: child, Qtype: dns.TypeDS, Qclass: dns.ClassINET}}}
	proof := false
	for _, set := range sets {
		switch {
		case len(set.rrs) == 0:
		case set.rrtype == dns.TypeDS && set.name == child:
			m.Answer = append(m.Answer, set.all()...)
		case set.rrtype == dns.TypeNSEC || set.rrtype == dns.TypeNSEC3:
			m.Ns = append(m.Ns, set.all()...)
			proof = true
		}
	}
	switch {
	case len(m.Answer) > 0:
		m.Ns = nil
		r.told[q] = told{m, r.now(), until}
	case proof:
		r.denied[q] = told{m, r.now(), until}
	}
}

// scrub leaves out of an answer what the servers of z have no business to say.
func (r *recursor) scrub(z *servers, q question, m *dns.Msg) *dns.Msg {
	out := &dns.Msg{Question: m.Question}
	out.Rcode = m.Rcode
	keep := func(rr dns.RR) bool { return within(dns.CanonicalName(rr.Header().Name), z.zone) }
	alias := map[string]uint16{} // RFC 1034, 3.6.2: beside a CNAME there is nothing; of two that are there, the first is it
	for _, rr := range m.Answer {
		name, t := dns.CanonicalName(rr.Header().Name), rr.Header().Rrtype
		if sig, ok := rr.(*dns.RRSIG); ok {
			t = sig.TypeCovered
		}
		if q.rrtype != dns.TypeANY && (t == q.rrtype || t == dns.TypeCNAME) {
			if first, ok := alias[name]; ok && first != t {
				continue
			}
			alias[name] = t
		}
		if keep(rr) {
			out.Answer = append(out.Answer, rr)
		}
	}
	end := q.name
	for sets, i := group(out.Answer), 0; i < 12; i++ {
		set := sets.find(end, dns.TypeCNAME)
		if set == nil {
			break
		}
		end = dns.CanonicalName(set.rrs[0].(*dns.CNAME).Target)
	}
	if !within(end, z.zone) && !ends(group(m.Ns), end) { // what becomes of the alias is for others to say
		out.Rcode = dns.RcodeSuccess
	}
	for _, rr := range m.Ns {
		if keep(rr) || end != q.name && rr.Header().Rrtype != dns.TypeNS {
			out.Ns = append(out.Ns, rr)
		}
	}
	for _, rr := range m.Extra { // a signature counts in whichever section it is
		if sig, ok := rr.(*dns.RRSIG); ok && group(m.Answer).find(dns.CanonicalName(sig.Hdr.Name), sig.TypeCovered) != nil {
			out.Answer = append(out.Answer, rr)
		}
	}
	return out
}

// learn keeps an answer: RRset by RRset, or as a denial.
func (r *recursor) learn(q question, m *dns.Msg) {
	if len(m.Answer) == 0 {
		if q.rrtype != dns.TypeANY {
			if m.Rcode == dns.RcodeNameError && q.rrtype != dns.TypeDS && q.rrtype != dns.TypeDNSKEY {
				q.rrtype = dns.TypeNone
			}
			r.denied[q] = told{m, r.now(), r.now().Add(lifetimeOf(m.Ns))}
		}
		return
	}
	sets := group(m.Answer)
	if sets.dname(q.name) != nil { // with the CNAME that the server made of it
		r.told[q] = told{m, r.now(), r.now().Add(lifetimeOf(m.Answer))}
	}
	for _, set := range sets {
		if len(set.rrs) == 0 || set.rrtype == dns.TypeCNAME && sets.dname(set.name) != nil {
			continue
		}
		one := &dns.Msg{Question: []dns.Question{{Name: set.name, Qtype: set.rrtype, Qclass: dns.ClassINET}}, Answer: set.all()}
		if set.name == q.name || slices.ContainsFunc(set.sigs, func(s *dns.RRSIG) bool { return int(s.Labels) < dns.CountLabel(set.name) }) {
			for _, rr := range m.Ns { // the proof of an expansion belongs to it
				if t := rr.Header().Rrtype; t != dns.TypeSOA || len(set.sigs) == 0 {
					one.Ns = append(one.Ns, rr)
				}
			}
		}
		r.told[question{set.name, set.rrtype}] = told{one, r.now(), r.now().Add(lifetimeOf(set.rrs))}
	}
}

// lifetimeOf is the smallest TTL.
func lifetimeOf(rrs []dns.RR) time.Duration {
	ttl := uint32(3600)
	for _, rr := range rrs {
		ttl = min(ttl, rr.Header().Ttl)
		if soa, ok := rr.(*dns.SOA); ok {
			ttl = min(ttl, soa.Minttl)
		}
	}
	return seconds(ttl)
}

// addrOf is the address in an A or AAAA record.
func addrOf(rr dns.RR) []string {
	switch rr := rr.(type) {
	case *dns.A:
		return []string{canonicalAddr(rr.A.String())}
	case *dns.AAAA:
		return []string{canonicalAddr(rr.AAAA.String())}
	}
	return nil
}

// canonicalAddr is the one spelling of an address; what is none stays as it is.
func canonicalAddr(text string) string {
	text, _, _ = strings.Cut(text, "@")
	if a, err := netip.ParseAddr(text); err == nil {
		return a.String()
	}
	return text
}
