package resolver

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
	"tacit/ipseckey"
)

// maxKeys is how many keys of an RRset the Watcher is given, usable ones first, by precedence.
const maxKeys = 8

// entryOverhead is the memory of an entry beside its records and its name, roughly, in octets.
const entryOverhead = 200

// epoch is when time began here.
var epoch = time.Now()

// question is a canonical name and a type of class IN.
type question struct {
	name string
	typ  uint16
}

// entry is what one lookup brought: filtered, read and packed once. It never changes, but for its place in the cache. There are many:
// what few have is in more.
type entry struct {
	newer, older *entry // in the cache

	q      question
	owner  string        // where the chain of aliases ended
	at     time.Duration // when it came, since epoch
	life   time.Duration // how long the cache keeps it
	proven time.Duration // for how long it is proven; 0: nothing says
	wire   string        // the records that may be released, packed: the answer section's, then the authority section's
	addrs  []netip.Addr  // the addresses in it, of A and AAAA
	more   *details

	answers, authorities uint16 // how many records there are
	status               dnssec.Status
	rcode                uint8
	answered             bool // there was a message
	denied               bool // it says that there are no such records
	unclocked            bool // see dnssec.Answer
	bare                 bool // a denial whose records are not kept: see withoutProof
}

// details are what an entry may have besides.
type details struct {
	why    string // of what is no proven answer, and of keys
	ede    uint16
	given  []*dns.EDNS0_EDE // the upstream's own reasons
	groups []group          // of hints
	keys   []ipseckey.Record
	keyWhy string
}

// group is the addresses of one owner in an answer: of the final owner for A and AAAA, of each TargetName for hints.
type group struct {
	owner string
	addrs []netip.Addr
	hint  bool
}

// newEntry filters a validated answer to what may be released, and reads its addresses or keys.
func newEntry(q question, a dnssec.Answer, now time.Time) *entry {
	e := &entry{q: q, owner: cmp.Or(a.Owner, q.name), at: now.Sub(epoch), status: a.Status, denied: a.Denied, unclocked: a.Unclocked}
	if e.owner == q.name {
		e.owner = q.name // one string, not two
	}
	a.Owner = e.owner
	if !a.Until.IsZero() {
		e.proven = max(1, a.Until.Sub(now))
	}
	if a.Rcode > 0xf { // an extended one is of the hop to the upstream
		e.rcode = dns.RcodeServerFailure
	} else {
		e.rcode = uint8(a.Rcode)
	}
	var answer []dns.RR
	m := details{ede: a.EDE}
	if a.Msg != nil {
		answer = answerSection(q.typ, &a)
		if err := e.pack(answer, authoritySection(&a)); err != nil {
			a.Msg, a.Status, a.Why, m.ede = nil, dnssec.Indeterminate, err.Error(), dns.ExtendedErrorCodeInvalidData
			e.status, answer = a.Status, nil
		} else {
			e.answered, m.given = true, given(a.Msg)
		}
	}
	if gs := groups(e.owner, answer); len(gs) == 1 && !gs[0].hint && gs[0].owner == e.owner {
		e.addrs = slices.Clip(gs[0].addrs)
	} else {
		m.groups = gs
	}
	if q.typ == dns.TypeIPSECKEY && a.Status >= dnssec.Insecure {
		m.keys, m.keyWhy = Keys(a.RRs)
	}
	if !e.good() || q.typ == dns.TypeIPSECKEY && (a.Status != dnssec.Secure || !a.Denied) {
		m.why = a.Why
	}
	if m.why != "" || m.given != nil || m.groups != nil || m.keys != nil || !e.good() {
		e.more = &m
	}
	e.life = lifetime(&a, answer, now)
	return e
}

// pack keeps the records of both sections.
func (e *entry) pack(answer, authority []dns.RR) error {
	b, err := packRecords(nil, e.q.name, answer)
	if err != nil {
		return err
	}
	if b, err = packRecords(b, e.q.name, authority); err != nil {
		return err
	}
	e.wire, e.answers, e.authorities = string(b), uint16(len(answer)), uint16(len(authority))
	return nil
}

// sections are the records again.
func (e *entry) sections() (answer, authority []dns.RR) {
	answer, n := unpackRecords(e.q, e.wire, int(e.answers))
	authority, _ = unpackRecords(e.q, e.wire[n:], int(e.authorities))
	return answer, authority
}

