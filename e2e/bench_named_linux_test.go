package e2e

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"tacit/ike"
)

// benchFirstContactNamed times a first contact in which both ends prove who they are, and neither knows anything of the other before: the responder's
// caches are as cold as the initiator's. Its measure is the same with an initiator that is nobody, in turn.
func benchFirstContactNamed(t *testing.T) {
	named, bare := measureContacts(t, contacts)
	figure(t, "first-contact-named", "ms", named, "first-contact", bare)
}

// TestNamedContacts runs the benchmark in small.
func TestNamedContacts(t *testing.T) { measureContacts(t, 1) }

func measureContacts(t *testing.T, n int) (named, bare samples) {
	t.Helper()
	needE2E(t, "nsd", "unbound", "dnssec-signzone")
	w := newWorld(t)
	aliceKey, bobKey := newIdentity(t), newIdentity(t)
	records := append(hostRecords("warm.example.", w.plain, nil), hostRecords("bare.example.", w.plain, nil)...)
	records = append(records, hostRecords("bob.example.", w.bob, &bobKey)...)
	// Alice's own zone: nothing of it is known to the responder, not even its keys.
	dir, anchor := signZones(t, zoneFile{"example.", bindNSEC, records}, zoneFile{"alice.", bindNSEC, hostRecords("host.alice.", w.alice, &aliceKey)})
	startNSD(t, w.ns, dir)
	up := w.up.Addr4().String()
	contact := func(i int, name, policy, want string, stages *stageTimes) time.Duration {
		unbound := startUnbound(t, w.up, w.ns.Addr4().String())
		bob := startTacit(t, w.bob, anchor, options{name: "bob.example", identity: bobKey.pem, upstream: up, policy: policy})
		alice := startTacit(t, w.alice, anchor, options{name: name, identity: aliceKey.pem, upstream: up, top: "identify = \"all\""})
		took := firstContact(t, w, alice, i, want, stages)
		if rows := bob.peers(w.alice); name != "" && (len(rows) != 1 || rows[0].Assurance == "none") {
			t.Fatalf("bob's status of alice: %+v", rows)
		}
		alice.stop()
		bob.stop()
		if err := unbound.Stop(5 * time.Second); err != nil {
			t.Fatal(err)
		}
		return took
	}
	var stages, other stageTimes
	for i := range n {
		named.add(contact(i, "host.alice", onlyNamed, namedContact, &stages), time.Millisecond)
		bare.add(contact(i, "", "", bareContact, &other), time.Millisecond)
	}
	for _, s := range stages.inOrder() {
		t.Logf("%-26s %s", s+", ms", stages.at[s].spread())
	}
	return named, bare
}

// peersSize is how many clients a responder has.
type peersSize struct {
	named, anonymous, atOnce int
	batch                    int       // set-ups before the initiators read their last answers: who is silent for five seconds is asked whether he is there
	pinned                   setupSize // what it is compared with
	runs, queries            int
	settles                  time.Duration
}

var peersFull = peersSize{named: 10_000, anonymous: 10_000, batch: 200, atOnce: 8, pinned: setupFull, runs: 100, queries: cachedQueries, settles: 20 * time.Second}

// peersLimit is what a peer may take of our memory, KiB.
const peersLimit = 10

// benchPeerMemory measures a responder with thousands of clients, half of whom it knows by name from DNS: memory of all rooms together for a peer,
// against that of an IKE SA with its Child SA alone; the time of a set-up; and a lookup that a live claim answers, against one that is of class clear.
func benchPeerMemory(t *testing.T) {
	p := measurePeers(t, peersFull)
	figure(t, "peer-memory", "KiB", p.memory, "sa-memory", p.pinned)
	figure(t, "peer-setup-named", "us", p.named, "anonymous", p.anonymous)
	figure(t, "peer-lookup", "us", p.live, "clear", p.clear)
	if m := p.memory.median(); m > peersLimit {
		t.Errorf("%.1f KiB for a peer, want %d at most", m, peersLimit)
	}
}

