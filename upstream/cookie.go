package upstream

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// cookieJar is the DNS cookie shared with one server (RFC 7873). It keeps forgers off path out as the letters do, also for names
// with few letters. A server that never showed one is asked without insisting.
type cookieJar struct {
	// Every exchange with the server reads and writes it in passing; so a mutex.
	mu     sync.Mutex
	client string // 8 octets in hexadecimal, drawn for this server and network
	server string // what the server gave, in hexadecimal; empty: it has shown no cookie yet
}

func newCookieJar() cookieJar { return cookieJar{client: drawCookie()} }

func drawCookie() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

// renew begins anew with another half of ours.
func (j *cookieJar) renew() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.client, j.server = drawCookie(), ""
}

// add puts our half, and the server's when known, into a query.
func (j *cookieJar) add(opt *dns.OPT) {
	j.mu.Lock()
	defer j.mu.Unlock()
	opt.Option = append(opt.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: j.client + j.server})
}

// shows says whether an answer holds our half, if the server is one that gives it back (RFC 7873, 5.3). BADCOOKIE is no answer
// to go by.
func (j *cookieJar) shows(m *dns.Msg) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	c := cookieOf(m)
	if c == "" {
		return j.server == "" && m.Rcode != dns.RcodeBadCookie
	}
	return strings.HasPrefix(c, j.client) && m.Rcode != dns.RcodeBadCookie
}

// learn keeps the server's half of an answer with ours, and says whether there was one.
func (j *cookieJar) learn(m *dns.Msg) bool {
	c := cookieOf(m)
	j.mu.Lock()
	defer j.mu.Unlock()
	if !strings.HasPrefix(c, j.client) || len(c) < 32 || len(c) > 80 { // 8 to 32 octets of the server
		return false
	}
	j.server = c[16:]
	return true
}

// lost is told an answer that is surely the server's: it may have no cookies any more.
func (j *cookieJar) lost(m *dns.Msg) {
	if cookieOf(m) == "" {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.server = ""
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
