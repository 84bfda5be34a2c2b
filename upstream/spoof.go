package upstream

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// mixCase gives each letter of a name a random case (draft-vixie-dnsext-dns0x20): an answer repeats it, a guess does not.
func mixCase(name string) string {
	b := []byte(name)
	bits := make([]byte, (len(b)+7)/8)
	_, _ = rand.Read(bits) // never fails (crypto/rand)
	escaped := false
	for i, c := range b {
		switch {
		case escaped:
			escaped = false
		case c == '\\': // presentation form: \. and \DDD stay as they are
			escaped = true
		case (c|0x20 >= 'a' && c|0x20 <= 'z') && bits[i/8]>>(i%8)&1 == 1:
			b[i] = c ^ 0x20
		}
	}
	return string(b)
}

// restore puts q's id and letters back into the answer to out, so that the caller sees no trace of the mixing.
func restore(m, q, out *dns.Msg) {
	m.Id = q.Id
	m.Question = []dns.Question{q.Question[0]}
	asked, mixed := q.Question[0].Name, out.Question[0].Name
	if asked == mixed {
		return
	}
	// Servers compress names against the question, so its letters come back in owners and in the names of these types (RFC 3597, 4).
	for _, rrs := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range rrs {
			unmix(&rr.Header().Name, asked, mixed)
			switch r := rr.(type) {
			case *dns.CNAME:
				unmix(&r.Target, asked, mixed)
			case *dns.DNAME:
				unmix(&r.Target, asked, mixed)
			case *dns.NS:
				unmix(&r.Ns, asked, mixed)
			case *dns.PTR:
				unmix(&r.Ptr, asked, mixed)
			case *dns.MX:
				unmix(&r.Mx, asked, mixed)
			case *dns.SRV:
				unmix(&r.Target, asked, mixed)
			case *dns.SOA:
				unmix(&r.Ns, asked, mixed)
				unmix(&r.Mbox, asked, mixed)
			}
		}
	}
}

func unmix(name *string, asked, mixed string) {
	if n := sharedSuffix(*name, mixed); n > 0 {
		*name = (*name)[:len(*name)-n] + asked[len(asked)-n:]
	}
}

// sharedSuffix is how many octets of name, from its end and in whole labels, are written as in the mixed question.
func sharedSuffix(name, mixed string) int {
	i := 0
	for i < len(name) && i < len(mixed) && name[len(name)-1-i] == mixed[len(mixed)-1-i] {
		i++
	}
	for i > 1 { // back to the start of a label
		if k := len(name) - i; k == 0 || name[k-1] == '.' {
			break
		}
		i--
	}
	if i <= 1 {
		return 0
	}
	return i
}

// cookieJar is the DNS cookie shared with one server (RFC 7873). It keeps forgers off path out as the letters do, also for names
// with few letters. A server that never showed one is asked without insisting.
type cookieJar struct {
	client string // 8 octets in hexadecimal, drawn once for a server
	// Every exchange with the server reads and writes it in passing; so a mutex.
	mu     sync.Mutex
	server string // what the server gave, in hexadecimal; empty: it has shown no cookie yet
}

func newCookieJar() cookieJar {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return cookieJar{client: hex.EncodeToString(b)}
}

// add puts our half, and the server's when known, into a query.
func (j *cookieJar) add(opt *dns.OPT) {
	j.mu.Lock()
	defer j.mu.Unlock()
	opt.Option = append(opt.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: j.client + j.server})
}

// shows says whether an answer holds our half, if the server is one that gives it back (RFC 7873, 5.3). BADCOOKIE is not an
// answer to go by: it is asked again over TCP, where no cookie is needed.
func (j *cookieJar) shows(m *dns.Msg) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	c := cookieOf(m)
	if c == "" {
		return j.server == "" && m.Rcode != dns.RcodeBadCookie
	}
	return strings.HasPrefix(c, j.client) && m.Rcode != dns.RcodeBadCookie
}

// learn keeps the server's half of an answer that is surely its own; over TCP it may also have none any more.
func (j *cookieJar) learn(m *dns.Msg) {
	c := cookieOf(m)
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case c == "":
		j.server = ""
	case strings.HasPrefix(c, j.client) && len(c) >= 32 && len(c) <= 80: // 8 to 32 octets of the server
		j.server = c[16:]
	}
}

func cookieOf(m *dns.Msg) string {
	opt := m.IsEdns0()
	if opt == nil {
		return ""
	}
	for _, o := range opt.Option {
		if c, ok := o.(*dns.EDNS0_COOKIE); ok {
			return c.Cookie
		}
	}
	return ""
}