// TestManyPeers runs the benchmark in small, so that it does not rot.
func TestManyPeers(t *testing.T) {
	measurePeers(t, peersSize{named: 60, anonymous: 60, batch: 60, atOnce: 8, pinned: setupSize{rounds: 1, each: 40, atOnce: 8, sas: 60}, runs: 1, queries: 20})
}

type peersFigures struct{ memory, pinned, named, anonymous, live, clear samples }

func measurePeers(t *testing.T, size peersSize) (p peersFigures) {
	t.Helper()
	needE2E(t, "nsd", "unbound", "dnssec-signzone")
	hosts := setupLab(t, "ours", "load", "pinned", "load-pinned", "ns", "up")
	h, from, ns, up := hosts[0], hosts[1], hosts[4], hosts[5]
	apart := newApart(t)
	pinned := tacitResponder(t, hosts[2], hosts[3], size.pinned.spare()+size.pinned.sas)
	pinned.apart = apart
	pinned.fill(t, size.pinned)
	p.pinned = pinned.memory

	own, peer := newIdentity(t), newIdentity(t)
	name := func(i int) string { return fmt.Sprintf("from%d.example", i) }
	records := []string{"open.example. 86400 IN A 192.0.2.200"}
	for i := range size.named {
		records = append(records, fmt.Sprintf("%s. 86400 IN A %s", name(i), initiatorAddr(i)), fmt.Sprintf("%s. 86400 IN %s", name(i), peer.typ45))
	}
	dir, anchor := signZones(t, zoneFile{"example.", bindNSEC, records})
	startNSD(t, ns, dir)
	startUnbound(t, up, ns.Addr4().String())
	route(t, h, from)
	l := newLoad(t, from, peer, name, loadPeer(t, h, own))
	l.speaks = true
	apart.children()
	d := startTacit(t, h, anchor, options{name: "to.example", identity: own.pem, upstream: up.Addr4().String(), dns: `internal-zones = ["example"]`,
		policy: "[[policy]]\nmatch = [\"open.example\"]\nclass = \"clear\"\n"})
	apart.self()
	pid := d.cmd.Process.Pid
	l.setUp(size.named/10, size.atOnce) // what is done once
	l.idle(size.settles)
	before := resident(t, pid)
	fill := func(n int, took *samples) {
		for n > 0 {
			batch := min(n, size.batch)
			took.add(l.setUp(batch, size.atOnce)/time.Duration(batch), time.Microsecond)
			l.idle(100 * time.Millisecond)
			n -= batch
		}
	}
	fill(size.named-size.named/10, &p.named)
	l.peer.LocalID = ike.ID{Kind: ike.IDNull}
	fill(size.anonymous, &p.anonymous)
	l.idle(max(size.settles, 2*time.Second))
	after := resident(t, pid)
	peers := size.named - size.named/10 + size.anonymous
	p.memory = samples{float64(after-before) / float64(peers)}
	t.Logf("%d peers: %d KiB before, %d after; set-ups in us: named %s; anonymous %s", peers, before, after, p.named.spread(), p.anonymous.spread())
	knows(t, d, size)

	a := newAsker(t, h)
	for range size.runs {
		p.live.add(cachedRun(t, a, name(size.named-1), size.queries), time.Microsecond)
		p.clear.add(cachedRun(t, a, "open.example", size.queries), time.Microsecond)
	}
	return p
}

// knows fails the test unless the responder has all of its clients, and knows of each who it is.
func knows(t *testing.T, d *tacit, size peersSize) {
	t.Helper()
	var s struct {
		Peers []peerStatus `json:"peers"`
	}
	out, err := d.run("status", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, p := range s.Peers {
		count[p.Assurance]++
	}
	if count["authenticated"] != size.named || count["anonymous"] != size.anonymous {
		t.Errorf("clients by what they have proved: %v, want %d named and %d anonymous", count, size.named, size.anonymous)
	}
}
