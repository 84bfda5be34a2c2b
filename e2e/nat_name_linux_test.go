package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// Both ends have keys in DNS, and one of them is behind a NAT.

// TestNameBehindNAT (certoe-11, TRUST.md R7): Carol's name publishes the NAT's addresses and her key. Bob, who has heard of her from DNS alone, knows that he speaks with her, at
// the address that he has assigned. The NAT's address is not hers for that: nothing stands on it, Erin behind it is not disturbed, and who looks Carol's name up is withheld
// it. Dave, behind the same NAT, says that he is Carol too, and is nobody; where nobody is let in he is refused.
//
//tacit:attack A-18 a name whose key and address are proven from behind a NAT: the NAT's address is not its own
//tacit:attack A-29 who tells the name of another behind the same NAT is nobody
func TestNameBehindNAT(t *testing.T) {
	for what, policy := range map[string]string{"anybody may come in": "", "only who has a name": onlyNamed} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w, carolKey := namedWorld(t)
			w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost, policy: policy})
			w.nameBehindNAT(carolKey, policy == "")
		})
	}
}

// namedWorld has a name for Carol, at the NAT's addresses.
func namedWorld(t *testing.T) (w *natWorld, carolKey identity) {
	t.Helper()
	w = newNATWorld(t, func(w *natWorld) []zoneFile {
		carolKey = newIdentity(t)
		return []zoneFile{{"example.", bindNSEC, append(hostRecords("bob.example.", w.bob, &w.bobKey), hostRecords("carol.example.", w.nat, &carolKey)...)}}
	})
	w.routed(w.bob)
	return w, carolKey
}

func (w *natWorld) nameBehindNAT(carolKey identity, anybody bool) {
	t := w.t
	t.Helper()
	w.saysCarol(w.carol, carolKey)
	w.saysCarol(w.dave, newIdentity(t))
	atBob := watchElements(t, w.bob)
	w.talk(w.carol)
	w.onlyInUDP(w.carol, w.bob)
	w.onlyInUDP(w.nat, w.bob)
	if anybody {
		w.talk(w.dave)
	} else {
		w.refused("bob.example", w.bob, w.dave)
	}
	flows := []*stream{startStream(t, w.erin, w.bob, w.bob.Addr4()), startStream(t, w.erin, w.bob, w.bob.Addr6())}
	echo(t, w.carol, both(w.carol)...)
	echo(t, w.dave, both(w.dave)...)
	eventually(t, 5*time.Second, "bob has found what DNS says of Carol", func() bool {
		return slices.ContainsFunc(w.bobTac.statusPeers(), func(p peerStatus) bool { return p.Assurance == "authenticated" })
	})
	w.knowsCarol(anybody)
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} { // what Bob sends comes to Carol, by the mapping that she has made
		a := ask(t, w.bob, "carol.example", kind)
		_, why := a.ede()
		t.Logf("bob: carol.example %s: %s in %v, %q", dns.Type(kind), dns.RcodeToString[a.Rcode], a.took.Round(time.Millisecond), why)
		if a.Rcode != dns.RcodeServerFailure || why == "" {
			t.Errorf("bob: carol.example: got\n%v\nwant SERVFAIL, and why", a.Msg)
		}
	}
	for _, f := range flows {
		f.goesOn(disturbed)
	}
	w.knowsCarol(anybody) // who has looked her up has changed nothing
	for _, e := range atBob() {
		if slices.ContainsFunc(both(w.nat), func(a netip.Addr) bool { return strings.Contains(e, a.String()) }) {
			t.Errorf("on bob there was for a while: %s", e)
		}
	}
	for _, p := range w.bobTac.peers(w.nat) {
		if p.State != "clear" || p.Assurance != "none" {
			t.Errorf("bob's status of the NAT: %+v", p)
		}
	}
	if log := w.bobTac.log(); !strings.Contains(log, "proved the key of carol.example: behind a NAT at "+w.nat.Addr4().String()) {
		t.Error("bob's log does not say that Carol is behind a NAT")
	}
}

// saysCarol starts the tacit of a host that says that it is Carol.
func (w *natWorld) saysCarol(h *lab.Host, key identity) {
	w.t.Helper()
	o := w.named("carol.example", key)
	o.dataplane = "tun"
	d := startTacit(w.t, h, w.anchor, o)
	eventually(w.t, slower(5*time.Second), h.Name+" knows what its name publishes", func() bool { return strings.Contains(d.log(), "our name publishes") })
}

// knowsCarol fails the test unless Bob's status has Carol by her name in each family, at an address that he has assigned, and Dave as nobody, if he may be.
func (w *natWorld) knowsCarol(dave bool) {
	w.t.Helper()
	of := w.lodgersOf()
	for _, a := range both(w.nat) {
		named := 0
		for _, p := range of[a] {
			switch {
			case p.State == "protected" && p.Assurance == "authenticated" && slices.Equal(p.Names, []string{"carol.example"}) && p.KeyID != "" && p.Address != a:
				named++
			case p.State != "protected" || p.Assurance != "anonymous" || len(p.Names) > 0:
				w.t.Errorf("bob's status: %+v", p)
			}
		}
		if want := map[bool]int{false: 1, true: 2}[dave]; named != 1 || len(of[a]) != want {
			w.t.Errorf("at %v are %+v: %d with a name, want 1 of %d", a, of[a], named, want)
		}
	}
	w.backwards(of)
}
