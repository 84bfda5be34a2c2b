package e2e

import (
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
)

var withheldInLog = regexp.MustCompile(`msg=audit event=withheld .*name=bob\.example .*why=".*did not prove the key`)

// TestOnPath: Mallory is on Alice's path to Bob. He answers IKE in Bob's place as well as he can, with a key that is his own and a name that
// says so, and passes on what he cannot use.
//
//tacit:attack A-06 his SA answers his own name alone, and status names him; once he is gone Bob's name is keyed within the hold; beside Bob's SA he gets none, and no flow of Bob's is disturbed
//tacit:attack A-17 no proof of Bob's key: Bob's name is withheld, and an audit event says why; nothing stands on his address, no packet in clear
//tacit:attack A-19 an anonymous attempt rides along and counts for nothing; nobody takes the place of Bob's SA; a stripped key makes no anonymous attempt
func TestOnPath(t *testing.T) {
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		var r []string
		for name, key := range map[string]*identity{"bob": &w.bobKey, "too": &w.bobKey, "strip": &w.bobKey, "www": nil, "evil": &w.malKey, "evil2": &w.malKey} {
			r = append(r, hostRecords(name+".example.", w.bob, key)...)
		}
		return []zoneFile{{"example.", bindNSEC, r}}
	})
	w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost})
	w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost,
		policy: "[[policy]]\nmatch = [\"www.example\", \"strip.example\"]\nclass = \"private-or-clear\"\nanonymous = true\n"})
	m := stepBetween(t, w.mallory, w.alice, w.bob, w.malKey)
	m.take()

	// he poses as Bob, and cannot prove it.
	m.poses("bob.example")
	mustWithhold(t, w.alice, "bob.example")
	failed := time.Now()
	if !withheldInLog.MatchString(w.aliceTac.log()) {
		t.Errorf("no audit event says that the answer was withheld:\n%s", tail(w.aliceTac.log(), 20))
	}
	w.wantNothing(w.alice, w.bob)
	wantNoElements(t, w.alice, w.bob)

	// as himself he is what he is, and no more.
	m.poses("evil.example")
	mustAnswer(t, w.alice, "evil.example", both(w.bob)...)
	mustWithhold(t, w.alice, "too.example")
	mustAnswer(t, w.alice, "www.example", both(w.bob)...)
	w.liar.tell(about("strip.example", typeKey, func(a *dns.Msg) *dns.Msg { a.Answer = without(a.Answer, typeKey); return a }))
	before := w.handshakes()
	mustWithhold(t, w.alice, "strip.example")
	if n := w.handshakes() - before; n != 0 {
		t.Errorf("%d negotiations for a name whose key was stripped", n)
	}
	w.liar.tell(nil)
	w.heldBy(w.malKey, "evil.example")
	w.wantNothing(w.alice, w.bob) // a name that lies makes nobody speak in clear

	// He is gone: the incumbent does not answer, and Bob is who he is.
	m.poses("")
	m.leave()
	time.Sleep(time.Until(failed.Add(2200 * time.Millisecond))) // bob.example's negative cache
	a := mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	if t.Logf("bob.example AAAA after %v", a.took); a.took > 1700*time.Millisecond {
		t.Error("it should take little more than the second that the incumbent has to answer")
	}
	w.heldBy(w.bobKey, "bob.example", "too.example")
	var flows []*stream
	for _, addr := range both(w.bob) {
		flows = append(flows, startStream(t, w.alice, w.bob, addr))
	}

	// Beside Bob's SA there is no place for him, as somebody or as nobody.
	m.take()
	m.poses("evil.example")
	for _, name := range []string{"evil.example", "evil2.example"} {
		mustWithhold(t, w.alice, name)
	}
	for i, addr := range both(w.bob) {
		t.Logf("nobody from %v: %v", addr, m.initiates("", addr, both(w.alice)[i]))
	}
	for _, f := range flows {
		f.goesOn(disturbed)
	}
	w.heldBy(w.bobKey, "bob.example", "too.example")
	w.onlyProtected(w.alice, w.bob)
}

// heldBy fails the test unless Alice's status says that Bob's addresses are protected by the key, in the names of some of these.
func (w *attackWorld) heldBy(key identity, names ...string) {
	w.t.Helper()
	rows := w.aliceTac.peers(w.bob)
	for _, p := range rows {
		other := slices.ContainsFunc(p.Names, func(n string) bool { return !slices.Contains(names, n) })
		if p.State != "protected" || p.Assurance != "authenticated" || p.KeyID != key.fingerprint(w.t) || other || len(p.Names) == 0 {
			w.t.Errorf("alice's status of bob: %+v, want the key %s, of %v", p, key.fingerprint(w.t), names)
		}
	}
	if len(rows) != 2 {
		w.t.Errorf("alice's status of bob has %d rows", len(rows))
	}
}
