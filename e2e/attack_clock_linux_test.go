package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// rootState is a file of trust-anchor-state: keys with their states since some days ago, and when the last probe succeeded.
func rootState(success time.Time, keys ...string) string {
	return fmt.Sprintf(";;id: . 1\n;;last_queried: %d\n;;last_success: %[1]d\n;;next_probe_time: %d\n", success.Unix(), time.Now().Add(24*time.Hour).Unix()) + strings.Join(keys, "")
}

// state is a line of it.
func (k *rootKey) state(state int, days int) string {
	return fmt.Sprintf("%s ;;state=%d ;;count=4 ;;lastchange=%d\n", k.key, state, time.Now().Add(-time.Duration(days)*24*time.Hour).Unix())
}

// The states of RFC 5011, 4.2, as unbound numbers them.
const (
	addPend = 1
	valid   = 2
	missing = 3
	revoked = 4
)

// rootKey is a key of the root, with the root as it signs it.
type rootKey struct {
	key *dns.DNSKEY
	as  recorded
}

// anotherRoot signs what the root says with a key of its own. The records that follow are in the zone beside.
func anotherRoot(t *testing.T, zones string) *rootKey {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile(filepath.Join(zones, "root.in"))
	if err != nil {
		t.Fatal(err)
	}
	root := zoneFile{apex: "."}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, ". ") && !strings.HasPrefix(line, "ns. ") {
			root.records = append(root.records, strings.TrimSpace(line))
		}
	}
	tool(t, dir, "dnssec-keygen", "-q", "-K", dir, "-a", "ECDSAP256SHA256", "-f", "KSK", ".")
	return &rootKey{readKey(t, dir, "."), root.record(t, dir, time.Hour)}
}

// answers makes a lie: the root is this key's.
func (k *rootKey) answers(q dns.Question, a *dns.Msg) *dns.Msg {
	name := strings.ToLower(q.Name)
	if name == "." || q.Qtype == dns.TypeDS && strings.Count(name, ".") == 1 {
		return k.as.answer(a, ".", name, q.Qtype)
	}
	return a
}

// clockWorld is a signed zone with Bob, a time server and a name with neither.
func clockWorld(t *testing.T) (w *attackWorld, first *rootKey) {
	t.Helper()
	w = newAttackWorld(t, func(w *attackWorld) []zoneFile {
		r := append(hostRecords("bob.example.", w.bob, &w.bobKey), hostRecords("time.example.", w.plain, nil)...)
		return []zoneFile{{"example.", bindNSEC, append(r, hostRecords("keyless.example.", w.plain, nil)...)}, {"plain.", unsigned, hostRecords("host.plain.", w.plain, nil)}}
	})
	return w, &rootKey{key: readKey(t, w.zones, ".")}
}

// follow runs a tacit that follows the roll-overs of the root from a state.
func (w *attackWorld) follow(h *lab.Host, state string, o options) *tacit {
	w.t.Helper()
	put(w.t, h, "/run/root.state", state)
	o.upstream = w.upstreamOfTheHost
	o.dns += "trust-anchor-state = \"/run/root.state\"\ntime-servers = [\"time.example\"]\n"
	return startTacit(w.t, h, w.anchor, o)
}

