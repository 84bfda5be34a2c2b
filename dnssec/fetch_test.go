package dnssec

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// roundTrips is how many round trips to the upstream a lookup waits for, and how many questions it asks.
func roundTrips(t *testing.T, w *world, v *Validator, name string, rrtype uint16) (trips int, questions []string) {
	t.Helper()
	w.mu.Lock()
	w.queries = nil
	w.mu.Unlock()
	start := time.Now()
	if _, err := v.Lookup(context.Background(), name, rrtype); err != nil {
		t.Fatal(err)
	}
	trips = int(time.Since(start) / w.delay)
	synctest.Wait()
	time.Sleep(10 * w.delay) // what nobody waited for
	w.mu.Lock()
	defer w.mu.Unlock()
	return trips, slices.Clone(w.queries)
}

func TestRoundTrips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a := hierarchy(t)
		w.delay = 10 * time.Millisecond
		v := New(w, a, WithClock(clock))
		for _, tt := range []struct {
			name             string
			rrtype           uint16
			trips, questions int
			why              string
		}{
			{"bob.signed.test.", dns.TypeA, 1, 6, "nothing known: A, and DNSKEY and DS of every zone at once"},
			{"bob.signed.test.", dns.TypeIPSECKEY, 1, 1, "keys known"},
			{"none.signed.test.", dns.TypeIPSECKEY, 1, 1, "keys known, a denial"},
			{"any.wild.signed.test.", dns.TypeA, 1, 1, "keys known, a wildcard"},
			{"www.plain.test.", dns.TypeA, 1, 3, "the top-level domain known: A, and DS and DNSKEY of plain.test."},
			{"other.plain.test.", dns.TypeA, 1, 1, "known to be unsigned"},
			{"www.sub.signed.test.", dns.TypeA, 2, 3, "a zone below a known one: its signer is in the answer"},
			{"www.sub.signed.test.", dns.TypeMX, 1, 1, "keys known"},
			{"nowhere.", dns.TypeA, 1, 3, "no top-level domain"},
		} {
			trips, questions := roundTrips(t, w, v, tt.name, tt.rrtype)
			if trips != tt.trips || len(questions) != tt.questions {
				t.Errorf("%s %s (%s): %d round trips, questions %v; want %d and %d", tt.name, typeName(tt.rrtype), tt.why, trips, questions, tt.trips, tt.questions)
			}
		}
	})
}

// A top-level domain may have hosts, as private ones do: after the first of them nobody asks whether the others are zones.
func TestHostsOfATopLevelDomain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a := newWorld(t, newZone(t, ".", nsec, dns.ED25519, ""), newZone(t, "lan.", nsec, dns.ED25519, "a.lan. 600 IN A 192.0.2.1\nb.lan. 600 IN A 192.0.2.2"),
			newZone(t, "sub.lan.", nsec, dns.ED25519, "sub.lan. 600 IN A 192.0.2.3\nwww.sub.lan. 600 IN A 192.0.2.4"))
		w.delay = 10 * time.Millisecond
		v := New(w, a, WithClock(clock))
		for _, tt := range []struct {
			name             string
			trips, questions int
		}{{"a.lan.", 1, 6}, {"b.lan.", 1, 1}, {"sub.lan.", 2, 3}, {"www.sub.lan.", 1, 1}} {
			trips, questions := roundTrips(t, w, v, tt.name, dns.TypeA)
			if trips != tt.trips || len(questions) != tt.questions {
				t.Errorf("%s: %d round trips, questions %v; want %d and %d", tt.name, trips, questions, tt.trips, tt.questions)
			}
		}
	})
}

