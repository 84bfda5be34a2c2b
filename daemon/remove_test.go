package daemon

import (
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"tacit/ipsec"
	"tacit/ipsec/ipsectest"
)

// A Pair whose hold could not be set stays until it can: without both, packets would leave in clear.
func TestPairStaysUntilTheHoldStands(t *testing.T) {
	fake := ipsectest.NewFake()
	l := &loop{dp: fake, log: slog.New(slog.DiscardHandler), now: time.Now, unheld: map[ipsec.Selector]time.Time{},
		done: make(chan func(time.Time), 1), ended: make(chan struct{})}
	defer close(l.ended)
	work := func() {
		for len(l.queue) > 0 {
			job := l.queue[0]
			l.queue = l.queue[1:]
			job()
			(<-l.done)(l.now())
		}
	}
	p := newPeer(key{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}, testLinger, testLifetime, l.now())
	s := ipsec.Host(p.local, p.remote)
	pair := ipsec.Pair{ID: 1, Selector: s, In: ipsec.SA{SPI: 300}, Out: ipsec.SA{SPI: 301}}
	if err := errors.Join(fake.InstallInbound(pair), fake.InstallOutbound(pair)); err != nil {
		t.Fatal(err)
	}

	fake.FailOn("SetPolicy", errors.New("no memory"))
	l.do(l.now(), p, doHold{l.now().Add(time.Minute)})
	l.do(l.now(), p, doRemove{1})
	work()
	if len(fake.Pairs()) != 1 {
		t.Fatal("the Pair is removed although nothing holds the address")
	}
	fake.FailOn("SetPolicy", nil)
	(<-l.done)(l.now()) // a second later
	work()
	if _, held := fake.Policy(s); !held || len(fake.Pairs()) != 0 {
		t.Errorf("held %v, Pairs %v; want the hold, and then the Pair removed", held, fake.Pairs())
	}
}
