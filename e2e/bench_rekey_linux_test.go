package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"tacit/control"
	"tacit/ike"
	"tacit/lab"
)

// floodSize is how much is measured: rounds of quiet and of flood, each with rekeys all the time.
type floodSize struct {
	rounds, sas int
	each        time.Duration // of quiet, and of flood
	pace        int           // spoofed IKE_SA_INITs in a second
	every       time.Duration // from one rekey to the next
}

// floodFull is 100,000 of them.
var floodFull = floodSize{rounds: 5, sas: 50, each: 2 * time.Second, pace: 10_000, every: 10 * time.Millisecond}

// benchRekeyFlood measures what established SAs feel of first messages from spoofed addresses: the 99th percentile of the time that the rekey of a
// Child SA takes its initiator, while they come and while none do.
func benchRekeyFlood(t *testing.T) {
	flood, quiet := measureRekeys(t, floodFull)
	figure(t, "rekey-flood", "ms", flood, "quiet", quiet)
	if flood.median() > 2*quiet.median() {
		t.Errorf("the p99 of a rekey is %.2f ms under the flood, more than twice the %.2f ms without", flood.median(), quiet.median())
	}
}

// TestRekeyUnderFlood runs the benchmark in small: no rekey is lost, and the flood leaves no state.
//
//tacit:attack A-22 while thousands of first messages a second come from spoofed addresses, established SAs are rekeyed; at most 128 half-open SAs are left
func TestRekeyUnderFlood(t *testing.T) {
	measureRekeys(t, floodSize{rounds: 1, sas: 10, each: time.Second, pace: 2000, every: 50 * time.Millisecond})
}

func measureRekeys(t *testing.T, size floodSize) (flood, quiet samples) {
	t.Helper()
	needE2E(t, "dnssec-signzone")
	hosts := setupLab(t, "ours", "load", "mallory")
	h, mallory := hosts[0], hosts[2]
	output(t, h, "ip", "route", "add", "100.64.0.0/10", "via", mallory.Addr4().String())
	output(t, mallory, "ip", "route", "add", "local", "100.64.0.0/10", "dev", "lo")
	r := tacitResponder(t, h, hosts[1], size.sas)
	r.start()
	r.load.setUp(size.sas, 8)
	want := int(size.each/size.every) / 2
	rekeys := func() float64 {
		s := r.load.rekeyAll(size.each, size.every)
		if len(s) < want || len(r.load.lost) > 0 {
			t.Fatalf("%d rekeys in %v, want %d or more; closed: %v", len(s), size.each, want, r.load.lost)
		}
		return s.at(0.99)
	}
	rekeys() // the first of all
	spoof := newSpoofer(t, mallory, netip.AddrPortFrom(h.Addr4(), 500))
	for i := range size.rounds {
		quiet = append(quiet, rekeys())
		over := spoof.start(size)
		flood = append(flood, rekeys())
		sent := <-over
		t.Logf("round %d: p99 %.2f ms, and %.2f ms with %d first messages", i, quiet[i], flood[i], sent)
		if sent < size.pace*int(size.each/time.Second)*9/10 {
			t.Errorf("%d first messages were sent in %v", sent, size.each)
		}
	}
	var s control.Status
	out, err := r.daemon.run("status", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	if err != nil {
		t.Fatal(err)
	}
	half, all := s.Counters["ike_half_open"], s.Counters["ike_sas"]
	t.Logf("half-open %d of %d; cookies demanded %d", half, all, s.Counters["ike_dropped_cookie-demanded"])
	if half > 128 || all > uint64(size.sas)+half {
		t.Errorf("%d half-open SAs of %d, with %d established", half, all, size.sas)
	}
	return flood, quiet
}

// rekeyAll has the initiators rekey their Child SAs in turn, one in a while, and says how long each took.
func (l *load) rekeyAll(d, every time.Duration) (took samples) {
	var list []*initiator
	for _, in := range l.initiators {
		in.rekeys = nil
		list = append(list, in)
	}
	began := time.Now()
	n := 0
	l.every = every / 4
	defer func() { l.every = 0 }()
	l.turn(d, func() bool {
		for time.Since(began) > time.Duration(n)*every {
			if in := list[n%len(list)]; in.asked.IsZero() {
				in.asked = time.Now()
				l.output(in, in.engine.Do(in.asked, in.id, ike.RekeyChild))
			}
			n++
		}
		return false
	})
	l.idle(200 * time.Millisecond)
	for _, in := range list {
		took = append(took, in.rekeys...)
	}
	return took
}

// spoofer sends first messages from addresses of others.
type spoofer struct {
	t     *testing.T
	send  func(from netip.Addr, data []byte) error
	data  []byte
	count uint32
}

func newSpoofer(t *testing.T, h *lab.Host, to netip.AddrPort) *spoofer {
	t.Helper()
	c := wideSocket(t, h, 500)
	_, out := ike.New(ike.Config{PostQuantum: ike.Off}).Initiate(time.Now(), ike.Peer{Local: netip.AddrPortFrom(h.Addr4(), 500), Remote: to})
	if len(out.Send) != 1 {
		t.Fatal("no first message")
	}
	return &spoofer{t: t, data: out.Send[0].Data, send: func(from netip.Addr, data []byte) error { return sendFrom(c, data, from, to) }}
}

// start sends at the pace of size for as long as a round of it is; the channel yields how many were sent.
func (s *spoofer) start(size floodSize) <-chan int {
	over := make(chan int, 1)
	go func() {
		n, began := 0, time.Now()
		for now := began; now.Sub(began) < size.each; now = time.Now() {
			for due := int(now.Sub(began).Seconds() * float64(size.pace)); n < due; n++ {
				s.count++
				binary.BigEndian.PutUint64(s.data, uint64(s.count)<<20+1)
				from := netip.AddrFrom4([4]byte{100, 64 + byte(s.count>>16)&63, byte(s.count >> 8), byte(s.count)})
				if err := s.send(from, s.data); err != nil {
					s.t.Error(fmt.Errorf("from %v: %w", from, err))
					over <- n
					return
				}
			}
			time.Sleep(time.Millisecond)
		}
		over <- n
	}()
	return over
}
