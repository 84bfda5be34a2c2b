package resolver

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
	"tacit/fair"
)

// from is a query of a user, who is behind a port here.
func from(t testing.TB, s *Server, user uint16, name string) string {
	t.Helper()
	b, err := newQuery(name, dns.TypeTXT, flags{edns: true}).Pack()
	if err != nil {
		t.Error(err)
	}
	r := new(dns.Msg)
	if err := r.Unpack(s.serve(b, origin{client: netip.AddrPortFrom(loop, user), server: netip.AddrPortFrom(loop, 53)})); err != nil {
		t.Error(err)
	}
	return outcomeOf(r)
}

// A user who floods with names that never come takes what he may, and no more: another's lookups are answered at once all the while, also of a name that
// the flood has begun before.
//
//tacit:attack A-36 a user who floods with names that nobody answers for has his share of the places; another's lookups begin at once, and wait for nothing that the flood has begun
func TestOneUserFloods(t *testing.T) {
	z := newZone()
	text := func(name string) { z.add(name, 16, dnssec.Secure, name+` 60 IN TXT "x"`) }
	var asked atomic.Int32
	users := func(_ bool, client, _ netip.AddrPort) string {
		asked.Add(1)
		return fmt.Sprint(client.Port())
	}
	bubble(t, z, &watcher{}, func(t *testing.T, s *Server) {
		s.cfg.Who = users
		s.slots, s.under = fair.New(400), fair.New(400)
		for i := range 10 { // nobody needs to know who
			text(fmt.Sprintf("quiet%d.example.", i))
			if got := from(t, s, 1000, fmt.Sprintf("quiet%d.example.", i)); got != `NOERROR "x"` {
				t.Errorf("before: %q", got)
			}
		}
		if asked.Load() != 0 {
			t.Errorf("it was asked %d times whose a query is, with nobody else there", asked.Load())
		}
		for i := range 2000 {
			z.slow(fmt.Sprintf("n%d.example.", i), 16, time.Hour)
		}
		for i := range 50 {
			text(fmt.Sprintf("other%d.example.", i))
		}
		z.m[question{"bob.example.", 16}] = func(context.Context) (dnssec.Answer, error) { // each lookup's records are its own
			return answer("bob.example.", 16, dnssec.Secure, `bob.example. 60 IN TXT "x"`), nil
		}
		z.slow("bob.example.", 16, time.Second)
		go from(t, s, 1000, "bob.example.") // before there is a crowd
		for i := range 2000 {
			go from(t, s, 1000, fmt.Sprintf("n%d.example.", i))
		}
		synctest.Wait()
		if used := s.slots.Used(); used < 200 || used > 300 {
			t.Errorf("%d places of 400 are taken", used)
		}
		for i := range 50 {
			began := time.Now()
			name := fmt.Sprintf("other%d.example.", i)
			if got := from(t, s, 1001, name); got != `NOERROR "x"` || time.Since(began) > 0 {
				t.Fatalf("%s: %q after %v", name, got, time.Since(began))
			}
		}
		if got := from(t, s, 1001, "bob.example."); got != `NOERROR "x"` || z.count("bob.example.", 16) != 2 {
			t.Errorf("a name that the flood has begun: %q, looked up %d times", got, z.count("bob.example.", 16))
		}
		time.Sleep(5 * time.Second)
		if s.slots.Used() != 0 || s.under.Used() != 0 || len(s.flights) != 0 {
			t.Errorf("%d queries and %d lookups are left of the flood", s.slots.Used(), s.under.Used())
		}
		asked.Store(0)
		if got := from(t, s, 1000, "quiet0.example."); got != `NOERROR "x"` || asked.Load() != 0 {
			t.Errorf("after: %q, and it was asked %d times whose it is", got, asked.Load())
		}
	})
}
