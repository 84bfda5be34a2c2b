package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tacit/control"
	"tacit/lab"
)

// endingWorld is attackWorld with a conversation each way between two tacits; Alice's has more of a configuration.
func endingWorld(t *testing.T, linger, dns, policy string) (w *attackWorld, before string, answered time.Time, flows []*stream) {
	t.Helper()
	w = newAttackWorld(t, func(w *attackWorld) []zoneFile {
		return []zoneFile{{"example.", bindNSEC, hostRecords("bob.example.", w.bob, &w.bobKey)}}
	})
	before = kernelState(t, w.alice)
	top := "linger = \"" + linger + "\""
	w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost, top: top})
	w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost, top: top, dns: dns, policy: policy})
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	answered = time.Now()
	for i := range both(w.bob) {
		flows = append(flows, startStream(t, w.alice, w.bob, both(w.bob)[i]), startStream(t, w.bob, w.alice, both(w.alice)[i]))
	}
	for _, f := range flows {
		f.goesOn(2 * time.Second)
	}
	return w, before, answered, flows
}

// payloads counts the TCP segments in clear between two hosts that carry a message of a stream: what has none is a reset.
func (w *world) payloads(a, b *lab.Host, since time.Time) (n int) {
	w.sync()
	for _, p := range w.tap.Packets() {
		if p.Class == lab.ClassClear && p.Proto == unix.IPPROTO_TCP && p.Length >= 14+20+32+64 && p.Time.After(since) &&
			(has(a, p.Src) && has(b, p.Dst) || has(b, p.Src) && has(a, p.Dst)) {
			n++
		}
	}
	return n
}

// events are the audit events in a daemon's log, as "kind why".
func (d *tacit) events() (all []string) {
	d.t.Helper()
	for line := range strings.Lines(d.log()) {
		if _, e, ok := strings.Cut(line, "msg=audit event="); ok {
			kind, _, _ := strings.Cut(e, " ")
			_, why, _ := strings.Cut(e, " why=")
			all = append(all, kind+" "+strings.TrimSpace(why))
		}
	}
	return all
}

// TestStopEndsConversations (TRUST.md R11): what was encrypted when tacit stops does not go on in clear, on either side; both programs hear of it at once,
// and the next connection is in clear.
//
//tacit:attack A-57 a stop ends the connections at once, on both sides; no payload of theirs in clear
func TestStopEndsConversations(t *testing.T) {
	t.Parallel()
	w, before, answered, flows := endingWorld(t, "30s", "", "")
	w.aliceTac.stop()
	sameState(t, w.alice, before)
	for _, f := range flows {
		eventually(t, 3*time.Second, f.name+" ends", func() bool { _, _, err := f.state(); return err != nil })
		_, _, err := f.state()
		t.Logf("%s: %v", f.name, err)
	}
	eventually(t, 10*time.Second, "bob lets go", func() bool { return len(w.bobTac.peers(w.alice)) == 0 })
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 1000)
	}
	// The transfers just now were in clear, and show that the tap would have seen the others.
	if n := w.payloads(w.alice, w.bob, answered); n == 0 {
		t.Error("the tap saw nothing of the connections after the stop: nothing is proven")
	}
	for _, f := range flows {
		f.stop()
	}
	w.streamsNotInClear(answered, flows)
	for _, want := range []string{"sa-up", "flows-ended", `sa-down "tacit stops here"`} {
		if n := strings.Count(strings.Join(w.aliceTac.events(), "\n")+"\n", want); n != 2 { // a family each
			t.Errorf("%d events %s, want 2:\n%s", n, want, strings.Join(w.aliceTac.events(), "\n"))
		}
	}
}

// streamsNotInClear fails the test if the tap saw a packet of one of the streams in clear since then.
func (w *attackWorld) streamsNotInClear(since time.Time, flows []*stream) {
	w.t.Helper()
	ports := map[uint16]bool{}
	for _, f := range flows {
		ports[netip.MustParseAddrPort(f.near.LocalAddr().String()).Port()] = true
		ports[netip.MustParseAddrPort(f.near.RemoteAddr().String()).Port()] = true
	}
	w.sync()
	for _, p := range w.tap.Packets() {
		if p.Class == lab.ClassClear && p.Proto == unix.IPPROTO_TCP && p.Time.After(since) && (ports[p.SrcPort] || ports[p.DstPort]) && p.Length >= 14+20+32+64 {
			w.t.Errorf("in clear: %v:%d -> %v:%d, %d octets", p.Src, p.SrcPort, p.Dst, p.DstPort, p.Length)
			return
		}
	}
}

