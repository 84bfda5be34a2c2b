package dnssec

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// routeTTL is how long a name keeps to the way that its proof came; then the Rerouter's own choice is tried again.
const routeTTL = 15 * time.Minute

// Rerouter is an Exchanger that has several ways to the DNS, as two upstreams are, and chooses among them by itself. A lookup whose proof does not come
// that way is made again by each of the others, within the same work budget: the first one may be broken, or lie.
type Rerouter interface {
	Exchanger
	// Ways are the numbers of the ways that are worth trying then, best first, the surest last. None is 0, which stands for the Rerouter's own choice.
	Ways() []int
	// Chosen is told by which way the proof came at last, and what was wrong with what had come before.
	Chosen(name string, rrtype uint16, way int, why string)
}

// Crucial says whether only DNSSEC asks for such records, so that no other use of the DNS depends on who is asked for them.
func Crucial(rrtype uint16) bool {
	return rrtype == dns.TypeDS || rrtype == dns.TypeDNSKEY || rrtype == dns.TypeIPSECKEY
}

// errand is what a question takes with it to the Exchanger, and what it brings back.
type errand struct {
	way  int
	work *budget // nil: unbounded
	mu   sync.Mutex
	by   carriage // the mutex: of several tries under way each may be the one that brings it
}

// carriage is how an answer came.
type carriage struct {
	via string // by which way
	why string // not by the first one
}

// ErrSpent is a question whose lookup has no means left, by an Exchanger that needs several for one: see Spend.
var ErrSpent = errors.New("the sub-queries of the lookup are used up")

type errandKey struct{}

func (e *errand) in(ctx context.Context) context.Context {
	return context.WithValue(ctx, errandKey{}, e)
}

func errandOf(ctx context.Context) *errand {
	e, _ := ctx.Value(errandKey{}).(*errand)
	return e
}

// Reroute is ctx for a question that is to go a certain way of a Rerouter.
func Reroute(ctx context.Context, way int) context.Context { return (&errand{way: way}).in(ctx) }

// Way is the way that a Rerouter is to take; 0 leaves it to choose.
func Way(ctx context.Context) int {
	if e := errandOf(ctx); e != nil {
		return e.way
	}
	return 0
}

// Spend is called by an Exchanger that needs several questions to answer one, before each of them. False: the lookup that began it has cost enough.
func Spend(ctx context.Context) bool {
	e := errandOf(ctx)
	return e == nil || e.work == nil || e.work.send()
}

// Carried is called by an Exchanger to say by which way its answer came, and why not by its first.
func Carried(ctx context.Context, via, why string) {
	if e := errandOf(ctx); e != nil {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.by = carriage{via, why}
	}
}

type userKey struct{}

// OnBehalf is ctx for a Lookup whose questions are those of a user, to an Exchanger that divides its means among users. "" is nobody in particular.
func OnBehalf(ctx context.Context, user string) context.Context {
	if user == "" {
		return ctx
	}
	return context.WithValue(ctx, userKey{}, user)
}

// User is whose Lookup it is, or whose question that an Exchanger is asked.
func User(ctx context.Context) string {
	if e := errandOf(ctx); e != nil && e.work != nil {
		return e.work.user
	}
	user, _ := ctx.Value(userKey{}).(string)
	return user
}

// byWay is the key of work that is shared by those who go the same way.
func byWay(key string, way int) string {
	if way == 0 {
		return key
	}
	return key + " " + strconv.Itoa(way)
}

// routes are the ways of what could not be proven by the Rerouter's own choice. The zero value is ready.
//
// The mutex: every lookup looks here in passing, for less time than a channel takes.
type routes struct {
	mu  sync.Mutex
	all map[question]route
}

type route struct {
	way   int
	why   string // not by the Rerouter's choice
	until time.Time
}

// of is the way for a question; the zero value leaves it to the Rerouter.
func (r *routes) of(q question, now time.Time) route {
	r.mu.Lock()
	defer r.mu.Unlock()
	if found := r.all[q]; now.Before(found.until) {
		return found
	}
	return route{}
}

// put remembers a way; over maxRoutes the whole memory starts afresh.
func (r *routes) put(q question, to route) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if to.way == 0 {
		delete(r.all, q)
		return
	}
	if r.all == nil || len(r.all) >= maxRoutes {
		r.all = make(map[question]route)
	}
	r.all[q] = to
}

func (r *routes) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = nil
}

// unproven says whether another way may have the proof that ans lacks. What is not answered at all is only worth the way if the zone is signed: the names of
// others are nobody's business but the configured upstream's.
func (v *Validator) unproven(ctx context.Context, ans Answer, way int, now time.Time, work *budget) bool {
	silent := ans.Status == Indeterminate && (ans.EDE == dns.ExtendedErrorCodeNetworkError || ans.EDE == dns.ExtendedErrorCodeNoReachableAuthority)
	switch {
	case ans.Status == Bogus:
		return true
	case !silent || ctx.Err() != nil:
		return false
	case way != 0:
		return true
	case Crucial(ans.Type): // the Rerouter has asked everybody
		return false
	}
	return v.session(now, work).enclosing(ctx, locus(ans.Owner, ans.Type)).status == Secure
}

// reroute makes a lookup again by the other ways until one proves something. If none does, first stands.
func (v *Validator) reroute(ctx context.Context, r Rerouter, first Answer, taken int, now time.Time, work *budget) Answer {
	ways := slices.DeleteFunc(slices.Clone(r.Ways()), func(w int) bool { return w == taken })
	if taken != 0 {
		ways = append([]int{0}, ways...)
	}
	if len(ways) > maxWays-1 {
		ways = append(ways[:maxWays-2], ways[len(ways)-1])
	}
	q := question{first.Name, first.Type}
	for _, way := range ways {
		if work.spent() || ctx.Err() != nil {
			break
		}
		again := v.try(ctx, first.Name, first.Type, now, work, way)
		if again.Status < Insecure {
			continue
		}
		v.routes.put(q, route{way, first.Why, now.Add(routeTTL)})
		if way != 0 {
			again.Detour = first.Why
			r.Chosen(q.name, q.rrtype, way, first.Why)
		}
		return again
	}
	return first
}
