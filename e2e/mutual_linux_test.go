package e2e

import (
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// The responder looks the initiator up (TRUST.md R7): both ends have names, and prove them to each other.

// mutualWorld has a key for Alice too. Mallory's name has his key and his address, and Alice's address as well.
func mutualWorld(t *testing.T) (w *attackWorld, aliceKey identity) {
	t.Helper()
	aliceKey = newIdentity(t)
	w = newAttackWorld(t, func(w *attackWorld) []zoneFile {
		records := append(hostRecords("bob.example.", w.bob, &w.bobKey), hostRecords("alice.example.", w.alice, &aliceKey)...)
		records = append(records, hostRecords("roams.example.", w.plain, &aliceKey)...) // Alice's key, and not her address
		plain := append(hostRecords("alice.plain.", w.alice, &aliceKey), hostRecords("bob.plain.", w.bob, nil)...)
		return []zoneFile{{"example.", bindNSEC, records}, {"plain.", unsigned, append(plain, hostRecords("other.plain.", w.bob, nil)...)}}
	})
	return w, aliceKey
}

// named is the configuration of a host with a name that it tells everybody.
func (w *attackWorld) named(name string, key identity) options {
	return options{name: name, identity: key.pem, upstream: w.upstreamOfTheHost, top: `identify = "all"`}
}

// onlyNamed is a rule of a host that lets nobody in without a proven name.
const onlyNamed = `[[policy]]
match = ["0.0.0.0/0", "::/0"]
class = "private-or-clear"
accept-anonymous = false
`

// knows is bob's status of a host in both families: all must have the assurance, and the names.
func (d *tacit) knows(at *lab.Host, assurance string, names ...string) bool {
	rows := d.peers(at)
	for _, r := range rows {
		if r.Assurance != assurance || !slices.Equal(r.Names, names) {
			return false
		}
	}
	return len(rows) == 2
}

// TestMutual: Bob's caches are cold, and he knows nothing of Alice but what DNS says. After Alice's first packets he has proven her name, and
// needs no negotiation to reach her.
func TestMutual(t *testing.T) {
	for what, policy := range map[string]string{"anybody may come in": "", "only who has a name": onlyNamed} {
		t.Run(what, func(t *testing.T) {
			w, aliceKey := mutualWorld(t)
			o := w.named("bob.example", w.bobKey)
			o.policy = policy
			w.bobTac = startTacit(t, w.bob, w.anchor, o)
			w.aliceTac = startTacit(t, w.alice, w.anchor, w.named("alice.example", aliceKey))
			mustResolve(t, w.alice, "bob.example", w.bob.Addr4().String(), w.bob.Addr6().String())
			for _, addr := range both(w.bob) {
				transfer(t, w.alice, w.bob, addr, 100_000)
			}
			eventually(t, 5*time.Second, "bob knows alice", func() bool { return w.bobTac.knows(w.alice, "authenticated", "alice.example") })
			if !w.aliceTac.knows(w.bob, "authenticated", "bob.example") {
				t.Errorf("alice's status: %+v", w.aliceTac.peers(w.bob))
			}
			mustAnswer(t, w.bob, "alice.example", both(w.alice)...)
			w.sync()
			if n := len(w.tap.Select(func(p lab.Packet) bool {
				h, ok := p.IKEHeader()
				return ok && h.Exchange == 34 && !h.Response && has(w.bob, p.Src)
			})); n != 0 {
				t.Errorf("bob has begun %d negotiations", n)
			}
			for _, addr := range both(w.alice) {
				transfer(t, w.bob, w.alice, addr, 100_000)
			}
			w.onlyProtected(w.alice, w.bob)
		})
	}
}

// TestPromoted: DNS takes a second over Alice's key. She comes in as nobody meanwhile, and becomes somebody without losing a packet.
func TestPromoted(t *testing.T) {
	w, aliceKey := mutualWorld(t)
	w.liar.tell(func(q dns.Question, a *dns.Msg) *dns.Msg {
		if dns.CanonicalName(q.Name) == "alice.example." {
			time.Sleep(time.Second)
		}
		return a
	})
	w.bobTac = startTacit(t, w.bob, w.anchor, w.named("bob.example", w.bobKey))
	w.aliceTac = startTacit(t, w.alice, w.anchor, w.named("alice.example", aliceKey))
	if a := mustAnswer(t, w.alice, "bob.example", w.bob.Addr4()); a.took > 700*time.Millisecond {
		t.Errorf("Alice's answer waited %v for Bob's DNS", a.took)
	}
	flow := startStream(t, w.alice, w.bob, w.bob.Addr4())
	promoted := func() bool {
		rows := w.bobTac.peers(w.alice)
		return len(rows) > 0 && rows[0].Assurance == "authenticated" && slices.Equal(rows[0].Names, []string{"alice.example"})
	}
	if promoted() {
		t.Error("she was somebody at once: nothing is seen of the promotion")
	}
	eventually(t, 5*time.Second, "alice is promoted", promoted)
	flow.goesOn(disturbed)
	w.onlyProtected(w.alice, w.bob)
}

// TestStolenName (TRUST.md A-18): names that DNS does not give to the host that tells them. It is nobody, and where nobody comes in it is
// refused; what it tells is no claim on anything.
//
//tacit:attack A-18 five stolen names: nobody, or refused where nobody comes in
func TestStolenName(t *testing.T) {
	w, aliceKey := mutualWorld(t)
	for _, tt := range []struct {
		what, name string
		key        identity
		host       *lab.Host
	}{
		{"somebody else's name", "alice.example", w.malKey, w.mallory},
		{"somebody else's name and key, at another address", "alice.example", aliceKey, w.mallory},
		{"the key, and another's address", "roams.example", aliceKey, w.alice},
		{"a name without a signed zone", "alice.plain", aliceKey, w.alice},
		{"a name that is not", "nobody.example", aliceKey, w.alice},
	} {
		for _, policy := range []string{"", onlyNamed} {
			o := w.named("bob.example", w.bobKey)
			o.policy = policy
			bob := startTacit(t, w.bob, w.anchor, o)
			liar := startTacit(t, tt.host, w.anchor, w.named(tt.name, tt.key))
			if policy == "" {
				mustAnswer(t, tt.host, "bob.example", both(w.bob)...)
				for _, addr := range both(w.bob) {
					transfer(t, tt.host, w.bob, addr, 1000)
				}
				time.Sleep(100 * time.Millisecond)
				if !bob.knows(tt.host, "anonymous") {
					t.Errorf("%s: %+v", tt.what, bob.peers(tt.host))
				}
			} else {
				mustWithhold(t, tt.host, "bob.example")
				if rows := bob.peers(tt.host); len(rows) != 0 {
					t.Errorf("%s: %+v", tt.what, rows)
				}
			}
			liar.stop()
			bob.stop()
		}
	}
}