// TestStopKeepsPrivate (TRUST.md R11, `on-failure`): what is private stays shut after a stop until linger after its last proof, refused at once, with no
// help from a process that is gone. A tacit that is started meanwhile keys it again.
func TestStopKeepsPrivate(t *testing.T) {
	const private = "[[policy]]\nmatch = [\"bob.example\"]\nclass = \"private\"\n"
	for _, tt := range []struct {
		name, dns, policy string
		shut, again       bool
	}{
		{"private", "", private, true, false},
		{"private, open", "on-failure = \"open\"", private, false, false},
		{"closed", "on-failure = \"closed\"", "", true, false},
		{"private, and another start", "", private, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			const linger = 4 * time.Second
			w, before, answered, flows := endingWorld(t, linger.String(), tt.dns, tt.policy)
			w.aliceTac.stop()
			stopped := time.Now()
			if !tt.shut {
				sameState(t, w.alice, before)
				w.streamsNotInClear(answered, flows)
				return
			}
			for _, addr := range both(w.bob) {
				began := time.Now()
				c, err := w.alice.Dial(t.Context(), "tcp", netip.AddrPortFrom(addr, 7).String())
				if err == nil {
					c.Close()
				}
				if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EACCES) {
					t.Errorf("%v is not refused: %v", addr, err)
				}
				t.Logf("%v: %v after %v", addr, err, time.Since(began).Round(time.Millisecond))
			}
			if tt.again {
				w.aliceTac.start(false)
				mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
				for _, addr := range both(w.bob) {
					transfer(t, w.alice, w.bob, addr, 1000)
				}
				w.noClearSince(answered)
				return
			}
			eventually(t, linger+linger/2+2*time.Second, "it ends by itself", func() bool { return len(verdicts(t, w.alice)) == 0 })
			t.Logf("shut for %v", time.Since(stopped).Round(10*time.Millisecond))
			if n := w.payloads(w.alice, w.bob, answered); n > 0 {
				t.Errorf("%d segments in clear", n)
			}
			if _, err := w.aliceTac.run("cleanup"); err != nil {
				t.Error(err)
			}
			sameState(t, w.alice, before)
		})
	}
}

// TestHandOver (TRUST.md R11): restart is not stop. A daemon that is told to hand over leaves everything standing for the next one; connections go on.
//
//tacit:attack A-57 an upgrade under live connections: they go on, and no packet is in clear
func TestHandOver(t *testing.T) {
	t.Parallel()
	w, _, answered, flows := endingWorld(t, "60s", "", "")
	if err := w.aliceTac.cmd.Signal(unix.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	<-w.aliceTac.cmd.Done()
	if _, err := os.Stat(w.alice.File("/run/proofs.json")); errors.Is(err, fs.ErrNotExist) {
		t.Error("nothing is left for the next one")
	}
	w.aliceTac.start(false)
	for _, f := range flows {
		f.goesOn(10 * time.Second)
	}
	w.noClearSince(answered)
	if strings.Contains(strings.Join(w.aliceTac.events(), "\n"), "flows-ended") {
		t.Errorf("connections were ended:\n%s", strings.Join(w.aliceTac.events(), "\n"))
	}
}

// TestEventsAreSeen: what `tacit status --watch` prints is what happened, once each: an SA over its rekeys, a name that is withheld, the end.
func TestEventsAreSeen(t *testing.T) {
	t.Parallel()
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		return []zoneFile{{"example.", bindNSEC, append(hostRecords("bob.example.", w.bob, &w.bobKey), hostRecords("evil.example.", w.bob, &w.malKey)...)}}
	})
	w.run("child-lifetime = \"2s\"")
	exe, err := tacitBinary()
	if err != nil {
		t.Fatal(err)
	}
	watch := start(t, w.alice, exe, "status", "--watch", "--json", "--config", "/run/tacit.toml")
	time.Sleep(200 * time.Millisecond) // it has connected
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	s := startStream(t, w.alice, w.bob, w.bob.Addr4())
	for range 3 {
		_, _ = getaddrinfo(t, w.alice, "ahosts", "evil.example") // and again, as programs do
	}
	time.Sleep(5 * time.Second) // two rekeys
	s.goesOn(2 * time.Second)
	w.aliceTac.stop()
	<-watch.Done()
	got := map[string]int{}
	text := logOf(t, w.alice, exe)
	for line := range strings.Lines(text) {
		var e control.Event
		if !strings.HasPrefix(line, `{"seq"`) {
			continue
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		got[fmt.Sprintf("%s %v %s", e.Kind, e.Address, e.Name)]++
		if e.Why == "" || e.Time.IsZero() || (e.Kind == control.SAUp) != (e.KeyID != "" && e.Suite != "" && e.Kind == control.SAUp) {
			t.Errorf("%s", line)
		}
	}
	for _, addr := range both(w.bob) {
		for _, want := range []string{"sa-up %v bob.example", "conflict %v evil.example", "withheld %v evil.example"} {
			want = fmt.Sprintf(want, addr)
			if got[want] != 1 {
				t.Errorf("%s: %d times, want once", want, got[want])
			}
			delete(got, want)
		}
		for _, end := range []string{"sa-down", "flows-ended"} { // the watch may end before it hears of them
			delete(got, fmt.Sprintf("%s %v bob.example", end, addr))
		}
	}
	if len(got) > 0 {
		t.Errorf("and %v", got)
	}
	if t.Failed() {
		t.Log(text)
	}
}
