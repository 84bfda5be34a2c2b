package tun

import "sync/atomic"

// tableShards divides a table so that a change copies a small part of it: at 10,000 entries some forty.
const tableShards = 256

// table is a map that the packet path reads without a lock: each shard is an immutable map behind an atomic pointer. Writers
// exclude each other by the Plane's lock.
type table[K comparable, V any] struct {
	shard  func(K) uint8
	shards [tableShards]atomic.Pointer[map[K]V]
}

// get may be called from anywhere.
func (t *table[K, V]) get(k K) (v V, ok bool) {
	if m := t.shards[t.shard(k)].Load(); m != nil {
		v, ok = (*m)[k]
	}
	return v, ok
}

func (t *table[K, V]) put(k K, v V) {
	t.change(k, func(m map[K]V) { m[k] = v })
}

func (t *table[K, V]) remove(k K) {
	t.change(k, func(m map[K]V) { delete(m, k) })
}

// change puts a changed copy in the place of a shard.
func (t *table[K, V]) change(k K, do func(map[K]V)) {
	at := &t.shards[t.shard(k)]
	next := make(map[K]V)
	if old := at.Load(); old != nil {
		for k, v := range *old {
			next[k] = v
		}
	}
	do(next)
	at.Store(&next)
}

// shardOfKey spreads by what differs between hosts of one network.
func shardOfKey(k addrKey) uint8 {
	return k.peer[15] ^ k.peer[14] ^ k.peer[7] ^ k.own[15]
}
