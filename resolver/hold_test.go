package resolver

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"tacit/dnssec"
	"tacit/fair"
)

// bubble runs f in fake time with a server of hold 2 s.
func bubble(t *testing.T, z Lookuper, w Watcher, f func(t *testing.T, s *Server)) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(Config{Lookup: z, Watcher: w, Hold: 2 * time.Second})
		f(t, s)
		s.Close()
	})
}

// I5: whatever does not come, the client's answer comes within the hold.
func TestAnswersWithinTheHold(t *testing.T) {
	const bob = "bob.example."
	for _, c := range []struct {
		what string
		zone func(z *zone)
		w    *watcher
		typ  uint16
		want string
		took time.Duration
	}{
		{"the address never comes", func(z *zone) { z.slow(bob, 1, time.Hour) }, &watcher{}, 1,
			"SERVFAIL ede=No Reachable Authority", 2 * time.Second},
		{"the text never comes", func(z *zone) { z.slow(bob, 16, time.Hour) }, &watcher{}, 16,
			"SERVFAIL ede=No Reachable Authority", 2 * time.Second},
		{"the key never comes (A-32)", func(z *zone) {
			z.add(bob, 1, dnssec.Secure, a1)
			z.slow(bob, dns.TypeIPSECKEY, time.Hour)
		}, &watcher{}, 1, "SERVFAIL ede=DNSSEC Indeterminate", 2 * time.Second},
		{"the peer never answers", func(z *zone) {
			z.add(bob, 1, dnssec.Secure, a1)
			z.add(bob, dns.TypeIPSECKEY, dnssec.Secure, "bob.example. 300 IN "+key)
		}, &watcher{watch: func(ctx context.Context, f Found) Verdict {
			<-ctx.Done()
			return withholdAll(f.Addrs, 18, "no answer")
		}}, 1, "SERVFAIL ede=Prohibited", 2 * time.Second},
		{"an insecure address waits for no key", func(z *zone) {
			z.add(bob, 1, dnssec.Insecure, a1)
			z.slow(bob, dns.TypeIPSECKEY, time.Hour)
		}, &watcher{}, 1, "NOERROR 192.0.2.1", 0},
		{"address and key are asked side by side", func(z *zone) {
			z.add(bob, 1, dnssec.Secure, a1)
			z.slow(bob, 1, 100*time.Millisecond)
			z.slow(bob, dns.TypeIPSECKEY, 120*time.Millisecond)
		}, &watcher{}, 1, "NOERROR 192.0.2.1", 120 * time.Millisecond},
		{"the other family within what is left of the hold", func(z *zone) {
			z.add(bob, 1, dnssec.Secure, a1)
			z.add(bob, 28, dnssec.Secure, aaaa)
			z.slow(bob, 28, time.Second)
			z.add(bob, dns.TypeIPSECKEY, dnssec.Secure, "bob.example. 300 IN "+key)
		}, &watcher{watch: func(ctx context.Context, f Found) (v Verdict) {
			if f.Addrs[0].Is4() {
				time.Sleep(900 * time.Millisecond)
				v = withholdAll(f.Addrs, 18, "refused")
			}
			return v
		}}, 1, "NOERROR ede=Prohibited", time.Second},
		{"after the hold what is known of the other family still counts", func(z *zone) {
			z.add(bob, 1, dnssec.Secure, a1)
			z.add(bob, 28, dnssec.Secure, aaaa)
			z.add(bob, dns.TypeIPSECKEY, dnssec.Secure, "bob.example. 300 IN "+key)
		}, &watcher{watch: func(ctx context.Context, f Found) (v Verdict) {
			if f.Addrs[0].Is4() {
				<-ctx.Done()
				v = withholdAll(f.Addrs, 18, "no answer")
			}
			return v // a live claim answers at once
		}}, 1, "NOERROR ede=Prohibited", 2 * time.Second},
	} {
		t.Run(c.what, func(t *testing.T) {
			z := newZone()
			c.zone(z)
			bubble(t, z, c.w, func(t *testing.T, s *Server) {
				start := time.Now()
				r := ask(t, s, newQuery(bob, c.typ, flags{edns: true}))
				took := time.Since(start)
				if got := outcomeOf(r); got != c.want {
					t.Errorf("got %q, want %q", got, c.want)
				}
				if took < c.took || took > c.took+slack {
					t.Errorf("took %v, want %v and at most %v more", took, c.took, slack)
				}
			})
		})
	}
}

