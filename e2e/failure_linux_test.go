package e2e

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// untouched fails the test if the host's packet filter knows the address.
func untouched(t *testing.T, h *lab.Host, addr netip.Addr) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Logf("the rules of %s are not looked at: no nft", h.Name)
		return
	}
	for line := range strings.Lines(output(t, h, "nft", "list", "ruleset")) {
		if strings.Contains(line, addr.String()+" ") || strings.Contains(line, addr.String()+",") {
			t.Errorf("%s has a rule about %v: %s", h.Name, addr, strings.TrimSpace(line))
		}
	}
}

// TestWrongKeyInDNS: the key in DNS is not the one that Bob has.
func TestWrongKeyInDNS(t *testing.T) {
	w, names, _, _ := namesWorld(t, "")
	other := newIdentity(t)
	if err := names.Replace("bob.example.", dns.TypeIPSECKEY, "bob.example. 60 "+other.typ45); err != nil {
		t.Fatal(err)
	}
	add(t, names, hostRecords("keyless-bob.example.", w.bob, nil)...)
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		r := mustWithhold(t, w.alice, "bob.example.", kind, 2500*time.Millisecond)
		if len(r.ede()) == 0 {
			t.Errorf("no extended error says why: %v", r)
		}
	}
	if addrs, err := getaddrinfo(t, w.alice, "ahosts", "bob.example"); err == nil {
		t.Errorf("getaddrinfo: got %v", addrs)
	}
	w.sync()
	if c := w.tap.BetweenHosts(w.alice, w.bob); c.Clear() != 0 || c.ESP() != 0 {
		t.Errorf("after the lookups: %v", c)
	}
	for _, addr := range both(w.bob) {
		untouched(t, w.alice, addr)
		untouched(t, w.bob, both(w.alice)[0])
	}
	mustAnswer(t, w.alice, "keyless-bob.example.", dns.TypeA, w.bob.Addr4().String(), 500*time.Millisecond)
	for _, addr := range both(w.bob) {
		began := time.Now()
		transfer(t, w.alice, w.bob, addr, 20_000_000)
		if d := time.Since(began); d > 2*time.Second {
			t.Errorf("20 MB each way to %v took %v", addr, d)
		}
	}
	w.sync()
	if c := w.tap.BetweenHosts(w.alice, w.bob); c.Clear() == 0 || c.ESP() != 0 {
		t.Errorf("by the name without a key: %v", c)
	}
}

// TestUpstreamStallsForOneName: other lookups and handshakes go on.
func TestUpstreamStallsForOneName(t *testing.T) {
	w, names, _, _ := namesWorld(t, "")
	add(t, names, hostRecords("slow.example.", w.plain, nil)...)
	names.SetTamper(func(q, a *dns.Msg) *dns.Msg {
		if strings.EqualFold(q.Question[0].Name, "slow.example.") {
			return nil
		}
		return a
	})
	slow := make(chan reply, 4)
	for range 4 {
		go func() {
			r, _ := tryAsk(w.alice, "slow.example.", dns.TypeA, 20*time.Second)
			slow <- r
		}()
	}
	time.Sleep(100 * time.Millisecond)
	mustAnswer(t, w.alice, "keyless.example.", dns.TypeA, w.plain.Addr4().String(), 300*time.Millisecond)
	mustAnswer(t, w.alice, "bob.example.", dns.TypeA, w.bob.Addr4().String(), 300*time.Millisecond)
	mustAnswer(t, w.alice, "bob.example.", dns.TypeAAAA, w.bob.Addr6().String(), 300*time.Millisecond)
	transfer(t, w.alice, w.bob, w.bob.Addr4(), 100_000)
	for range 4 {
		if r := <-slow; r.Msg == nil || r.Rcode != dns.RcodeServerFailure {
			t.Errorf("the slow name: got %v, want SERVFAIL", r.Msg)
		} else {
			t.Logf("the slow name: %v", r)
		}
	}
	w.onlyProtected(w.alice, w.bob)
}

// TestKilledUnderTraffic ends either daemon as a crash would while packets flow: nothing in clear within linger,
// nothing of ours touches a packet after it, and a restart keys again.
func TestKilledUnderTraffic(t *testing.T) {
	const linger = 3 * time.Second
	for _, victim := range []string{"alice", "bob"} {
		t.Run(victim, func(t *testing.T) {
			w, _, alice, bob := namesWorld(t, `linger = "3s"`)
			mustAnswer(t, w.alice, "bob.example.", dns.TypeA, w.bob.Addr4().String(), time.Second)
			a, b := w.alice.Addr4(), w.bob.Addr4()
			datagrams(t, w.alice, w.bob, b, 10, 100)
			dead := alice
			if victim == "bob" {
				dead = bob
			}
			type done struct {
				pings
				err error
			}
			pinged := make(chan done, 1)
			go func() {
				p, err := ping(w.alice, a, b, 4000, 5*time.Millisecond) // twenty seconds
				pinged <- done{p, err}
			}()
			time.Sleep(time.Second)
			dead.kill()
			at := time.Now()
			p := <-pinged
			t.Logf("pings: %v %v", p.sent, p.received)
			if p.err != nil && victim == "bob" {
				t.Errorf("ping: %v", p.err)
			}
			w.sync()
			first := w.firstClear(a, b)
			switch {
			case first.IsZero():
				t.Errorf("%v after the crash nothing passes in clear yet", time.Since(at).Round(time.Second))
			case first.Before(at.Add(linger - 200*time.Millisecond)):
				t.Errorf("in clear %v after the crash, linger is %v", first.Sub(at), linger)
			default:
				t.Logf("in clear %v after the crash", first.Sub(at).Round(time.Millisecond))
			}
			for _, h := range []*lab.Host{w.alice, w.bob} {
				datagrams(t, h, map[*lab.Host]*lab.Host{w.alice: w.bob, w.bob: w.alice}[h], map[*lab.Host]netip.Addr{w.alice: b, w.bob: a}[h], 5, 1000)
			}
			dead.start(false)
			w.tap.Reset()
			eventually(t, 10*time.Second, "a new SA", func() bool {
				r, err := tryAsk(w.alice, "bob.example.", dns.TypeA, 3*time.Second)
				if err != nil || r.Rcode != dns.RcodeSuccess {
					return false
				}
				datagrams(t, w.alice, w.bob, b, 1, 100)
				w.sync()
				return w.tap.Between(a, b).ESP() > 0
			})
			w.tap.Reset()
			transfer(t, w.alice, w.bob, b, 100_000)
			w.onlyProtected(w.alice, w.bob)
		})
	}
}

// firstClear is the time of the first packet in clear between two addresses.
func (w *world) firstClear(a, b netip.Addr) time.Time {
	for _, p := range w.tap.Packets() {
		if p.Class == lab.ClassClear && (p.Src == a && p.Dst == b || p.Src == b && p.Dst == a) {
			return p.Time
		}
	}
	return time.Time{}
}

// TestSecondNameserver: a host that asks somebody else too is not protected, and status says so.
func TestSecondNameserver(t *testing.T) {
	w, _, alice, _ := namesWorld(t, "")
	out, err := alice.run("status")
	if err != nil || strings.Contains(out, "FAIL") {
		t.Errorf("as the only name server: %v\n%s", err, out)
	}
	put(t, w.alice, "/etc/resolv.conf", "nameserver 127.0.0.1\nnameserver "+w.ns.Addr4().String()+"\n")
	out, err = alice.run("status")
	if !strings.Contains(out, "FAIL") {
		t.Errorf("with a second name server: %v\n%s", err, out)
	}
}
