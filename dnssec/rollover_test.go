package dnssec

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const day = 24 * time.Hour

// keyring are zones of one name, each with one key: what is signed by several is emitted by several.
func keyring(t testing.TB, n int) []*testZone {
	var out []*testZone
	for range n {
		out = append(out, newZone(t, "test.", nsec, dns.ED25519, ""))
	}
	return out
}

// shown is an answer with the keys of in, signed by those of by, fresh at now.
func shown(now time.Time, in []*dns.DNSKEY, by ...*testZone) *dns.Msg {
	m := new(dns.Msg)
	var rrs []dns.RR
	for _, k := range in {
		rrs = append(rrs, k)
	}
	m.Answer = append(m.Answer, rrs...)
	for _, z := range by {
		z.from, z.to = now.Add(-time.Hour), now.Add(10*day)
		m.Answer = append(m.Answer, z.sign(rrs))
	}
	return m
}

// revoked is z with the REVOKE bit in its key: the same key, another tag.
func revokedKey(z *testZone) *testZone {
	r := *z
	r.key = dns.Copy(z.key).(*dns.DNSKEY)
	r.key.Flags |= dns.REVOKE
	return &r
}

func rollChecker(now time.Time) *checker {
	return &checker{now: now, rules: &rules{iterations: maxIterations, early: 5 * time.Minute}, work: newBudget()}
}

// states are the states of the keys, in the order of zs.
func states(p *TrustPoint, zs ...*testZone) (out []KeyState) {
	for _, z := range zs {
		s := KeyStart
		if k := p.find(z.key); k != nil {
			s = k.State
		}
		out = append(out, s)
	}
	return out
}

// A whole roll-over, and what must not happen on the way (RFC 5011, A-44).
//
//tacit:attack A-44 a whole roll-over, and what must not happen on the way
func TestRollover(t *testing.T) {
	z := keyring(t, 3)
	old, next, evil := z[0], z[1], z[2]
	dead := revokedKey(old)
	both := []*dns.DNSKEY{old.key, next.key}
	p := &TrustPoint{Zone: "test.", DS: []*dns.DS{old.key.ToDS(dns.SHA256)}}
	now := testNow
	for i, step := range []struct {
		after  time.Duration
		msg    func() *dns.Msg
		want   [3]KeyState
		failed bool
		why    string
	}{
		{0, func() *dns.Msg { return shown(now, []*dns.DNSKEY{evil.key}, evil) }, [3]KeyState{}, true, "another key than the configured one"},
		{0, func() *dns.Msg { return nil }, [3]KeyState{}, true, "no answer"},
		{time.Hour, func() *dns.Msg { return shown(now, []*dns.DNSKEY{old.key}, old) }, [3]KeyState{KeyValid}, false, "the key of the DS"},
		{day, func() *dns.Msg { return shown(now, []*dns.DNSKEY{old.key, evil.key}, evil) }, [3]KeyState{KeyValid}, true, "signed by the new key only"},
		{day, func() *dns.Msg { return shown(now, both, old) }, [3]KeyState{KeyValid, KeyAddPend}, false, "a new key"},
		{29 * day, func() *dns.Msg { return shown(now, both, old) }, [3]KeyState{KeyValid, KeyAddPend}, false, "29 days are too few"},
		{day / 2, func() *dns.Msg { return shown(now, both[:1], old) }, [3]KeyState{KeyValid}, false, "gone before its time: it starts anew"},
		{day, func() *dns.Msg { return shown(now, both, old) }, [3]KeyState{KeyValid, KeyAddPend}, false, "and starts"},
		{31 * day, func() *dns.Msg { return shown(now, both, next) }, [3]KeyState{KeyValid, KeyAddPend}, true, "seen once: it may not sign yet"},
		{day, func() *dns.Msg { return shown(now, both, old) }, [3]KeyState{KeyValid, KeyAddPend}, false, "seen twice"},
		{day, func() *dns.Msg { return shown(now, both, next) }, [3]KeyState{KeyValid, KeyValid}, false, "ripe"},
		{day, func() *dns.Msg { return shown(now, []*dns.DNSKEY{dead.key, next.key}, next) }, [3]KeyState{KeyMissing, KeyValid}, false, "REVOKE without the key's own signature: not believed (RFC 5011, 2.1)"},
		{day, func() *dns.Msg { return shown(now, both[:1], old) }, [3]KeyState{KeyValid, KeyMissing}, false, "A-44: an old set replayed: nothing is forgotten"},
		{day, func() *dns.Msg { return shown(now.Add(-30*day), both[:1], old) }, [3]KeyState{KeyValid, KeyMissing}, true, "A-44: and none is believed once it has expired"},
		{day, func() *dns.Msg { return shown(now, []*dns.DNSKEY{dead.key, next.key}, dead, next) }, [3]KeyState{KeyRevoked, KeyValid}, false, "revoked"},
		{day, func() *dns.Msg { return shown(now, []*dns.DNSKEY{old.key, evil.key}, old) }, [3]KeyState{KeyRevoked, KeyValid}, true, "a revoked key signs nothing any more"},
		{day, func() *dns.Msg { return shown(now, both, next) }, [3]KeyState{KeyRevoked, KeyValid}, false, "nor does it come back"},
		{31 * day, func() *dns.Msg { return shown(now, both[1:], next) }, [3]KeyState{KeyStart, KeyValid}, false, "forgotten after 30 days"},
		{day, func() *dns.Msg { r := revokedKey(next); return shown(now, []*dns.DNSKEY{r.key}, r) }, [3]KeyState{KeyStart, KeyRevoked}, true, "all revoked"},
	} {
		now = now.Add(step.after)
		failed := p.Failed
		p.observe(rollChecker(now), step.msg())
		got := [3]KeyState(states(p, old, next, evil))
		if got != step.want || (p.Failed > failed) != step.failed {
			t.Fatalf("step %d, %s: got %v failed %v, want %v failed %v", i, step.why, got, p.Failed > failed, step.want, step.failed)
		}
		q, err := ParseTrustPoint(p.Text(), "text")
		if err != nil || !bytes.Equal(q.Text(), p.Text()) {
			t.Fatalf("step %d: written and read again: %v\n%s\n%s", i, err, q.Text(), p.Text())
		}
		p = q // each step survives a restart
	}
	if !p.Revoked() || p.trusted() != nil || !p.Next.IsZero() {
		t.Errorf("all revoked: %v, trusted %v, next %v", p.Revoked(), p.trusted(), p.Next)
	}
}

