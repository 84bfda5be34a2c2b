package e2e

import (
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

const (
	cachedRuns    = 200  // of each of the two, in turn
	cachedQueries = 1000 // of a run, one after the other
)

// benchCachedLookup times a lookup that the cache answers, of a name with a live claim, against the same lookup at a daemon
// whose class for all names is clear. All are on one processor: else the scheduler has whoever asks wait for another to wake up, or not, which is most of the time.
func benchCachedLookup(t *testing.T) {
	needE2E(t, "nsd", "unbound", "dnssec-signzone")
	w := newWorld(t)
	clear, err := w.lab.Host("clear", lab.Prefixes("192.0.2.4/24", "2001:db8::4/64")...)
	if err != nil {
		t.Fatal(err)
	}
	key := newIdentity(t)
	addr := w.bob.Addr4().String()
	dir, anchor := signZones(t, zoneFile{"example.", bindNSEC, []string{
		"bob.example. 86400 IN A " + addr, "bob.example. 86400 IN " + key.typ45}})
	startNSD(t, w.ns, dir)
	startUnbound(t, w.up, w.ns.Addr4().String())
	up := w.up.Addr4().String()
	startTacit(t, w.bob, anchor, options{name: "bob.example", identity: key.pem, upstream: up})
	alice := startTacit(t, w.alice, anchor, options{upstream: up})
	open := startTacit(t, clear, anchor, options{upstream: up, policy: "[[policy]]\nmatch = [\"0.0.0.0/0\", \"::/0\"]\nclass = \"clear\"\n"})
	ours, theirs := newAsker(t, w.alice), newAsker(t, clear)
	for _, a := range []*asker{ours, theirs} {
		a.address("bob.example", addr)
		cachedRun(t, a, "bob.example", cachedQueries)
	}
	place(t, alice.cmd.Process.Pid, 1)
	place(t, open.cmd.Process.Pid, 1)
	place(t, os.Getpid(), 1)
	defer place(t, os.Getpid(), runtime.NumCPU())
	var with, without samples
	before := [2]time.Duration{processor(t, alice.cmd.Process.Pid), processor(t, open.cmd.Process.Pid)}
	for range cachedRuns {
		with.add(cachedRun(t, ours, "bob.example", cachedQueries), time.Microsecond)
		without.add(cachedRun(t, theirs, "bob.example", cachedQueries), time.Microsecond)
	}
	t.Logf("processor time of a query in the daemons: live claim %v, clear %v",
		(processor(t, alice.cmd.Process.Pid)-before[0])/(cachedRuns*cachedQueries), (processor(t, open.cmd.Process.Pid)-before[1])/(cachedRuns*cachedQueries))
	ours.address("bob.example", addr)
	theirs.address("bob.example", addr)
	w.sync()
	if n := len(w.handshakes(w.alice, w.bob)); n < 4 {
		t.Fatalf("%d IKE messages between alice and bob: there is no claim to be live", n)
	}
	if n := len(w.handshakes(clear, w.bob)); n > 0 {
		t.Fatalf("%d IKE messages of the host whose class is clear", n)
	}
	figure(t, "cached-lookup", "us", with, "clear", without)
}

// cachedRun is the time of one query of a run.
func cachedRun(t *testing.T, a *asker, name string, queries int) time.Duration {
	t.Helper()
	q := question(t, name)
	from := time.Now()
	for range queries {
		if _, _, b := a.ask(q); b[3]&15 != 0 || b[7] != 1 {
			m := new(dns.Msg)
			_ = m.Unpack(b)
			t.Fatalf("%s: got\n%v", name, m)
		}
	}
	return time.Since(from) / time.Duration(queries)
}
