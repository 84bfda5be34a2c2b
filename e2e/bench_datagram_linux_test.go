package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"tacit/ike"
)

// datagramSize is how much is measured: rounds of so many probes, of responders with so many SAs; theirs are the first of ours.
type datagramSize struct {
	rounds, probes, atOnce int
	batch                  int // set-ups before the initiators read their last answers: who is silent for five seconds is asked whether he is there
	ours, theirs           []int
	settles                time.Duration
}

// strongSwan looks through the routes of all SAs for each new one: more than 10,000 take too long to set up.
var datagramFull = datagramSize{rounds: 15, probes: 5000, atOnce: 8, batch: 1000, ours: []int{1000, 10_000, 100_000}, theirs: []int{1000, 10_000}, settles: 10 * time.Second}

// benchDatagrams measures what a peer's probe takes a responder with many SAs: its processor time, from the socket to the socket.
func benchDatagrams(t *testing.T) {
	ours, theirs := measureDatagrams(t, datagramFull)
	for i, r := range theirs {
		figure(t, fmt.Sprintf("datagram-%d", datagramFull.theirs[i]), "us", ours[i].cpu, r.name, r.cpu)
	}
	few := datagramFull.ours[0]
	for i, r := range ours[1:] {
		figure(t, fmt.Sprintf("datagram-%d-by-%d", datagramFull.ours[i+1], few), "us", r.cpu, fmt.Sprint("tacit-", few), ours[0].cpu)
	}
}

// TestDatagramLoad runs the benchmark in small, so that it does not rot.
func TestDatagramLoad(t *testing.T) {
	measureDatagrams(t, datagramSize{rounds: 2, probes: 40, atOnce: 8, batch: 10, ours: []int{10, 20}, theirs: []int{10}})
}

// measureDatagrams has a responder of its own for each size, all at once, and asks them in turn.
func measureDatagrams(t *testing.T, size datagramSize) (ours, theirs []*responder) {
	t.Helper()
	needE2E(t, "dnssec-signzone", "charon-systemd", "swanctl")
	apart := newApart(t)
	var all []*responder
	add := func(r *responder, n int) *responder {
		r.apart = apart
		r.begin(t, setupSize{each: 10, atOnce: size.atOnce})
		for r.load.up < n {
			r.load.setUp(min(n-r.load.up, size.batch), size.atOnce)
			r.load.idle(10 * time.Millisecond)
		}
		t.Logf("%s has %d SAs", r.name, n)
		all = append(all, r)
		return r
	}
	// The largest first: whoever waits for the others is not served meanwhile, and ours asks its initiators whether they are there.
	ours, theirs = make([]*responder, len(size.ours)), make([]*responder, len(size.theirs))
	for i, n := range slices.Backward(size.theirs) {
		hosts := setupLab(t, fmt.Sprint("theirs-", i), fmt.Sprint("load-theirs-", i))
		theirs[i] = add(swanResponder(t, hosts[0], hosts[1]), n)
	}
	for i, n := range slices.Backward(size.ours) {
		hosts := setupLab(t, fmt.Sprint("ours-", i), fmt.Sprint("load-ours-", i))
		ours[i] = add(publicResponder(t, hosts[0], hosts[1]), n)
	}
	for _, r := range all {
		r.load.idle(size.settles / time.Duration(len(all)))
	}
	for range size.rounds {
		began := time.Now()
		before := map[*responder]time.Duration{}
		for _, r := range all {
			before[r] = processor(t, r.cmd.Process.Pid)
		}
		for _, r := range all {
			r.load.idle(size.settles / 5 / time.Duration(len(all)))
		}
		for _, r := range all {
			r.idle.add(time.Duration(float64(processor(t, r.cmd.Process.Pid)-before[r])/time.Since(began).Seconds()), time.Microsecond)
		}
		for _, r := range all {
			before := processor(t, r.cmd.Process.Pid)
			r.load.probe(size.probes, size.atOnce)
			r.cpu.add((processor(t, r.cmd.Process.Pid)-before)/time.Duration(size.probes), time.Microsecond)
		}
	}
	for _, r := range all {
		t.Logf("%s, %d SAs: %s us; idle, us a second: %s", r.name, r.load.up, r.cpu.spread(), r.idle.spread())
		r.end(t)
	}
	return ours, theirs
}

// probe has n initiators, in no order, and all before one does again, ask whether the responder lives, so many at once, and waits for the answers.
func (l *load) probe(n, atOnce int) {
	l.t.Helper()
	var list []*initiator
	for _, in := range l.initiators {
		list = append(list, in)
	}
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	l.answers = 0
	for i := range n {
		in := list[i%len(list)]
		l.turn(giveUp, func() bool { return i-l.answers < atOnce && !in.asking })
		in.asking = true
		l.output(in, in.engine.Do(time.Now(), in.id, ike.Probe))
	}
	l.turn(giveUp, func() bool { return l.answers == n })
	if l.answers != n || len(l.lost) > 0 {
		l.t.Fatalf("%d of %d probes are answered, %d SAs were closed: %v", l.answers, n, len(l.lost), l.lost)
	}
}
