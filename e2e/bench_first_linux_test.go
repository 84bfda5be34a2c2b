package e2e

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tacit/lab"
)

const contacts = 31 // samples of first-contact

// benchFirstContact times a cold lookup of a name with an Ed25519 key less one of a name without, in the same zone: tacit and the
// forwarder above it are fresh and know neither, the client is anonymous and has no peer. Its measure is the bare handshake of
// two strongSwans.
func benchFirstContact(t *testing.T) {
	needE2E(t, "nsd", "unbound", "dnssec-signzone", "charon-systemd", "swanctl")
	w := newWorld(t)
	key := newIdentity(t)
	records := hostRecords("warm.example.", w.plain, nil)
	records = append(records, hostRecords("bare.example.", w.plain, nil)...)
	records = append(records, hostRecords("bob.example.", w.bob, &key)...)
	dir, anchor := signZones(t, zoneFile{"example.", bindNSEC, records})
	startNSD(t, w.ns, dir)
	unbound := startUnbound(t, w.up, w.ns.Addr4().String())
	up := w.up.Addr4().String()
	startTacit(t, w.bob, anchor, options{name: "bob.example", identity: key.pem, upstream: up})
	alice := startTacit(t, w.alice, anchor, options{upstream: up})
	swan := newSwanBench(t, w)
	var ours, theirs samples
	var stages stageTimes
	for i := range contacts {
		if i > 0 {
			alice.stop()
			if err := unbound.Stop(5 * time.Second); err != nil {
				t.Fatal(err)
			}
			unbound = startUnbound(t, w.up, w.ns.Addr4().String())
			alice.start(false)
		}
		ours.add(firstContact(t, w, alice, i, bareContact, &stages), time.Millisecond)
		theirs.add(swan.handshake(), time.Millisecond)
	}
	for _, s := range stages.inOrder() {
		t.Logf("%-26s %s", s+", ms", stages.at[s].spread())
	}
	figure(t, "first-contact", "ms", ours, "strongswan", theirs)
}

// firstContact is one sample. The zone's own keys are known by then, from a third name.
func firstContact(t *testing.T, w *world, alice *tacit, i int, want string, stages *stageTimes) time.Duration {
	t.Helper()
	a := newAsker(t, w.alice)
	a.address("warm.example", w.plain.Addr4().String())
	time.Sleep(50 * time.Millisecond) // what the start brought with it is over
	w.sync()
	w.tap.Reset()
	seen := len(alice.log())
	var from, to time.Time
	var bare time.Duration
	lookups := []func(){
		func() {
			asked, answered := a.address("bare.example", w.plain.Addr4().String())
			bare = answered.Sub(asked)
		},
		func() { from, to = a.address("bob.example", w.bob.Addr4().String()) },
	}
	lookups[i%2]()
	lookups[1-i%2]()
	w.sync()
	stages.add("lookup without a key", bare)
	stages.add("lookup with a key", to.Sub(from))
	stages.cable(t, w.handshakes(w.alice, w.bob), from, to, want)
	stages.log(t, alice.log()[seen:], from, to)
	return to.Sub(from) - bare
}

// handshakes are the IKE messages between the IPv4 addresses of two hosts.
func (w *world) handshakes(a, b *lab.Host) []lab.Packet {
	ends := map[netip.Addr]bool{a.Addr4(): true, b.Addr4(): true}
	return w.tap.Select(func(p lab.Packet) bool { return p.Class == lab.ClassIKE && ends[p.Src] && ends[p.Dst] })
}

// stageTimes is when each stage of a lookup was reached, counted from the query.
type stageTimes struct{ at map[string]samples }

func (s *stageTimes) inOrder() []string {
	return slices.SortedFunc(maps.Keys(s.at), func(a, b string) int { return cmp.Compare(s.at[a].median(), s.at[b].median()) })
}

func (s *stageTimes) add(stage string, d time.Duration) {
	if s.at == nil {
		s.at = map[string]samples{}
	}
	x := s.at[stage]
	x.add(d, time.Millisecond)
	s.at[stage] = x
}

// What may pass of IKE between query and answer: each message once each way. A name is told when the responder has proved himself.
const (
	bareContact  = "IKE_SA_INIT request, IKE_SA_INIT response, IKE_AUTH request, IKE_AUTH response"
	namedContact = bareContact + ", IKE_AUTH request, IKE_AUTH response"
)

