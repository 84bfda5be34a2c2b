package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// TestStorm: a page of hundreds of names (five hundred with TACIT_LONG=1) leads to two hosts, of which one does not speak IKE and the other is Bob. Every name has a key of the attacker's,
// or none. Bob's own name, and what goes on with him, are not disturbed.
//
//tacit:attack A-20 every lookup is answered within the hold; to each address one handshake at a time, each of three messages at most; no IKE for names without a key; Bob's name is answered meanwhile
func TestStorm(t *testing.T) {
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		r := append(hostRecords("bob.example.", w.bob, &w.bobKey), hostRecords("*.page.example.", w.plain, &w.malKey)...)
		r = append(r, hostRecords("*.also.example.", w.bob, &w.malKey)...)
		return []zoneFile{{"example.", bindNSEC, append(r, hostRecords("*.none.example.", w.mallory, nil)...)}}
	})
	w.run("")
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	flow := startStream(t, w.alice, w.bob, w.bob.Addr4())
	names := 240
	if os.Getenv("TACIT_LONG") == "1" {
		names = 500
	}
	var wg sync.WaitGroup
	var mu sync.Mutex // the names are asked at once
	codes := map[string]int{}
	var longest time.Duration
	began := time.Now()
	for i := range names {
		name := fmt.Sprintf("n%d.%s.example", i, []string{"page", "also", "none"}[i%3])
		wg.Go(func() {
			a, err := query(t.Context(), w.alice, name, dns.TypeA)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				codes[err.Error()]++
				return
			case i%3 < 2 && len(a.addrs()) > 0:
				t.Errorf("%s is answered: %v", name, a.addrs())
			}
			codes[dns.RcodeToString[a.Rcode]]++
			longest = max(longest, a.took)
		})
	}
	time.Sleep(200 * time.Millisecond)
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	wg.Wait()
	t.Logf("%d names in %v: %v, the longest %v", names, time.Since(began), codes, longest)
	if codes["SERVFAIL"] < names*2/3 || codes["NOERROR"] < names/3 || longest > hold+slack {
		t.Errorf("want SERVFAIL for two in three names, an answer for the third, and nothing after %v", hold+slack)
	}
	time.Sleep(4 * time.Second) // of what goes on without anybody who waits
	flow.goesOn(disturbed)
	w.sync()
	w.atMostOneHandshake(w.plain.Addr4(), began)
	for _, p := range w.tap.Packets() {
		h, ok := p.IKEHeader()
		if ok && p.Time.After(began) && !h.Response && has(w.alice, p.Src) && (has(w.mallory, p.Dst) || has(w.bob, p.Dst) && lab.ExchangeName(h.Exchange) == "IKE_SA_INIT") {
			t.Errorf("%s to %v %v after the storm began", lab.ExchangeName(h.Exchange), p.Dst, p.Time.Sub(began))
		}
	}
	w.onlyProtected(w.alice, w.bob)
	w.heldBy(w.bobKey, "bob.example")
}

// atMostOneHandshake fails the test unless what Alice sent to an address that answers nothing were few handshakes, one after the other, of three messages
// at most.
func (w *attackWorld) atMostOneHandshake(to netip.Addr, since time.Time) {
	w.t.Helper()
	sends := map[uint64]int{}
	var last uint64
	for _, p := range w.tap.Packets() {
		h, ok := p.IKEHeader()
		if !ok || !has(w.alice, p.Src) || p.Dst != to || p.Time.Before(since) {
			continue
		}
		if sends[h.InitiatorSPI] > 0 && h.InitiatorSPI != last {
			w.t.Errorf("two handshakes at a time with %v", to)
		}
		sends[h.InitiatorSPI]++
		last = h.InitiatorSPI
	}
	for spi, n := range sends {
		if n > 3 {
			w.t.Errorf("%d first messages of %x", n, spi)
		}
	}
	w.t.Logf("%v: %d handshakes", to, len(sends))
	if len(sends) == 0 || len(sends) > 4 {
		w.t.Errorf("%d handshakes with %v in %v, want a few", len(sends), to, time.Since(since))
	}
}

