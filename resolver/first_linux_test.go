package resolver

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"tacit/dnssec"
)

// sending is a signedZone that can be asked without waiting.
type sending struct {
	*signedZone
	brief func(name string, also int) bool // whether the answer is there in a moment
	rest  func(name string)                // waits for the rest
}

type sent struct {
	*sending
	q *dns.Msg
}

func (s *sending) Send(q *dns.Msg) dnssec.Sent { return sent{s, q} }

func (s sent) name() string { return dns.CanonicalName(s.q.Question[0].Name) }

func (s sent) Brief(ctx context.Context, also int) *dns.Msg {
	if !s.brief(s.name(), also) {
		return nil
	}
	m, err := s.Exchange(ctx, s.q)
	if err != nil || m.Rcode == dns.RcodeServerFailure {
		return nil
	}
	return m
}

func (s sent) Rest(ctx context.Context) (*dns.Msg, error) {
	if s.rest != nil {
		s.rest(s.name())
	}
	return s.Exchange(ctx, s.q)
}

func prompt(string, int) bool { return true }

func late(string, int) bool { return false }

func anchorsOf(t *testing.T, z *signedZone) *dnssec.Anchors {
	t.Helper()
	anchors, err := dnssec.ParseAnchors([]byte(z.key.String()+"\n"), "anchors")
	if err != nil {
		t.Fatal(err)
	}
	return anchors
}

// served is a server on loopback.
func served(t *testing.T, v *dnssec.Validator, w Watcher) (s *Server, addr string) {
	t.Helper()
	s, err := New(Config{Listen: []netip.AddrPort{netip.AddrPortFrom(loop, 0)}, Lookup: v, Watcher: w, Hold: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, s.Addrs()[0].String()
}

// A first answer is the same whoever makes it, the reader of the socket or the goroutines that he leaves it to; the Watcher is asked for it once, and the
// next one comes from the cache.
func TestFirstAnswersAsServe(t *testing.T) {
	z := newSignedZone(t, "bob.example. 60 IN A 192.0.2.1", "bob.example. 60 IN "+key, "plain.example. 60 IN A 192.0.2.2", "plain.example. 60 IN AAAA 2001:db8::2",
		"brief.example. 0 IN A 192.0.2.3", "lame.example. 60 IN A 192.0.2.9", "alias.example. 60 IN CNAME plain.example.", "block.example. 60 IN A 192.0.2.4")
	for what, brief := range map[string]func(string, int) bool{"prompt": prompt, "late": late} {
		for _, f := range []flags{{}, {edns: true, ad: true}, {do: true}, {cd: true}} {
			for _, name := range []string{"bob.example.", "Plain.example.", "brief.example.", "lame.example.", "none.example.", "alias.example.", "block.example."} {
				for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA} {
					w := newKnowing("192.0.2.9", 20*time.Second)
					w.interest = func(n string) Interest {
						return map[string]Interest{"block.example.": Refuse, "plain.example.": SkipKey}[n]
					}
					q := newQuery(name, typ, f)
					want := ask(t, testServer(t, dnssec.New(z, anchorsOf(t, z)), w), q)
					calls := w.calls()
					v := dnssec.New(&sending{z, brief, nil}, anchorsOf(t, z))
					if _, err := v.Lookup(t.Context(), "example.", dns.TypeNS); err != nil { // its keys
						t.Fatal(err)
					}
					s, addr := served(t, v, w)
					got := exchange(t, "udp", addr, q)
					if outcomeOf(got) != outcomeOf(want) || len(got.Ns) != len(want.Ns) || !reflect.DeepEqual(got.Question, want.Question) {
						t.Errorf("%s %s %d %+v: %v, want %v", what, name, typ, f, got, want)
					}
					if n := w.calls() - calls; n != calls {
						t.Errorf("%s %s %d: the Watcher was called %d times, want %d", what, name, typ, n, calls)
					}
					if st := s.Stats(); st.Queries != 1 || st.Panics > 0 {
						t.Errorf("%s: %+v", name, st)
					}
				}
			}
		}
	}
}

// A reader that waits for an upstream lets nobody else wait: not another query of the socket, nor the one for the same name.
func TestFirstLeavesInTime(t *testing.T) {
	z := newSignedZone(t, "slow.example. 60 IN A 192.0.2.1", "fast.example. 60 IN A 192.0.2.2")
	release, waiting := make(chan struct{}), make(chan struct{})
	var once sync.Once
	up := &sending{signedZone: z}
	up.brief = func(name string, also int) bool {
		if !strings.HasPrefix(name, "slow") {
			return true
		}
		once.Do(func() { close(waiting) })
		if also < 0 {
			return false
		}
		fds := []unix.PollFd{{Fd: int32(also), Events: unix.POLLIN}} // as long as nothing else is to be done
		for {
			if _, err := unix.Poll(fds, 5000); err != unix.EINTR {
				return false
			}
		}
	}
	up.rest = func(string) { <-release }
	v := dnssec.New(up, anchorsOf(t, z))
	if _, err := v.Lookup(t.Context(), "example.", dns.TypeNS); err != nil {
		t.Fatal(err)
	}
	// One client's queries all come to one socket.
	_, addr := served(t, v, newKnowing("192.0.2.9", 0))
	c, err := dns.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(900 * time.Millisecond)) // less than the hold
	send := func(name string, id uint16) {
		q := newQuery(name, dns.TypeA, flags{})
		q.Id = id
		if err := c.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
	}
	send("slow.example.", 1)
	<-waiting
	send("fast.example.", 2)
	if r, err := c.ReadMsg(); err != nil || r.Id != 2 || r.Rcode != dns.RcodeSuccess {
		t.Fatal(r, err)
	}
	send("slow.example.", 3)
	close(release)
	got := map[uint16]string{}
	for range 2 {
		r, err := c.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		got[r.Id] = outcomeOf(r)
	}
	if want := "NOERROR 192.0.2.1"; got[1] != want || got[3] != want {
		t.Errorf("%v, want %s", got, want)
	}
}