// cable takes the IKE messages of a lookup, which must be those that are wanted, and no others.
func (s *stageTimes) cable(t *testing.T, ps []lab.Packet, from, to time.Time, want string) {
	t.Helper()
	var got []string
	for _, p := range ps {
		h, ok := p.IKEHeader()
		if !ok {
			t.Fatalf("at %v: an IKE packet without an IKE message", p.Time.Sub(from))
		}
		way := "request"
		if h.Response {
			way = "response"
		}
		stage := lab.ExchangeName(h.Exchange) + " " + way
		if h.Exchange > 35 && len(got) == strings.Count(want, ",")+1 {
			continue // the hybrid, when all is done: nobody waits for it
		}
		got = append(got, stage)
		if p.Time.Before(from) || p.Time.After(to) {
			t.Fatalf("%s %v after the query, not between it and its answer (%v)", stage, p.Time.Sub(from), to.Sub(from))
		}
		s.add(stage, p.Time.Sub(from))
	}
	if g := strings.Join(got, ", "); g != want {
		t.Fatalf("between query and answer: got %s; want %s", g, want)
	}
}

var stageLine = regexp.MustCompile(`(?m)^.* msg=(dns-validated|sa-installed|answer-released) .* t=(\S+)$`)

// log takes the daemon's own lines about a lookup.
func (s *stageTimes) log(t *testing.T, text string, from, to time.Time) {
	t.Helper()
	found := 0
	for _, m := range stageLine.FindAllStringSubmatch(text, -1) {
		at, err := time.Parse(time.RFC3339Nano, m[2])
		if err != nil {
			t.Fatal(err)
		}
		if at.After(from) && at.Before(to) && !strings.Contains(m[0], "rekey=true") { // the hybrid's is of no stage
			found++
			s.add(m[1], at.Sub(from))
		}
	}
	if found != 3 {
		t.Fatalf("the log has %d of 3 stages:\n%s", found, text)
	}
}

// swanBench is two strongSwans on hosts of their own.
type swanBench struct {
	w         *world
	from, to  *lab.Host
	initiator *swan
}

func newSwanBench(t *testing.T, w *world) *swanBench {
	t.Helper()
	b := &swanBench{w: w}
	b.from, b.to, b.initiator = swanPair(t, w, false)
	b.handshake() // the first reads keys and opens what stays open
	return b
}

// swanPair is two strongSwans on hosts of their own, with the kernel's ESP if that is set; the first initiates when it is told to.
func swanPair(t *testing.T, w *world, kernel bool) (from, to *lab.Host, initiator *swan) {
	t.Helper()
	for i, h := range []**lab.Host{&from, &to} {
		var err error
		name := []string{"swan-from", "swan-to"}[i]
		if *h, err = w.lab.Host(name, lab.Prefixes(fmt.Sprintf("192.0.2.%d/24", 11+i), fmt.Sprintf("2001:db8::%d/64", 11+i))...); err != nil {
			t.Fatal(err)
		}
	}
	own, peer := newIdentity(t), newIdentity(t)
	startSwan(t, to, swanConf{id: "to.example", peerID: "from.example", key: peer, peerKey: own, peer: from, kernel: kernel})
	return from, to, startSwan(t, from, swanConf{id: "from.example", peerID: "to.example", key: own, peerKey: peer, peer: to, kernel: kernel})
}

// handshake is the time on the cable from the first IKE_SA_INIT request to the IKE_AUTH response.
func (b *swanBench) handshake() time.Duration {
	t := b.w.t
	t.Helper()
	b.w.sync()
	b.w.tap.Reset()
	b.initiator.ctl("--initiate", "--child", "v4-host")
	b.w.sync()
	var from, to time.Time
	for _, p := range b.w.handshakes(b.from, b.to) {
		h, ok := p.IKEHeader()
		switch {
		case !ok:
		case lab.ExchangeName(h.Exchange) == "IKE_SA_INIT" && !h.Response && from.IsZero():
			from = p.Time
		case lab.ExchangeName(h.Exchange) == "IKE_AUTH" && h.Response:
			to = p.Time
		}
	}
	if from.IsZero() || to.IsZero() {
		t.Fatalf("strongSwan: no handshake on the cable:\n%s", tail(b.initiator.log(), 30))
	}
	b.initiator.ctl("--terminate", "--ike", "v4")
	return to.Sub(from)
}
