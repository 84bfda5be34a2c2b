package upstream

import (
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// BADCOOKIE is asked again with the server's cookie that came with it, over UDP, and if that does not do, over TCP (RFC 7873, 5.3). Without our half it is a
// forgery, and moves us to TCP only.
func TestBadCookie(t *testing.T) {
	const fresh = "00112233445566778899aabbccddeeff"
	for _, c := range []struct {
		what     string
		reply    func(q *dns.Msg, c string) []byte
		udp, tcp int32 // queries for one question
	}{
		{"the cookie that comes is good", func(q *dns.Msg, c string) []byte {
			return reply(q, good, func(m *dns.Msg) {
				cookie(m, c[:16]+fresh)
				if c[16:] != fresh {
					m.Rcode, m.Answer = dns.RcodeBadCookie, nil
				}
			})
		}, 2, 0},
		{"no cookie is good", func(q *dns.Msg, c string) []byte {
			return reply(q, "", func(m *dns.Msg) { cookie(m, c[:16]+fresh); m.Rcode = dns.RcodeBadCookie })
		}, 2, 1},
		{"forged", func(q *dns.Msg, c string) []byte {
			return reply(q, "", func(m *dns.Msg) { cookie(m, "ffffffffffffffff"+fresh); m.Rcode = dns.RcodeBadCookie })
		}, 1, 1},
		{"without a cookie", func(q *dns.Msg, c string) []byte {
			return reply(q, "", func(m *dns.Msg) { m.Rcode = dns.RcodeBadCookie })
		}, 1, 1},
	} {
		f := newForwarder(t, func(q *dns.Msg, tcp bool) [][]byte {
			if tcp {
				return [][]byte{reply(q, good, nil)}
			}
			return [][]byte{c.reply(q, cookieOf(q))}
		})
		m, err := testRouter(t, f).Exchange(t.Context(), validatorQuery("bob.example."))
		if err != nil || len(m.Answer) != 1 || f.udp.Load() != c.udp || f.tcp.Load() != c.tcp {
			t.Errorf("%s: %v, %v, %d queries over UDP and %d over TCP", c.what, m, err, f.udp.Load(), f.tcp.Load())
		}
	}
}

// Our half is one for each server, and another one by way of another network (RFC 9018, 3).
func TestCookiesDoNotFollow(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	see := func(q *dns.Msg, _ bool) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		c := cookieOf(q)
		seen = append(seen, c)
		return [][]byte{reply(q, good, func(m *dns.Msg) { cookie(m, c[:16]+"0011223344556677") })}
	}
	one, two := newForwarder(t, see), newForwarder(t, see)
	r, other := testRouter(t, one), testRouter(t, two)
	for _, r := range []*Router{r, r, other} {
		if _, err := r.Exchange(t.Context(), validatorQuery("bob.example.")); err != nil {
			t.Fatal(err)
		}
	}
	r.Renew()
	if _, err := r.Exchange(t.Context(), validatorQuery("bob.example.")); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 4 || len(seen[0]) != 16 || seen[1] != seen[0]+"0011223344556677" || seen[2] == seen[0] || len(seen[3]) != 16 || strings.HasPrefix(seen[3], seen[0]) {
		t.Errorf("cookies %q", seen)
	}
}