// The reverse tree has 34 labels: neither a signed nor an unsigned part of it may cost a round trip a label.
func TestDeepNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const deep = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa."
		signed := newZone(t, "8.b.d.0.1.0.0.2.ip6.arpa.", nsec, dns.ED25519, deep+" 600 IN PTR bob.test.")
		w, a := newWorld(t, newZone(t, ".", nsec, dns.ED25519, ""), newZone(t, "arpa.", nsec, dns.ED25519, ""), newZone(t, "ip6.arpa.", nsec, dns.ED25519, ""), signed,
			newZone(t, "9.b.d.0.1.0.0.2.ip6.arpa.", plain, 0, "1.0.0.0.0.0.0.0.0.0.9.b.d.0.1.0.0.2.ip6.arpa. 60 IN PTR x.test."))
		w.delay = 10 * time.Millisecond
		for _, tt := range []struct {
			name             string
			want             Status
			trips, questions int
		}{{deep, Secure, 5, 12}, {"1.0.0.0.0.0.0.0.0.0.9.b.d.0.1.0.0.2.ip6.arpa.", Insecure, 5, 30}} {
			v := New(w, a, WithClock(clock))
			trips, questions := roundTrips(t, w, v, tt.name, dns.TypePTR)
			if trips > tt.trips || len(questions) > tt.questions {
				t.Errorf("%s: %d round trips, %d questions %v", tt.name, trips, len(questions), questions)
			}
			if got, err := v.Lookup(context.Background(), tt.name, dns.TypePTR); err != nil || got.Status != tt.want {
				t.Errorf("%s: got %v (%s), %v", tt.name, got.Status, got.Why, err)
			}
			time.Sleep(10 * w.delay)
		}
	})
}

// A hundred lookups at once ask for the keys of a zone once, and the one that began leaves without harm to the others.
func TestSharedWalk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a := hierarchy(t)
		w.delay = 10 * time.Millisecond
		v := New(w, a, WithClock(clock))
		first, leave := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			got, err := v.Lookup(first, "bob.signed.test.", dns.TypeA)
			if !errors.Is(err, context.Canceled) || got.Status != Indeterminate {
				t.Errorf("the one that left: %v, %v", got.Status, err)
			}
		})
		time.Sleep(time.Millisecond)
		for i := range 100 {
			wg.Go(func() {
				rrtype := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeIPSECKEY, dns.TypeMX}[i%4]
				got, err := v.Lookup(context.Background(), "bob.signed.test.", rrtype)
				if err != nil || got.Status != Secure {
					t.Errorf("got %v (%s), %v", got.Status, got.Why, err)
				}
			})
		}
		time.Sleep(time.Millisecond)
		leave()
		wg.Wait()
		seen := map[string]int{}
		for _, q := range w.queries {
			seen[q]++
		}
		for q, n := range seen {
			if n > 1 {
				t.Errorf("%s asked %d times", q, n)
			}
		}
	})
}

// An upstream that never answers costs the caller's patience and nothing more; the others go on.
func TestStalledUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a := hierarchy(t)
		stall := exchangerFunc(func(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
			if q.Question[0].Name == "host.hashed.test." {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return w.Exchange(ctx, q)
		})
		v := New(stall, a, WithClock(clock))
		start := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		got, err := v.Lookup(ctx, "host.hashed.test.", dns.TypeA)
		if !errors.Is(err, context.DeadlineExceeded) || got.Status != Indeterminate || got.EDE != dns.ExtendedErrorCodeNetworkError || time.Since(start) != 2*time.Second {
			t.Errorf("got %v EDE %d (%s) after %v, %v", got.Status, got.EDE, got.Why, time.Since(start), err)
		}
		if got, err := v.Lookup(context.Background(), "bob.signed.test.", dns.TypeA); err != nil || got.Status != Secure {
			t.Errorf("another name: %v, %v", got.Status, err)
		}
		start = time.Now()
		if got, err := v.Lookup(context.Background(), "host.hashed.test.", dns.TypeA); err != nil || got.Status != Indeterminate || time.Since(start) > fetchTimeout {
			t.Errorf("without a deadline: %v after %v, %v", got.Status, time.Since(start), err)
		}
	})
}

// exchangerFunc is a function as an Exchanger.
type exchangerFunc func(ctx context.Context, q *dns.Msg) (*dns.Msg, error)

func (f exchangerFunc) Exchange(ctx context.Context, q *dns.Msg) (*dns.Msg, error) { return f(ctx, q) }