// One name's peer and upstream stand still; a hundred other names are answered at once.
func TestNoQueryWaitsForAnothers(t *testing.T) {
	z := newZone()
	z.add("dead.example.", 1, dnssec.Secure, "dead.example. 60 IN A 192.0.2.1")
	z.slow("stalled.example.", 1, time.Hour)
	for i := range 100 {
		n := fmt.Sprintf("n%d.example.", i)
		z.add(n, 1, dnssec.Secure, n+" 60 IN A 192.0.2.1") // the very address of the dead peer
	}
	w := &watcher{watch: func(ctx context.Context, f Found) (v Verdict) {
		if f.Asked == "dead.example." {
			<-ctx.Done()
			v = withholdAll(f.Addrs, 18, "no answer")
		}
		return v
	}}
	bubble(t, z, w, func(t *testing.T, s *Server) {
		var slow sync.WaitGroup
		for _, n := range []string{"dead.example.", "stalled.example."} {
			for range 50 {
				slow.Go(func() { ask(t, s, newQuery(n, 1, flags{})) })
			}
		}
		synctest.Wait()
		start := time.Now()
		for i := range 100 {
			r := ask(t, s, newQuery(fmt.Sprintf("n%d.example.", i), 1, flags{}))
			if len(r.Answer) != 1 {
				t.Errorf("n%d: got %s", i, outcomeOf(r))
			}
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("others waited %v", d)
		}
		slow.Wait()
		if n := z.count("stalled.example.", 1); n != 1 {
			t.Errorf("50 clients made %d lookups, want 1", n)
		}
	})
}

// A client that gives up early does not end the lookup for those who still wait.
func TestSharedLookupOutlivesItsFirstClient(t *testing.T) {
	z := newZone()
	z.add("bob.example.", 16, dnssec.Secure, `bob.example. 60 IN TXT "x"`)
	z.slow("bob.example.", 16, 3*time.Second)
	bubble(t, z, &watcher{}, func(t *testing.T, s *Server) {
		go ask(t, s, newQuery("bob.example.", 16, flags{}))
		time.Sleep(1500 * time.Millisecond)
		if got, want := outcomeOf(ask(t, s, newQuery("bob.example.", 16, flags{}))), `NOERROR "x"`; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if n := z.count("bob.example.", 16); n != 1 {
			t.Errorf("%d lookups, want 1", n)
		}
		if s.Stats().TimedOut != 1 {
			t.Errorf("stats %+v, want one that timed out", s.Stats())
		}
	})
}

func TestCapOnQueriesInFlight(t *testing.T) {
	z := newZone()
	z.slow("bob.example.", 16, time.Hour)
	bubble(t, z, &watcher{}, func(t *testing.T, s *Server) {
		s.slots = fair.New(4) // of which one user has two
		for range 2 {
			go ask(t, s, newQuery("bob.example.", 16, flags{}))
		}
		synctest.Wait()
		if got, want := outcomeOf(ask(t, s, newQuery("bob.example.", 16, flags{edns: true}))), "SERVFAIL ede=Not Ready"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if s.Stats().Overload != 1 {
			t.Errorf("stats %+v, want one over the cap", s.Stats())
		}
		time.Sleep(3 * time.Second)
	})
}

// Close lets held queries go at once, without their addresses.
func TestCloseReleasesNothing(t *testing.T) {
	z := newZone()
	z.add("bob.example.", 1, dnssec.Secure, a1)
	z.slow("bob.example.", dns.TypeIPSECKEY, time.Hour)
	bubble(t, z, &watcher{}, func(t *testing.T, s *Server) {
		go func() {
			time.Sleep(100 * time.Millisecond)
			s.Close()
		}()
		start := time.Now()
		if got, want := outcomeOf(ask(t, s, newQuery("bob.example.", 1, flags{}))), "SERVFAIL"; got != want || time.Since(start) > time.Second {
			t.Errorf("got %q after %v, want %q at once", got, time.Since(start), want)
		}
	})
}
