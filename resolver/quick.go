package resolver

import (
	"encoding/binary"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// quick answers a query from the cache, appended to out, where that takes no waiting: the reader of a socket does it himself, and nothing
// is allocated. False: nothing is said, and serve has to. It knows plain queries for plain names; all others, and all answers that are
// not simply released, are serve's. What both answer they answer alike.
func (s *Server) quick(packet, out []byte) (answer []byte, ok bool) {
	defer func() {
		if recover() != nil { // serve meets it again, and reports it
			answer, ok = nil, false
		}
	}()
	var buf [256]byte
	a, ok := readAsk(packet, buf[:0])
	if !ok || s.cfg.Observe {
		return nil, false
	}
	now := s.now()
	s.mu.Lock()
	e := s.cache.named(a.name, a.typ, now)
	var k *entry
	var room entry
	if e != nil && len(e.addrs) > 0 {
		k = s.cache.key(e.q.name, now, &room)
	}
	s.mu.Unlock()
	if e == nil {
		return nil, false
	}
	answer, watched, ok := s.compose(&a, packet, out, e, k, now)
	if !ok {
		return nil, false
	}
	s.stats.queries.Add(1)
	s.stats.cached.Add(1)
	if watched {
		s.stats.cached.Add(1)
		s.stats.watched.Add(1)
	}
	return answer, true
}

// compose is the answer with e, and k, which may be nil, for its key, if it may leave at once and is easily made. watched: because the Watcher says so.
func (s *Server) compose(a *asked, packet, out []byte, e, k *entry, now time.Time) (answer []byte, watched, ok bool) {
	if !e.good() || e.more != nil || e.bare || len(packet)+len(e.wire) > cap(out)-len(out) {
		return nil, false, false
	}
	claim, watched, ok := s.released(a, e, k, now)
	if !ok {
		return nil, false, false
	}
	if answer = a.answer(packet, out, e, e.ttls(now, claim)); len(answer)-len(out) > a.limit {
		return nil, false, false
	}
	return answer, watched, true
}

// released says whether the answer may leave at once, as resolve would have it, and for how long its addresses are claimed.
func (s *Server) released(a *asked, e, k *entry, now time.Time) (claim time.Duration, watched, ok bool) {
	interest := s.interest(e.q.name)
	if interest == Refuse || e.owner != e.q.name && s.interest(e.owner) != interest {
		return 0, false, false
	}
	if interest == SkipKey || !carriesAddresses(a.typ) || len(e.addrs) == 0 {
		return 0, false, true
	}
	if k == nil || k.owner != e.owner || e.status != dnssec.Secure {
		return 0, false, false
	}
	v, ok := s.cfg.Watcher.Known(a.found(e, k, now))
	if !ok || len(v.Withhold) > 0 {
		return 0, false, false
	}
	return v.TTL, true, true
}

// found is what the Watcher is told.
func (a *asked) found(e, k *entry, now time.Time) Found {
	f := Found{Asked: e.q.name, Owner: e.owner, Addrs: e.addrs, AddrStatus: e.status, Until: e.until(), AskedAt: now, AddrAt: now, KeyAt: now, CD: a.cd}
	f.key(k)
	return f
}

// asked is a query as quick reads it.
type asked struct {
	name       []byte // canonical, in presentation form
	typ        uint16
	end        int // of the question
	edns, do   bool
	rd, ad, cd bool
	limit      int // octets
}

// The flags of a message's head.
const (
	flagRD = 1 << 8
	flagAD = 1 << 5
	flagCD = 1 << 4
)

// readAsk reads a query with one question of class IN, about a name of letters, digits, hyphens and underscores, and with nothing else in
// it but an OPT record without options.
func readAsk(b, name []byte) (a asked, ok bool) {
	if len(b) < questionAt+5 {
		return a, false
	}
	flags := binary.BigEndian.Uint16(b[2:])
	extra := binary.BigEndian.Uint16(b[10:])
	if flags&^(flagRD|flagAD|flagCD) != 0 || binary.BigEndian.Uint16(b[4:]) != 1 || binary.BigEndian.Uint32(b[6:]) != 0 || extra > 1 {
		return a, false
	}
	a.rd, a.ad, a.cd = flags&flagRD != 0, flags&flagAD != 0, flags&flagCD != 0
	a.name, a.end, ok = readPlainName(b, questionAt, name)
	if !ok || a.end+4 > len(b) {
		return a, false
	}
	a.typ = binary.BigEndian.Uint16(b[a.end:])
	class := binary.BigEndian.Uint16(b[a.end+2:])
	a.end += 4
	if class != dns.ClassINET || a.typ == dns.TypeNone || a.typ == dns.TypeOPT || a.typ == dns.TypeRRSIG || a.typ >= 128 && a.typ <= dns.TypeANY {
		return a, false
	}
	a.limit = dns.MinMsgSize
	if extra == 0 {
		return a, len(b) == a.end
	}
	// RFC 6891, 6.1.2: root, type, size, extended rcode and version, flags, length of the options
	opt := b[a.end:]
	if len(opt) != 11 || opt[0] != 0 || binary.BigEndian.Uint16(opt[1:]) != dns.TypeOPT || opt[5] != 0 || opt[6] != 0 || opt[9] != 0 || opt[10] != 0 {
		return a, false
	}
	a.edns, a.do = true, opt[7]&0x80 != 0
	a.limit = min(max(int(binary.BigEndian.Uint16(opt[3:])), dns.MinMsgSize), maxUDPReply)
	return a, true
}

// readPlainName reads a name at off into presentation form, in lower case, and says where it ends. The root is not plain, nor is what
// would need escapes.
func readPlainName(b []byte, off int, name []byte) ([]byte, int, bool) {
	for off < len(b) && b[off] != 0 {
		n := int(b[off])
		if n > 63 || off+1+n >= len(b) || len(name)+n+1 > 254 {
			return nil, 0, false
		}
		for _, c := range b[off+1 : off+1+n] {
			switch {
			case 'A' <= c && c <= 'Z':
				c += 'a' - 'A'
			case 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_':
			default:
				return nil, 0, false
			}
			name = append(name, c)
		}
		name = append(name, '.')
		off += n + 1
	}
	return name, off + 1, len(name) > 0 && off < len(b)
}

// answer appends the answer with the records of e: reply and blank, without a dns.Msg.
func (a *asked) answer(packet, out []byte, e *entry, ttl ttls) []byte {
	start := len(out)
	out = append(out, packet[:a.end]...)
	b, answers, off := appendRecords(out, e.wire, 0, int(e.answers), a.typ, a.do, ttl)
	b, authorities, _ := appendRecords(b, e.wire, off, int(e.authorities), a.typ, a.do, ttl)
	head := b[start:]
	head[2] = 0x80 | head[2]&1                    // QR, RD
	head[3] = 0x80 | head[3]&flagCD | e.rcode&0xf // RA, CD
	if e.vouched(a.do, a.ad) {
		head[3] |= flagAD
	}
	binary.BigEndian.PutUint16(head[6:], uint16(answers))
	binary.BigEndian.PutUint16(head[8:], uint16(authorities))
	if a.edns {
		b = append(b, 0, 0, byte(dns.TypeOPT), udpSize>>8, udpSize&0xff, 0, 0, 0, 0, 0, 0)
		if a.do {
			b[len(b)-4] = 0x80
		}
	}
	return b
}
