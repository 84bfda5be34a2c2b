package resolver

import (
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

const (
	maxEDE  = 3    // reasons in one answer
	maxText = 200  // octets of a reason
	udpSize = 1232 // EDNS (RFC 6891); what fits every path of IPv6 unfragmented
)

// refuse answers what is no query for us: other opcodes, EDNS versions, classes and meta types; nil is a query.
func refuse(req *dns.Msg) *dns.Msg {
	switch {
	case req.Opcode != dns.OpcodeQuery:
		return failure(req, dns.RcodeNotImplemented, dnssec.NoEDE, "")
	case len(req.Question) != 1:
		return failure(req, dns.RcodeFormatError, dnssec.NoEDE, "")
	}
	if opt := req.IsEdns0(); opt != nil && opt.Version() != 0 {
		return failure(req, dns.RcodeBadVers, dnssec.NoEDE, "")
	}
	q := req.Question[0]
	switch {
	case q.Qtype == dns.TypeNone || q.Qtype == dns.TypeOPT || q.Qclass == 0:
		return failure(req, dns.RcodeFormatError, dnssec.NoEDE, "")
	case q.Qclass != dns.ClassINET:
		return failure(req, dns.RcodeRefused, dns.ExtendedErrorCodeNotSupported, "class IN only")
	case q.Qtype >= 128 && q.Qtype < dns.TypeANY: // meta types (RFC 6895, 3.1): transfers, TSIG, TKEY
		return failure(req, dns.RcodeNotImplemented, dns.ExtendedErrorCodeNotSupported, "type "+dns.Type(q.Qtype).String())
	}
	return nil
}

// failure is an answer without records: an rcode and, for clients with EDNS, a reason.
func failure(req *dns.Msg, rcode int, ede uint16, why string) *dns.Msg {
	r := blank(req)
	r.Rcode = rcode
	if why != "" && ede != dnssec.NoEDE {
		addEDE(r, ede, why)
	}
	return r
}

// blank is the head of an answer: the client's id and question, letter for letter, and EDNS where the client has it. RFC 6891,
// 6.1.1: an OPT record in a query MUST be answered by one, and in no other case. RFC 3225, 3: the DO bit is copied.
func blank(req *dns.Msg) *dns.Msg {
	r := new(dns.Msg)
	r.Id, r.Response, r.Opcode = req.Id, true, req.Opcode
	r.RecursionDesired, r.RecursionAvailable, r.CheckingDisabled = req.RecursionDesired, true, req.CheckingDisabled
	r.Question = req.Question
	r.Compress = true
	if opt := req.IsEdns0(); opt != nil {
		r.SetEdns0(udpSize, opt.Do())
	}
	return r
}

// addEDE adds an extended error (RFC 8914) if the client can have one.
func addEDE(r *dns.Msg, code uint16, why string) {
	if opt := r.IsEdns0(); opt != nil {
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: code, ExtraText: shorten(why)})
	}
}

func clearEDE(r *dns.Msg) {
	if opt := r.IsEdns0(); opt != nil {
		opt.Option = nil
	}
}

// shorten bounds a reason without cutting a character of UTF-8 in two.
func shorten(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + "..."
}

// reply is the upstream's answer without the records that keep refuses (nil: all stay) and, for clients that did not ask for
// them, without DNSSEC's. TTLs are counted down and capped; nothing is added or changed (I6). AD: see vouched.
func (s *Server) reply(q *query, e *entry, keep func(dns.RR) bool, ttlCap time.Duration) *dns.Msg {
	if !e.answered {
		return failure(q.req, dns.RcodeServerFailure, e.ede(), e.why())
	}
	r := blank(q.req)
	r.Rcode = int(e.rcode)
	ttl := e.ttls(s.now(), ttlCap)
	// Whoever asked first gave the cached records their letters; each client gets its own (0x20 is for stubs too).
	asked := q.req.Question[0].Name
	section := func(rrs []dns.RR) []dns.RR {
		return slices.DeleteFunc(rrs, func(rr dns.RR) bool {
			h := rr.Header()
			if strings.EqualFold(h.Name, asked) {
				h.Name = asked
			}
			h.Ttl = ttl.of(h.Ttl)
			return keep != nil && !keep(rr) || !q.do && dnssecType(h.Rrtype, q.typ)
		})
	}
	answer, authority := e.sections()
	r.Answer, r.Ns = section(answer), section(authority)
	r.AuthenticatedData = e.vouched(q.do, q.ad)
	if e.more != nil { // the client gets the reasons that the upstream gave us
		for _, o := range e.more.given {
			addEDE(r, o.InfoCode, o.ExtraText)
		}
	}
	return r
}

// vouched: AD is set when we validated, and the client asked for it with AD or DO (RFC 6840, 5.7 and 5.8).
func (e *entry) vouched(do, ad bool) bool { return e.status == dnssec.Secure && (do || ad) }

// ttls is what becomes of the TTLs of an entry in an answer.
type ttls struct{ age, limit uint32 }

// ttls has three limits on every TTL: its age in the cache, the end of what proves it, and the Watcher's claim. No client may keep an
// address longer than policy stands on it (TRUST.md, R9).
func (e *entry) ttls(now time.Time, claim time.Duration) ttls {
	age := max(0, now.Sub(epoch)-e.at)
	limit := time.Duration(1<<31-1) * time.Second
	if claim > 0 {
		limit = min(limit, claim)
	}
	if e.proven > 0 {
		limit = min(limit, max(0, e.proven-age))
	}
	if e.status == dnssec.Bogus || e.status == dnssec.Indeterminate {
		limit = min(limit, failureTime)
	}
	return ttls{uint32(min(age/time.Second, 1<<31-1)), uint32(limit / time.Second)}
}

// of takes the age off a TTL, without going below 0. One with the highest bit set is 0 (RFC 2181, 8).
func (t ttls) of(ttl uint32) uint32 {
	if ttl > 1<<31-1 || t.age >= ttl {
		return 0
	}
	return min(ttl-t.age, t.limit)
}

// dnssecType says whether records of a type are there for validators only, and were not themselves asked for (RFC 4035, 3.2.1).
func dnssecType(t, asked uint16) bool {
	if t == asked || asked == dns.TypeANY {
		return false
	}
	return t == dns.TypeRRSIG || t == dns.TypeNSEC || t == dns.TypeNSEC3
}

// covered is the type of a record, or the type that a signature is of.
func covered(rr dns.RR) uint16 {
	if sig, ok := rr.(*dns.RRSIG); ok {
		return sig.TypeCovered
	}
	return rr.Header().Rrtype
}
