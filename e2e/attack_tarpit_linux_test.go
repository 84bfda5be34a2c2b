package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestTarpit is A-32: a zone whose addresses come at once and whose keys never do. Each lookup is withheld within the hold, after a few of them at once;
// others, in zones that do answer, do not wait, and neither does a name of an unsigned zone, whose key nobody has to wait for.
//
//tacit:attack A-32 withheld within the hold, after a few at once; other zones are served
func TestTarpit(t *testing.T) {
	const names = 8
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		tar := zoneFile{apex: "tar.", signer: bindNSEC3}
		plain := zoneFile{apex: "plain.", signer: unsigned}
		for i := range names {
			tar.records = append(tar.records, hostRecords(fmt.Sprintf("n%d.tar.", i), w.plain, nil)...)
			plain.records = append(plain.records, hostRecords(fmt.Sprintf("n%d.plain.", i), w.plain, nil)...)
		}
		return []zoneFile{{"example.", bindNSEC, append(hostRecords("bob.example.", w.bob, &w.bobKey), hostRecords("keyless.example.", w.plain, nil)...)}, tar, plain}
	})
	w.run("")
	w.liar.tell(func(q dns.Question, a *dns.Msg) *dns.Msg {
		name := strings.ToLower(q.Name)
		if q.Qtype == typeKey && (strings.HasSuffix(name, ".tar.") || strings.HasSuffix(name, ".plain.")) {
			return nil
		}
		return a
	})
	var took []time.Duration
	for i := range names {
		r := ask(t, w.alice, fmt.Sprintf("n%d.tar", i), dns.TypeA)
		if code, text := r.ede(); r.Rcode != dns.RcodeServerFailure || len(r.addrs()) > 0 || r.took > hold+slack || text == "" {
			t.Errorf("n%d.tar: after %v EDE %d %q\n%v", i, r.took, code, text, r.Msg)
		}
		took = append(took, r.took.Round(time.Millisecond))
		if a := mustAnswer(t, w.alice, fmt.Sprintf("n%d.plain", i), both(w.plain)...); a.took > hold/4 || a.AuthenticatedData {
			t.Errorf("n%d.plain: after %v, AD %v: nobody has to wait for the key of an unsigned zone", i, a.took, a.AuthenticatedData)
		}
	}
	t.Logf("names of the tarpit were refused after %v", took)
	if took[0] < hold*3/4 {
		t.Errorf("the first was not waited for: %v", took[0])
	}
	for _, d := range took[names-3:] {
		if d > hold/2 {
			t.Errorf("after %d lookups in vain the breaker has not opened: %v", names-3, d)
		}
	}
	// Other zones are as fast as ever, with their keys.
	if a := mustAnswer(t, w.alice, "keyless.example", both(w.plain)...); a.took > hold/4 {
		t.Errorf("keyless.example: after %v", a.took)
	}
	if a := mustAnswer(t, w.alice, "bob.example", both(w.bob)...); a.took > hold/2 {
		t.Errorf("bob.example: after %v", a.took)
	}
	w.wantNothing(w.alice, w.plain)
	// When the zone answers again, so do we.
	w.liar.tell(nil)
	eventually(t, 3*hold, "the zone is believed again", func() bool {
		r, err := query(t.Context(), w.alice, "n0.tar", dns.TypeA)
		return err == nil && r.Rcode == dns.RcodeSuccess && len(r.addrs()) == 1
	})
	transfer(t, w.alice, w.bob, w.bob.Addr4(), 100_000)
	w.onlyProtected(w.alice, w.bob)
}
