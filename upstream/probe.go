package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// The measures of probes.
const (
	probeTimeout = time.Second      // of one question of a probe; each is asked twice
	probeEvery   = 10 * time.Minute // while all is well
	probeSick    = time.Minute      // while something does not pass
	probeSoonest = 10 * time.Second // between two probes, whatever fails
)

// findings are what a probe of a way saw pass.
type findings struct {
	answers    bool   // anything at all
	signatures bool   // RRSIG with DO set, also in large answers
	keys       bool   // TYPE45 (IPSECKEY), or the proof that there is none
	why        string // what does not pass; empty: everything does
}

// fit says whether records of a type pass by the way, for all that is known. Before the first probe everything does.
func (w *way) fit(rrtype uint16) bool {
	f := w.found.Load()
	switch {
	case f == nil:
		return true
	case rrtype == dns.TypeIPSECKEY:
		return f.signatures && f.keys
	case rrtype == dns.TypeDS, rrtype == dns.TypeDNSKEY, w.direct:
		return f.signatures
	}
	return f.answers
}

// State is what is known of a way.
type State struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`            // everything passes
	Why  string `json:"why,omitempty"` // what does not
}

// States are those of all ways, in order of preference.
func (r *Router) States() []State {
	var all []State
	for _, w := range r.ways {
		s := State{Name: w.name, Why: "not probed yet"}
		if f := w.found.Load(); f != nil {
			s.OK, s.Why = f.why == "", f.why
		}
		all = append(all, s)
	}
	return all
}

// Run probes all ways, again when one fails and from time to time, until ctx ends.
func (r *Router) Run(ctx context.Context) {
	for {
		r.Probe(ctx)
		next := probeEvery
		if slices.ContainsFunc(r.States(), func(s State) bool { return !s.OK }) {
			next = probeSick
		}
		soonest, later := time.NewTimer(r.soonest), time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-soonest.C:
		}
		select {
		case <-ctx.Done():
			return
		case <-r.again:
		case <-later.C:
		}
	}
}

// Reprobe has Run probe soon. It does not wait.
func (r *Router) Reprobe() {
	select {
	case r.again <- struct{}{}:
	default:
	}
}

// Renew forgets what was learned by way of another network, and has Run probe soon.
func (r *Router) Renew() {
	for _, w := range r.ways {
		w.renew()
	}
	r.Reprobe()
}

// Probe asks by every way for what DNSSEC needs, and notes what passes.
func (r *Router) Probe(ctx context.Context) {
	var wg sync.WaitGroup
	for _, w := range r.ways {
		wg.Go(func() {
			f := probe(ctx, w, r.probed)
			if ctx.Err() != nil {
				return
			}
			old := w.found.Swap(&f)
			switch {
			case old == nil && f.why == "", old != nil && *old == f:
				r.log.Debug("way to the DNS probed", "way", w.name, "why", f.why)
			case f.why == "":
				r.log.Info("way to the DNS is good", "way", w.name)
			default:
				r.log.Warn("way to the DNS is not good for everything", "way", w.name, "why", f.why)
			}
		})
	}
	wg.Wait()
}

// probe sees what passes by a way. The zone is one with a trust anchor: what should be there is known without asking anybody.
func probe(ctx context.Context, w *way, zone string) findings {
	var keys, types, large, plainly, tcp error
	var wg sync.WaitGroup
	wg.Go(func() {
		keys = probeFor(ctx, w, zone, dns.TypeDNSKEY, func(m *dns.Msg) bool {
			return has(m.Answer, dns.TypeDNSKEY) && signed(m.Answer, dns.TypeDNSKEY)
		})
	})
	wg.Go(func() {
		types = probeFor(ctx, w, zone, dns.TypeIPSECKEY, func(m *dns.Msg) bool {
			return signed(m.Answer, dns.TypeIPSECKEY) || signed(m.Ns, dns.TypeNSEC) || signed(m.Ns, dns.TypeNSEC3)
		})
	})
	// That there is no such name is proven at greater length than anything else. The label is a new one: nobody has its denial at hand.
	wg.Go(func() {
		large = probeFor(ctx, w, fmt.Sprintf("probe-%08x.%s", rand.Uint32(), strings.TrimPrefix(zone, ".")), dns.TypeA, func(m *dns.Msg) bool {
			return signed(m.Answer, dns.TypeA) || signed(m.Ns, dns.TypeNSEC) || signed(m.Ns, dns.TypeNSEC3)
		})
	})
	wg.Go(func() { plainly = probeFor(ctx, w, zone, dns.TypeSOA, func(*dns.Msg) bool { return true }) })
	wg.Go(func() { tcp = probeTCP(ctx, w, zone) })
	wg.Wait()
	f := findings{answers: plainly == nil || answered(plainly), signatures: keys == nil && large == nil, keys: types == nil}
	switch {
	case !f.answers:
		f.why = plainly.Error()
	case keys != nil:
		f.why = "signatures do not pass: " + keys.Error()
	case large != nil:
		f.why = "large answers do not pass: " + large.Error()
	case types != nil:
		f.why = "TYPE45 does not pass: " + types.Error()
	case tcp != nil:
		f.why = "TCP does not pass: " + brief(tcp)
	}
	return f
}

// lacking is an answer without what was asked for.
type lacking struct{ what string }

func (l lacking) Error() string { return l.what }

func answered(err error) bool {
	var l lacking
	return errors.As(err, &l)
}

// probeFor asks for records, twice where no answer comes, and says what is wrong with the answer.
func probeFor(ctx context.Context, w *way, name string, rrtype uint16, good func(m *dns.Msg) bool) (err error) {
	for range 2 {
		q := new(dns.Msg)
		q.SetQuestion(name, rrtype)
		q.CheckingDisabled = true
		q.SetEdns0(udpSize, rrtype != dns.TypeSOA)
		tctx, cancel := context.WithTimeout(ctx, probeTimeout)
		var m *dns.Msg
		m, err = w.ask(tctx, q)
		cancel()
		switch {
		case err != nil:
			err = errors.New(brief(err))
			continue
		case !usable(m.Rcode):
			return lacking{dns.RcodeToString[m.Rcode]}
		case !good(m):
			return lacking{"the answer comes without its proof"}
		}
		return nil
	}
	return err
}

// probeTCP sees whether a server that is asked over UDP first can be asked over TCP.
func probeTCP(ctx context.Context, w *way, zone string) error {
	s, ok := w.carrier.(*plain)
	if !ok {
		return nil
	}
	q := new(dns.Msg)
	q.SetQuestion(zone, dns.TypeSOA)
	edns(q)
	ctx, cancel := context.WithTimeout(ctx, probeTimeout*3/4) // so that the second try of the others knows
	defer cancel()
	_, err := s.overTCP(ctx, q)
	s.noTCP.Store(err != nil)
	return err
}

func has(rrs []dns.RR, rrtype uint16) bool {
	return slices.ContainsFunc(rrs, func(rr dns.RR) bool { return rr.Header().Rrtype == rrtype })
}

// signed says whether there is a signature over records of the type.
func signed(rrs []dns.RR, rrtype uint16) bool {
	return slices.ContainsFunc(rrs, func(rr dns.RR) bool {
		sig, ok := rr.(*dns.RRSIG)
		return ok && sig.TypeCovered == rrtype
	})
}

func (f findings) String() string {
	return fmt.Sprintf("answers %t, signatures %t, keys %t: %s", f.answers, f.signatures, f.keys, f.why)
}
