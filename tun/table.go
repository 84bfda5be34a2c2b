package tun

import (
	"hash/maphash"
	"sync/atomic"
)

// leastBuckets is what a table begins with.
const leastBuckets = 64

// table is a map that the packet path reads without a lock: chains of nodes that never change. Writers exclude each other by the
// Plane's lock; a change costs as much as its chain is long.
type table[K comparable, V any] struct {
	seed    maphash.Seed
	buckets atomic.Pointer[[]atomic.Pointer[node[K, V]]] // a power of two; nil: nothing was put
	n       int                                          // the writers'
}

type node[K comparable, V any] struct {
	key   K
	value V
	next  *node[K, V]
}

func (t *table[K, V]) bucket(all []atomic.Pointer[node[K, V]], k K) *atomic.Pointer[node[K, V]] {
	return &all[maphash.Comparable(t.seed, k)&uint64(len(all)-1)]
}

// get may be called from anywhere.
func (t *table[K, V]) get(k K) (v V, ok bool) {
	all := t.buckets.Load()
	if all == nil {
		return v, false
	}
	for at := t.bucket(*all, k).Load(); at != nil; at = at.next {
		if at.key == k {
			return at.value, true
		}
	}
	return v, false
}

func (t *table[K, V]) put(k K, v V) {
	t.remove(k)
	all := t.buckets.Load()
	if all == nil || t.n >= len(*all) {
		all = t.rebuild(max(leastBuckets, 2*t.n))
	}
	at := t.bucket(*all, k)
	at.Store(&node[K, V]{k, v, at.Load()})
	t.n++
}

// remove puts a copy of the chain before the node in its place.
func (t *table[K, V]) remove(k K) {
	if _, ok := t.get(k); !ok {
		return
	}
	at := t.bucket(*t.buckets.Load(), k)
	var before []*node[K, V]
	gone := at.Load()
	for ; gone.key != k; gone = gone.next {
		before = append(before, gone)
	}
	rest := gone.next
	for _, b := range before {
		rest = &node[K, V]{b.key, b.value, rest}
	}
	at.Store(rest)
	if t.n--; t.n < len(*t.buckets.Load())/8 {
		t.rebuild(max(leastBuckets, 2*t.n))
	}
}

// rebuild makes the table anew, with at least so many buckets. Who reads meanwhile reads the old one.
func (t *table[K, V]) rebuild(least int) *[]atomic.Pointer[node[K, V]] {
	size := leastBuckets
	for size < least {
		size *= 2
	}
	old := t.buckets.Load()
	if old == nil {
		t.seed = maphash.MakeSeed()
	} else if size == len(*old) {
		return old
	}
	all := make([]atomic.Pointer[node[K, V]], size)
	if old != nil {
		for i := range *old {
			for n := (*old)[i].Load(); n != nil; n = n.next {
				at := t.bucket(all, n.key)
				at.Store(&node[K, V]{n.key, n.value, at.Load()})
			}
		}
	}
	t.buckets.Store(&all)
	return &all
}
