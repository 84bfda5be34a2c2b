package resolver

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
)

// A denial that is kept without its records ends when it would with them, and says the same to the Watcher.
func TestNoKeyIsTheDenial(t *testing.T) {
	c, now := newCache(), time.Now()
	a := denial("bob.example.", dns.TypeIPSECKEY, dnssec.Secure)
	a.Until, a.Rcode = now.Add(20*time.Second), dns.RcodeNameError
	full := newEntry(question{"bob.example.", dns.TypeIPSECKEY}, a, now)
	c.put(full.withoutProof())
	got := c.get(full.q, now.Add(20*time.Second-noKeyResolution))
	if got == nil || !got.bare || !got.good() || got.owner != full.owner || !got.denied || got.rcode != full.rcode || got.until().Sub(full.until()).Abs() > noKeyResolution {
		t.Fatalf("%+v, want %+v", got, full)
	}
	var f, g Found
	f.key(full)
	g.key(got)
	if g.Until = f.Until; fmt.Sprint(f) != fmt.Sprint(g) {
		t.Errorf("%+v, want %+v", g, f)
	}
	if e := c.get(full.q, now.Add(20*time.Second)); e != nil || len(c.none.m) > 0 || c.none.bytes != 0 {
		t.Errorf("stale: %+v", e)
	}
	c.put(full.withoutProof())
	c.put(full) // with its records, for who asks for them
	if e := c.get(full.q, now); e != full || len(c.none.m) > 0 {
		t.Errorf("%+v", e)
	}
}

// What is kept is bounded in number and size, and what has ended goes first.
func TestNoKeysAreBounded(t *testing.T) {
	c, now := newCache(), time.Now()
	put := func(name string, life time.Duration) {
		c.put(&entry{q: question{name, dns.TypeIPSECKEY}, owner: name, at: now.Sub(epoch), life: life, status: dnssec.Secure, answered: true, denied: true, bare: true})
	}
	put("old.", time.Second)
	now = now.Add(time.Minute)
	for i := range maxNoKeys {
		put(fmt.Sprint(i), time.Hour)
	}
	if n := len(c.none.m); n > maxNoKeys || n < maxNoKeys*7/8 || c.get(question{"old.", dns.TypeIPSECKEY}, now.Add(-time.Minute)) != nil {
		t.Errorf("%d are kept, the old one among them", n)
	}
	long := strings.Repeat("x", 240)
	for i := range maxNoKeys {
		put(fmt.Sprint(long, i), time.Hour)
	}
	total := 0
	for name := range c.none.m {
		total += noKeyOverhead + len(name)
	}
	if total != c.none.bytes || total > maxNoKeyBytes {
		t.Errorf("%d octets counted of %d, want at most %d", c.none.bytes, total, maxNoKeyBytes)
	}
}