// withoutProof is the entry of a proven denial without its records, for those who only want to know: nobody but the Watcher asks for
// most keys: see noKeys. What is no such denial stays as it is.
func (e *entry) withoutProof() *entry {
	if e.q.typ != dns.TypeIPSECKEY || !e.good() || !e.denied || e.status != dnssec.Secure || e.more != nil {
		return e
	}
	bare := *e
	bare.wire, bare.answers, bare.authorities, bare.bare = "", 0, 0, true
	return &bare
}

// good says whether the entry is data or a denial, and not a failure.
func (e *entry) good() bool { return e.status >= dnssec.Insecure && e.answered }

// size is the memory that it takes, roughly, in octets.
func (e *entry) size() int {
	n := entryOverhead + len(e.q.name) + len(e.wire) + 24*len(e.addrs)
	if e.more != nil {
		n += entryOverhead + len(e.more.why) + len(e.wire) // what was read of the records is about as large as they
	}
	return n
}

// until is when what proves it ends; zero if nothing says.
func (e *entry) until() time.Time {
	if e.proven == 0 {
		return time.Time{}
	}
	return epoch.Add(e.at + e.proven)
}

// groups are the addresses by owner.
func (e *entry) groups() []group {
	switch {
	case len(e.addrs) > 0:
		return []group{{owner: e.owner, addrs: e.addrs}}
	case e.more != nil:
		return e.more.groups
	}
	return nil
}

// why is the reason of what is no proven answer.
func (e *entry) why() string {
	if e.more == nil {
		return ""
	}
	return e.more.why
}

// ede is the entry's own code, or the general one of its status (RFC 8914, 4).
func (e *entry) ede() uint16 {
	code := uint16(dnssec.NoEDE)
	if e.more != nil {
		code = e.more.ede
	}
	switch {
	case e.status == dnssec.Bogus && (code == dnssec.NoEDE || code == 0):
		return dns.ExtendedErrorCodeDNSBogus
	case code == dnssec.NoEDE:
		return dns.ExtendedErrorCodeDNSSECIndeterminate
	}
	return code
}

// given are the reasons in the upstream's message.
func given(m *dns.Msg) (es []*dns.EDNS0_EDE) {
	opt := m.IsEdns0()
	if opt == nil {
		return nil
	}
	for _, o := range opt.Option {
		if e, ok := o.(*dns.EDNS0_EDE); ok && len(es) < maxEDE {
			es = append(es, e)
		}
	}
	return es
}

// answerSection keeps the alias chain and the RRset asked for. Of a secure answer the RRset is the one that was verified;
// whatever else stands in the upstream's message was not asked for and leaves nobody's hands here.
func answerSection(typ uint16, a *dnssec.Answer) []dns.RR {
	var keep []dns.RR
	placed := false
	// Where the RRset stands in the message does not matter, and its order is kept: clients take the first address, and servers
	// turn the order on purpose.
	for _, rr := range a.Msg.Answer {
		h, t := rr.Header(), rr.Header().Rrtype
		if sig, ok := rr.(*dns.RRSIG); ok {
			t = sig.TypeCovered
		}
		switch {
		case typ == dns.TypeANY && a.Owner == dns.CanonicalName(h.Name):
		case t == typ && a.Owner == dns.CanonicalName(h.Name):
			if a.Status == dnssec.Secure && h.Rrtype == typ {
				if !placed {
					keep, placed = append(keep, a.RRs...), true
				}
				continue
			}
		case t == dns.TypeCNAME && onChain(a, dns.CanonicalName(h.Name)):
		case t == dns.TypeDNAME && aboveChain(a, dns.CanonicalName(h.Name)):
		default:
			continue
		}
		keep = append(keep, rr)
	}
	return keep
}

func onChain(a *dnssec.Answer, name string) bool {
	return name == a.Name || slices.Contains(a.Chain, name)
}

func aboveChain(a *dnssec.Answer, name string) bool {
	return dns.IsSubDomain(name, a.Name) || slices.ContainsFunc(a.Chain, func(n string) bool { return dns.IsSubDomain(name, n) })
}