// What is asked has DO and CD set, and no other sign of ours.
func TestQuestions(t *testing.T) {
	w, a := hierarchy(t)
	v := New(exchangerFunc(func(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
		if o := q.IsEdns0(); o == nil || !o.Do() || o.UDPSize() != 1232 || !q.CheckingDisabled || !q.RecursionDesired || q.AuthenticatedData || len(o.Option) > 0 {
			t.Errorf("asked %v", q)
		}
		return w.Exchange(ctx, q)
	}), a, WithClock(clock))
	if got, err := v.Lookup(context.Background(), "bob.signed.test.", dns.TypeA); err != nil || got.Status != Secure {
		t.Errorf("got %v, %v", got.Status, err)
	}
}

// What is known ends with its TTL, and is then learned again.
func TestKeysEnd(t *testing.T) {
	w, a := hierarchy(t)
	now := testNow
	v := New(w, a, WithClock(func() time.Time { return now }))
	ask := func() (int64, Status) {
		before := w.asked.Load()
		got, err := v.Lookup(context.Background(), "bob.signed.test.", dns.TypeA)
		if err != nil {
			t.Fatal(err)
		}
		return w.asked.Load() - before, got.Status
	}
	ask()
	if n, s := ask(); n != 1 || s != Secure {
		t.Errorf("keys known: %d questions, %v", n, s)
	}
	now = now.Add(time.Hour)
	if n, s := ask(); n < 3 || s != Secure {
		t.Errorf("keys ended: %d questions, %v", n, s)
	}
	v.Flush()
	if n, s := ask(); n != 6 || s != Secure {
		t.Errorf("flushed: %d questions, %v", n, s)
	}
	now = now.Add(48 * time.Hour)
	if _, s := ask(); s != Bogus {
		t.Errorf("signatures expired: %v", s)
	}
}

// A broken delegation is remembered for some seconds only.
func TestBogusEnds(t *testing.T) {
	w, a := hierarchy(t)
	now := testNow
	v := New(w, a, WithClock(func() time.Time { return now }))
	w.set(func(q dns.Question, m *dns.Msg) {
		if q.Qtype == dns.TypeDNSKEY && q.Name == "signed.test." {
			m.Answer = nil
		}
	})
	for _, step := range []struct {
		after time.Duration
		want  Status
	}{{0, Bogus}, {bogusTTL - 1, Bogus}, {1, Secure}} {
		now = now.Add(step.after)
		got, err := v.Lookup(context.Background(), "bob.signed.test.", dns.TypeA)
		if err != nil || got.Status != step.want {
			t.Errorf("after %v: got %v (%s), %v", step.after, got.Status, got.Why, err)
		}
		w.set(nil)
	}
}

// The cache never holds more than it may.
func TestCacheBounded(t *testing.T) {
	d := delegations{zone: map[string]known{}}
	for i := range 3 * maxZones {
		d.put(string(rune('a'+i%26))+time.Duration(i).String()+".", known{until: testNow.Add(time.Duration(i%100) * time.Second)}, testNow)
	}
	if len(d.zone) > maxZones || len(d.zone) < maxZones/2 {
		t.Errorf("%d entries", len(d.zone))
	}
}

// Questions that lookups share are those of one user: what a user has asked keeps nobody else waiting (TRUST.md A-36).
func TestUsersDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a := hierarchy(t)
		v := New(exchangerFunc(func(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
			if User(ctx) == "flood" { // his share is used up
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return w.Exchange(ctx, q)
		}), a, WithClock(clock))
		go func() { _, _ = v.Lookup(OnBehalf(context.Background(), "flood"), "bob.signed.test.", dns.TypeA) }()
		synctest.Wait()
		for _, user := range []string{"other", ""} {
			start := time.Now()
			got, err := v.Lookup(OnBehalf(context.Background(), user), "bob.signed.test.", dns.TypeA)
			if err != nil || got.Status != Secure || time.Since(start) > time.Second {
				t.Errorf("user %q: %v after %v, %v", user, got.Status, time.Since(start), err)
			}
		}
		time.Sleep(time.Minute) // the flood ends
	})
}
