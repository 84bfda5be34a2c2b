package upstream

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// race asks one after the other: each begins when all before it failed, or when its patience with the one before ended. Those that are slow are not given up: the first
// good answer of any counts. A recursor with a cold cache is slow without being dead.
type race struct {
	tries    int
	round    int                       // how many of them differ: after those a bad answer is not asked for again
	patience func(i int) time.Duration // with try i, until the next one begins
	try      func(ctx context.Context, i int) (*dns.Msg, error)
	good     func(m *dns.Msg) bool
}

// outcome is how a race, or one try, ended.
type outcome struct {
	msg *dns.Msg
	err error
	try int
}

// run returns the first good answer. Otherwise bad is the first that was none, or the first error; neither, if nobody answered before ctx ended.
func (r race) run(ctx context.Context) (won outcome, bad outcome, ok bool) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel() // before the wait: it ends the tries
	results := make(chan outcome, r.tries)
	next := time.NewTimer(0)
	defer next.Stop()
	for running, sent, hopeless := 0, 0, 0; ; {
		select {
		case <-next.C:
			i := sent
			wg.Go(func() {
				m, err := r.try(ctx, i)
				results <- outcome{m, err, i}
			})
			running++
			if sent++; sent < r.tries {
				next.Reset(r.patience(i))
			}
		case o := <-results:
			running--
			if o.err == nil && r.good(o.msg) {
				return o, bad, true
			}
			if untrusted(o.err) {
				hopeless++
			}
			if bad.msg == nil && (o.msg != nil || bad.err == nil) {
				bad = o
			}
			switch {
			case running > 0:
			case ctx.Err() != nil, sent >= r.tries, sent >= r.round && (bad.msg != nil || errors.Is(bad.err, errNoTCP) || hopeless == sent):
				return outcome{}, bad, false
			case sent < r.round:
				next.Reset(0) // the next one is not asked in vain
			}
		case <-ctx.Done():
			return outcome{}, bad, false
		}
	}
}