// authoritySection keeps proofs, and the SOA of a denial. Name servers and the additional section are left out: their addresses
// are nobody's answer, and AD would vouch for them (RFC 4035, 3.2.3).
func authoritySection(a *dnssec.Answer) []dns.RR {
	var keep []dns.RR
	for _, rr := range a.Msg.Ns {
		t := rr.Header().Rrtype
		if sig, ok := rr.(*dns.RRSIG); ok {
			t = sig.TypeCovered
		}
		if t == dns.TypeNSEC || t == dns.TypeNSEC3 || t == dns.TypeSOA && len(a.RRs) == 0 {
			keep = append(keep, rr)
		}
	}
	return keep
}

// groups collects addresses and hints by owner, in order of appearance, without repeats. A and AAAA make one group, at the final
// owner; service records one for each TargetName, whose key may be another's.
func groups(owner string, rrs []dns.RR) []group {
	var gs []group
	seen := map[string]int{}
	for _, rr := range rrs {
		addrs, hint := addresses(rr)
		if len(addrs) == 0 {
			continue
		}
		o := owner
		if hint {
			o = target(rr, owner)
		}
		i, ok := seen[o]
		if !ok {
			i, seen[o] = len(gs), len(gs)
			gs = append(gs, group{owner: o, hint: hint})
		}
		gs[i].addrs = append(gs[i].addrs, addrs...)
	}
	for i := range gs {
		gs[i].addrs = unique(gs[i].addrs)
	}
	return gs
}

func unique(as []netip.Addr) []netip.Addr {
	seen := make(map[netip.Addr]bool, len(as))
	return slices.DeleteFunc(as, func(a netip.Addr) bool {
		was := seen[a]
		seen[a] = true
		return was
	})
}

// carriesAddresses says whether records of a type hold addresses that applications connect to.
func carriesAddresses(typ uint16) bool {
	return typ == dns.TypeA || typ == dns.TypeAAAA || typ == dns.TypeHTTPS || typ == dns.TypeSVCB
}

// addresses returns the addresses in a record, and whether they are hints (RFC 9460, 7.3).
func addresses(rr dns.RR) (as []netip.Addr, hint bool) {
	switch r := rr.(type) {
	case *dns.A:
		return appendIP(nil, r.A), false
	case *dns.AAAA:
		return appendIP(nil, r.AAAA), false
	case *dns.HTTPS:
		return hints(&r.SVCB), true
	case *dns.SVCB:
		return hints(r), true
	}
	return nil, false
}

func hints(r *dns.SVCB) (as []netip.Addr) {
	for _, kv := range r.Value {
		switch h := kv.(type) {
		case *dns.SVCBIPv4Hint:
			for _, ip := range h.Hint {
				as = appendIP(as, ip)
			}
		case *dns.SVCBIPv6Hint:
			for _, ip := range h.Hint {
				as = appendIP(as, ip)
			}
		}
	}
	return as
}

// appendIP takes ::ffff:0:0/96 for what a connection to it is: IPv4.
func appendIP(as []netip.Addr, ip net.IP) []netip.Addr {
	if a, ok := netip.AddrFromSlice(ip); ok {
		as = append(as, a.Unmap())
	}
	return as
}

// target is a service record's TargetName: "." is the owner of the record (RFC 9460, 2.5.2).
func target(rr dns.RR, owner string) string {
	t := "."
	switch r := rr.(type) {
	case *dns.HTTPS:
		t = r.Target
	case *dns.SVCB:
		t = r.Target
	}
	if t == "." || t == "" {
		return owner
	}
	return dns.CanonicalName(t)
}

// Keys reads IPSECKEY records, by precedence, usable ones first, at most eight. One that does not parse is kept as unusable, so that a
// set of broken records is not taken for a denial.
func Keys(rrs []dns.RR) (keys []ipseckey.Record, why string) {
	for _, rr := range rrs {
		k, err := parseKey(rr)
		if err != nil {
			k.Unusable = err.Error()
		}
		if k.Unusable != "" {
			why = k.Unusable
		}
		keys = append(keys, k)
	}
	slices.SortStableFunc(keys, func(a, b ipseckey.Record) int {
		if (a.Unusable == "") != (b.Unusable == "") {
			if a.Unusable == "" {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Precedence, b.Precedence)
	})
	return keys[:min(len(keys), maxKeys)], why
}

func parseKey(rr dns.RR) (ipseckey.Record, error) {
	rdata, err := dnssec.RDATA(rr)
	if err != nil {
		return ipseckey.Record{}, err
	}
	return ipseckey.Parse(rdata)
}