// TestClockIsWrong is A-43: with a clock that says less than what is known to have passed, nothing is proven and nothing claimed, be it signed or not; but
// the host's time servers have addresses, so that the clock can be set. What has expired is refused in any case (TestReplay).
//
//tacit:attack A-43 nothing is proven or claimed before the clock is set, and time servers are found
func TestClockIsWrong(t *testing.T) {
	w, root := clockWorld(t)
	w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost})
	w.aliceTac = w.follow(w.alice, rootState(time.Now().Add(24*time.Hour), root.state(valid, 400)), options{})
	for _, name := range []string{"bob.example", "keyless.example", "host.plain"} {
		if code, text := mustWithhold(t, w.alice, name).ede(); code != dns.ExtendedErrorCodeDNSSECIndeterminate || !strings.Contains(text, "the clock says") {
			t.Errorf("%s: EDE %d %q, want 5 for the clock", name, code, text)
		}
	}
	if a := mustAnswer(t, w.alice, "time.example", both(w.plain)...); a.AuthenticatedData || a.Answer[0].Header().Ttl > 0 {
		t.Errorf("the time server's address is claimed: AD %v\n%v", a.AuthenticatedData, a.Msg)
	}
	w.liar.tell(func(q dns.Question, a *dns.Msg) *dns.Msg { // forged, it is refused as ever
		for _, rr := range a.Answer {
			if x, ok := rr.(*dns.A); ok && strings.EqualFold(q.Name, "time.example.") {
				x.A = w.mallory.Addr4().AsSlice()
			}
		}
		return a
	})
	forgetFailure()
	if r := ask(t, w.alice, "time.example", dns.TypeA); len(r.addrs()) > 0 {
		t.Errorf("a forged time server: %v", r.Msg)
	}
	w.wantNothing(w.alice, w.bob)
	w.wantNoPolicy()
	// The clock is set: here, the other way round, what is known to have passed is right again.
	w.liar.tell(nil)
	w.aliceTac.stop()
	w.aliceTac = w.follow(w.alice, rootState(time.Now().Add(-time.Hour), root.state(valid, 400)), options{})
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	mustAnswer(t, w.alice, "keyless.example", both(w.plain)...)
	mustAnswer(t, w.alice, "host.plain", both(w.plain)...)
	transfer(t, w.alice, w.bob, w.bob.Addr4(), 100_000)
	w.onlyProtected(w.alice, w.bob)
}

// TestAnchorsRoll is A-44: the root rolls its key over, and a tacit that has seen the new one for thirty days follows; who plays the old root again,
// signed by the key that was revoked, is not believed, and neither is a new key before its time. Where the state cannot be written, DNS works all the same.
//
//tacit:attack A-44 who has seen the new key for thirty days follows; old sets replayed change nothing
func TestAnchorsRoll(t *testing.T) {
	w, first := clockWorld(t)
	w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost})
	second := anotherRoot(t, w.zones)
	recently := time.Now().Add(-time.Hour)
	saved := func() string {
		b, err := os.ReadFile(w.alice.File("/run/root.state"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}

	// The root is signed by the second key alone, which has waited for its thirty days.
	w.liar.tell(second.answers)
	w.aliceTac = w.follow(w.alice, rootState(recently, first.state(valid, 400), second.state(addPend, 31)), options{})
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 100_000)
	}
	if text := saved(); !strings.Contains(text, fmt.Sprintf("{id = %d} ;;state=%d", second.key.KeyTag(), valid)) || !strings.Contains(text, fmt.Sprintf("{id = %d} ;;state=%d", first.key.KeyTag(), missing)) {
		t.Errorf("the new key is not valid, or the old one not missing, in\n%s", text)
	}
	// kill -9 and start again: what was learned is there.
	w.aliceTac.kill()
	w.aliceTac.start(false)
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	transfer(t, w.alice, w.bob, w.bob.Addr4(), 100_000)
	w.onlyProtected(w.alice, w.bob) // before it is stopped, which lets go of what it held

	// Before its time the second key signs nothing.
	w.aliceTac.stop()
	w.aliceTac = w.follow(w.alice, rootState(recently, first.state(valid, 400), second.state(addPend, 29)), options{})
	mustWithhold(t, w.alice, "bob.example")
	// The first key is revoked, and its root played again.
	w.liar.tell(nil)
	w.aliceTac.stop()
	w.aliceTac = w.follow(w.alice, rootState(recently, first.state(revoked, 5), second.state(valid, 40)), options{})
	mustWithhold(t, w.alice, "bob.example")
	if text := saved(); strings.Contains(text, fmt.Sprintf("{id = %d} ;;state=%d", first.key.KeyTag(), valid)) {
		t.Errorf("the revoked key is valid again in\n%s", text)
	}

	// A state that cannot be written: said in the log, and no reason to fail. /proc takes no files.
	w.aliceTac.stop()
	w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost, dns: `trust-anchor-state = "/proc/root.state"`})
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	eventually(t, 5*time.Second, "the log says that the state cannot be kept", func() bool {
		return strings.Contains(w.aliceTac.log(), "trust anchors not confirmed") && strings.Contains(w.aliceTac.log(), "/proc/")
	})
}