// TestOnTheHost: who is on Alice's own host without being root, or writes into her files and caches, gets no claim made, no policy moved, and no line into her
// log.
//
//tacit:attack A-35 an address from the hosts file, or from somebody's answer to nothing, makes no claim: no IKE, nothing stands; the name's own answer is protected as ever
//tacit:attack A-36 another user's lookups move nothing of Bob's, a flow goes on; the socket refuses what changes something
//tacit:attack A-53 a name with control characters, from DNS or from an initiator, is escaped in the log, in status and in lookup; who tells one in IKE is refused
func TestOnTheHost(t *testing.T) {
	const forged = "\x1b[2J\nmsg=forged"
	inZone := func(name string) string { return strings.NewReplacer("\x1b", `\027`, "\n", `\010`).Replace(name) }
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		r := append(hostRecords("bob.example.", w.bob, &w.bobKey), hostRecords("evil.example.", w.bob, &w.malKey)...)
		r = append(r, hostRecords(inZone(forged)+".example.", w.mallory, &w.malKey)...)
		return []zoneFile{{"example.", bindNSEC, r}}
	})
	w.run("")
	put(t, w.alice, "/etc/hosts", "192.0.2.3 bob.example\n2001:db8::3 bob.example\n")
	response := new(dns.Msg)
	response.SetQuestion("bob.example.", dns.TypeA)
	response.Response, response.Authoritative = true, true
	response.Answer = []dns.RR{record(t, "bob.example. 60 IN A 192.0.2.3"), record(t, "bob.example. 60 IN "+w.malKey.typ45)}
	b, err := response.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range []uint16{53, 5353} {
		if err := w.mallory.Inject(lab.UDPPacket(netip.MustParseAddrPort("192.0.2.55:53"), netip.AddrPortFrom(w.alice.Addr4(), port), b)); err != nil {
			t.Fatal(err)
		}
	}
	mustResolve(t, w.alice, "bob.example", "192.0.2.3", "2001:db8::3") // what a program gets that reads files first
	transfer(t, w.alice, w.plain, w.plain.Addr4(), 1000)
	w.sync()
	if c := w.tap.BetweenHosts(w.alice, w.plain); c[lab.ClassIKE].Packets+c.ESP() > 0 || c.Clear() == 0 {
		t.Errorf("tap between alice and plain: %v", c)
	}
	wantNoElements(t, w.alice)
	put(t, w.alice, "/etc/hosts", "")
	mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
	flow := startStream(t, w.alice, w.bob, w.bob.Addr4())

	//
	exe, err := tacitBinary()
	if err != nil {
		t.Fatal(err)
	}
	nobody := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		out, err := w.alice.Command(ctx, "setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", "--"}, args...)...).Output()
		return string(out), err
	}
	before := verdicts(t, w.alice)
	for range 5 {
		if out, err := nobody("getent", "ahosts", "evil.example"); err == nil {
			t.Errorf("nobody has an answer: %s", out)
		}
	}
	if os.Chmod(buildDir, 0o755) == nil { // so that it is the socket that refuses
		for _, verb := range [][]string{{"reload"}, {"status"}} {
			if out, err := nobody(append([]string{exe, "--socket", "/run/tacit.sock"}, verb...)...); err == nil {
				t.Errorf("%v by nobody: %s", verb, out)
			} else if s := err.Error(); !strings.Contains(s, "permission denied") {
				t.Errorf("%v by nobody: %v", verb, err)
			}
		}
	}
	flow.goesOn(disturbed)
	if len(verdicts(t, w.alice)) != len(before) {
		t.Errorf("there stood %v, and now %v", before, verdicts(t, w.alice))
	}
	w.heldBy(w.bobKey, "bob.example")

	//
	mustWithhold(t, w.alice, inZone(forged)+".example")
	m := stepBetween(t, w.mallory, w.bob, w.mallory, w.malKey)
	t.Logf("an initiator of that name: %v", m.initiates(forged, w.mallory.Addr4(), w.bob.Addr4()))
	shown, _ := w.aliceTac.run("lookup", inZone(forged)+".example")
	status, _ := w.aliceTac.run("status")
	of, _ := w.bobTac.run("status")
	for what, text := range map[string]string{"alice's log": w.aliceTac.log(), "bob's log": w.bobTac.log(), "lookup": shown, "alice's status": status, "bob's status": of} {
		if strings.Contains(text, "\x1b") || strings.Contains(text, "\nmsg=forged") {
			t.Errorf("%s has what the name says:\n%q", what, text)
		}
		if what != "bob's log" && !strings.HasSuffix(what, "status") && !strings.Contains(text, "forged") {
			t.Errorf("%s does not have the name at all", what)
		}
	}
	w.onlyProtected(w.alice, w.bob)
}