// A panic on the way costs the answer, not the reader of the socket.
func TestFirstSurvivesAPanic(t *testing.T) {
	z := newSignedZone(t, "bad.example. 60 IN A 192.0.2.1", "good.example. 60 IN A 192.0.2.2")
	v := dnssec.New(&sending{z, func(name string, _ int) bool {
		if name == "bad.example." {
			panic("test")
		}
		return true
	}, nil}, anchorsOf(t, z))
	if _, err := v.Lookup(t.Context(), "example.", dns.TypeNS); err != nil {
		t.Fatal(err)
	}
	s, addr := served(t, v, newKnowing("192.0.2.9", 0))
	for name, want := range map[string]string{"bad.example.": "SERVFAIL", "good.example.": "NOERROR 192.0.2.2"} {
		if got := outcomeOf(exchange(t, "udp", addr, newQuery(name, dns.TypeA, flags{}))); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if n := s.Stats().Panics; n == 0 {
		t.Error(fmt.Sprint(n, " panics"))
	}
}

// So does one of the Watcher, whatever it is asked.
func TestFirstSurvivesTheWatchersPanic(t *testing.T) {
	z := newSignedZone(t, "bad.example. 60 IN A 192.0.2.1", "worse.example. 60 IN A 192.0.2.3", "good.example. 60 IN A 192.0.2.2")
	v := dnssec.New(&sending{z, prompt, nil}, anchorsOf(t, z))
	if _, err := v.Lookup(t.Context(), "example.", dns.TypeNS); err != nil {
		t.Fatal(err)
	}
	w := newKnowing("192.0.2.9", 0)
	said := w.watch
	w.watch = func(ctx context.Context, f Found) Verdict {
		if f.Asked == "bad.example." {
			panic("test")
		}
		return said(ctx, f)
	}
	w.interest = func(name string) Interest {
		if name == "worse.example." {
			panic("test")
		}
		return AskKey
	}
	s, addr := served(t, v, w)
	for _, name := range []string{"bad.example.", "worse.example.", "good.example."} {
		want := map[bool]string{true: "NOERROR 192.0.2.2", false: "SERVFAIL"}[name == "good.example."]
		if got := outcomeOf(exchange(t, "udp", addr, newQuery(name, dns.TypeA, flags{}))); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if n := s.Stats().Panics; n != 2 {
		t.Errorf("%d panics, want 2", n)
	}
}
