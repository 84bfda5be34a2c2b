package e2e

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"tacit/ike"
	"tacit/ike/wire"
)

// datagramSize is how much is measured: rounds of so many probes, of responders with so many SAs; theirs are the first of ours.
type datagramSize struct {
	rounds, probes, atOnce int
	probesAtOnce           int // so many that the responder always has the next: what it takes to fall asleep, and to be woken, is no datagram's
	batch                  int // set-ups before the initiators read their last answers: who is silent for five seconds is asked whether he is there
	ours, theirs           []int
	settles                time.Duration
}

// strongSwan looks through the routes of all SAs for each new one: more than 10,000 take too long to set up.
var datagramFull = datagramSize{rounds: 30, probes: 3000, atOnce: 8, probesAtOnce: 64, batch: 1000, ours: []int{1000, 10_000, 100_000}, theirs: []int{1000, 10_000}, settles: 10 * time.Second}

// benchDatagrams measures what a peer's probe takes a responder with many SAs: its processor time, from the socket to the socket.
func benchDatagrams(t *testing.T) {
	ours, theirs := measureDatagrams(t, datagramFull)
	for i, r := range theirs {
		figure(t, fmt.Sprintf("datagram-%d", datagramFull.theirs[i]), "us", ours[i].cpu, r.name, r.cpu)
	}
	few := datagramFull.ours[0]
	for i, r := range ours[1:] {
		figure(t, fmt.Sprintf("datagram-%d-by-%d", datagramFull.ours[i+1], few), "us", r.cpu, fmt.Sprint("tacit-", few), ours[0].cpu)
		var ratios samples // the machine's speed changes from round to round
		for k := range r.cpu {
			ratios = append(ratios, r.cpu[k]/ours[0].cpu[k])
		}
		t.Logf("%d by %d SAs, round by round: %s", datagramFull.ours[i+1], few, ratios.spread())
	}
}

// TestDatagramLoad runs the benchmark in small, so that it does not rot.
func TestDatagramLoad(t *testing.T) {
	measureDatagrams(t, datagramSize{rounds: 2, probes: 40, atOnce: 8, probesAtOnce: 8, batch: 10, ours: []int{10, 20}, theirs: []int{10}})
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
			r.load.idle(size.settles / 10 / time.Duration(len(all)))
		}
		for _, r := range all {
			r.idle.add(time.Duration(float64(processor(t, r.cmd.Process.Pid)-before[r])/time.Since(began).Seconds()), time.Microsecond)
		}
		for _, r := range all {
			r.cpu.add(r.load.probe(size.probes, size.probesAtOnce, r.cmd.Process.Pid)/time.Duration(size.probes), time.Microsecond)
		}
	}
	for _, r := range all {
		t.Logf("%s, %d SAs: %s us; idle, us a second: %s", r.name, r.load.up, r.cpu.spread(), r.idle.spread())
		r.end(t)
	}
	return ours, theirs
}

// probe has n initiators, in no order, and all before one does again, ask whether the responder lives, so many at once, and waits for the answers. It says what
// processor time that took the process. What is sent is made before, and what comes is read after that: beside the responder the load does the same for
// few SAs as for many.
func (l *load) probe(n, atOnce, pid int) (took time.Duration) {
	l.t.Helper()
	var list []*initiator
	for _, in := range l.initiators {
		list = append(list, in)
	}
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	if l.answers = 0; len(list) == 0 {
		l.t.Fatal("there is no initiator to probe")
	}
	for done := 0; done < n; {
		var ds []ike.Datagram
		for range min(probesMade, len(list), n-done) {
			in := list[done%len(list)]
			out := in.engine.Do(time.Now(), in.id, ike.Probe)
			in.asking, in.wake, ds = true, out.Wake, append(ds, out.Send...)
			done++
		}
		before := processor(l.t, pid)
		came := l.exchange(ds, atOnce)
		took += processor(l.t, pid) - before
		for _, d := range came {
			if in := l.initiators[binary.BigEndian.Uint64(d.Data)]; in != nil {
				l.output(in, in.engine.Receive(time.Now(), d))
			}
		}
	}
	l.turn(giveUp, func() bool { return l.answers == n })
	if l.answers != n || len(l.lost) > 0 {
		l.t.Fatalf("%d of %d probes are answered, %d SAs were closed: %v", l.answers, n, len(l.lost), l.lost)
	}
	return took
}

// probesMade is how many probes are made before they are sent: of the fewest SAs each asks once.
const probesMade = 1000

// exchange sends requests, so many at once, and takes what comes until all are answered.
func (l *load) exchange(ds []ike.Datagram, atOnce int) (came []ike.Datagram) {
	l.t.Helper()
	answers, late := 0, time.After(patience)
	for sent := 0; answers < len(ds); {
		if sent < len(ds) && sent-answers < atOnce {
			l.send(ds[sent])
			sent++
			continue
		}
		select {
		case d := <-l.in:
			came = append(came, d)
			if h, err := wire.ParseHeader(d.Data); err == nil && h.Flags&wire.FlagResponse != 0 {
				answers++
			}
		case <-late:
			l.t.Fatalf("%d of %d requests are answered within %v", answers, len(ds), patience)
		}
	}
	return came
}