// A Validator goes with the roll-over, from the lookup on that sees it; and what cannot be saved is still obeyed.
func TestFollow(t *testing.T) {
	w, a := hierarchy(t)
	root := w.zones["."]
	now := testNow
	var saved []byte
	var fail error
	v := New(w, a, WithClock(func() time.Time { return now }))
	r := v.Follow(a.TrustPoint("."), func(text []byte) error { saved = text; return fail })
	if got, err := v.Lookup(context.Background(), bob, dns.TypeA); err != nil || got.Status != Secure || !bytes.Contains(saved, []byte("VALID")) {
		t.Errorf("before: %v (%s), %v, saved %q", got.Status, got.Why, err, saved)
	}
	if err := r.Probe(context.Background()); err != nil {
		t.Errorf("probe: %v", err)
	}
	if next, ok := r.Next(); !ok || next.Sub(now) < 54*time.Minute || next.Sub(now) > time.Hour {
		t.Errorf("next probe %v, %v", next, ok)
	}
	now = now.Add(2 * time.Hour)
	gone := revokedKey(root)
	fail = errors.New("read-only file system")
	w.set(func(q dns.Question, m *dns.Msg) {
		if q.Qtype == dns.TypeDNSKEY && q.Name == "." {
			m.Answer = shown(now, []*dns.DNSKEY{gone.key}, gone).Answer
		}
	})
	if got, err := v.Lookup(context.Background(), bob, dns.TypeA); err != nil || got.Status != Indeterminate {
		t.Errorf("after the revocation: %v (%s), %v", got.Status, got.Why, err)
	}
	if err := r.Probe(context.Background()); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("an unsaved state is reported as %v", err)
	}
	if _, ok := r.Next(); ok {
		t.Error("a zone without keys is probed on")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if r.Run(ctx, func(error) {}); ctx.Err() != nil {
		t.Error("Run goes on for a zone without keys")
	}
}

// the state file is replaced in one step; where it cannot be, the old one stands.
//
//tacit:attack A-44 the state is replaced in one step, or the old one stands
func TestSaveFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "root.state")
	save := SaveFile(path, 0o644)
	for _, text := range []string{"one", "another"} {
		if err := save([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := SaveFile(filepath.Join(dir, "d"), 0o644)([]byte("x")); err == nil {
		t.Error("a directory was replaced")
	}
	if err := SaveFile(filepath.Join(dir, "none", "x"), 0o644)(nil); err == nil {
		t.Error("a file in a directory that is not there")
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestParseTrustPointRefuses(t *testing.T) {
	const key = "test. 3600 IN DNSKEY 257 3 15 l02Woi0iS8Aa25FQkUd9RMzZHJpBoRQwAQEX1SxZJA4="
	if _, err := ParseTrustPoint([]byte(key+" ;{id = 1} ;;state=1 [ADDPEND] ;;count=1 ;;lastchange=12 ;;x"), "f"); err != nil {
		t.Errorf("a good one: %v", err)
	}
	for _, text := range []string{"", "; nothing", key + " ;;state=5", key + " ;;state=x", key + " ;;count=-1", key + "\nother. 1 IN DS 1 8 2 00", ";;last_queried: soon\n" + key,
		strings.Replace(key, "257", "385", 1), strings.Replace(key, "257", "1", 1), "test. 1 IN A 192.0.2.1", "test. 1 IN DNSKEY", strings.Repeat(key+"\n", maxRolling+1)} {
		if _, err := ParseTrustPoint([]byte(text), "f"); err == nil || !strings.HasPrefix(err.Error(), "f:") {
			t.Errorf("%.80q: %v", text, err)
		}
	}
}

func FuzzParseTrustPoint(f *testing.F) {
	p := &TrustPoint{Zone: "test.", LastQueried: testNow, Interval: time.Hour}
	for _, z := range keyring(f, 2) {
		p.Keys = append(p.Keys, RollingKey{Key: z.key, State: KeyAddPend, Seen: 2, Changed: testNow})
	}
	f.Add(p.Text())
	f.Add([]byte("test. IN DS 1 8 2 00"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParseTrustPoint(text, "f")
		if err != nil {
			return
		}
		q, err := ParseTrustPoint(p.Text(), "again")
		if err != nil || len(q.Keys) != len(p.Keys) || len(q.DS) != len(p.DS) {
			t.Fatalf("%v\n%s", err, p.Text())
		}
		p.observe(rollChecker(testNow), nil)
	})
}

// A file that could not be written whole leaves the old one.
func TestReplaceFileHalf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	broken := errors.New("broken")
	if err := SaveFile(path, 0o600)([]byte("whole")); err != nil {
		t.Fatal(err)
	}
	err := ReplaceFile(path, 0o600, func(w io.Writer) error { _, err := io.WriteString(w, "ha"); return errors.Join(err, broken) })
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "whole" {
		t.Errorf("got %q, %v", text, err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
