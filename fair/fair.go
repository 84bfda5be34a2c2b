// Package fair divides places among users, so that none of them can take what the others need (TRUST.md A-36).
package fair

import (
	"container/list"
	"context"
	"sync"
	"sync/atomic"
)

// Pool is a number of places. A user may have as many as are free beside his: one alone has half of all, two a third each, and there is always a place for
// the next. Who a user is, is the caller's to say; the empty one is as good as any. Safe for concurrent use.
type Pool struct {
	places int
	free   atomic.Int64 // written under the mutex

	// Everybody passes here, for less time than a channel takes; so a mutex.
	mu      sync.Mutex
	held    map[string]int
	waiting map[string]*list.List // of *waiter, the first first
	turns   []string              // the users that wait, whose turn is next first
}

// waiter waits for a place.
type waiter struct{ given chan struct{} }

// New is a Pool of so many places.
func New(places int) *Pool {
	p := &Pool{places: places, held: map[string]int{}, waiting: map[string]*list.List{}}
	p.free.Store(int64(places))
	return p
}

// Used is how many places are taken.
func (p *Pool) Used() int { return p.places - int(p.free.Load()) }

// Try takes a place without waiting, if the user may have one.
func (p *Pool) Try(user string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.take(user)
}

// Take waits for a place until ctx ends, whose error it returns then. A user's turn comes after one of each other user that waits.
func (p *Pool) Take(ctx context.Context, user string) error {
	p.mu.Lock()
	if p.take(user) {
		p.mu.Unlock()
		return nil
	}
	l := p.waiting[user]
	if l == nil {
		l = list.New()
		p.waiting[user] = l
		p.turns = append(p.turns, user)
	}
	w := &waiter{make(chan struct{})}
	e := l.PushBack(w)
	p.mu.Unlock()
	select {
	case <-w.given:
		return nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-w.given: // at the same moment
		p.put(user)
	default:
		l.Remove(e)
	}
	return ctx.Err()
}

// Give gives a place of the user back.
func (p *Pool) Give(user string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.put(user)
}

// take is Try. The mutex is the caller's, here and below.
func (p *Pool) take(user string) bool {
	if int64(p.held[user]) >= p.free.Load() {
		return false
	}
	p.held[user]++
	p.free.Add(-1)
	return true
}

// put is Give: the next in turn who may have the place gets it.
func (p *Pool) put(user string) {
	if p.held[user]--; p.held[user] == 0 {
		delete(p.held, user)
	}
	p.free.Add(1)
	for n := len(p.turns); n > 0 && p.free.Load() > 0; n-- {
		next := p.turns[0]
		l := p.waiting[next]
		p.turns = p.turns[1:]
		if first := l.Front(); first != nil && p.take(next) {
			close(l.Remove(first).(*waiter).given)
		}
		if l.Len() == 0 {
			delete(p.waiting, next)
		} else {
			p.turns = append(p.turns, next)
		}
	}
}
