package ike

import (
	"testing"

	"tacit/ike/wire"
)

// Every message but an initiator's first names the shard that it is for; SPIs and Pair ids of two shards never meet.
func TestShardOf(t *testing.T) {
	const shards = 8
	ids := map[uint64]int{}
	for shard := range shards {
		e := New(Config{Shard: shard, Shards: shards, FirstPair: 5})
		for range 50 {
			for _, id := range []uint64{uint64(e.newSAID()), uint64(e.newSPI())} {
				if int(id%shards) != shard {
					t.Fatalf("shard %d drew %x", shard, id)
				}
			}
		}
		for range 3 {
			if other, taken := ids[uint64(e.nextPair)]; taken || e.nextPair == 0 || int(e.nextPair%shards) != shard {
				t.Errorf("Pair %d of shard %d is shard %d's too", e.nextPair, shard, other)
			}
			ids[uint64(e.nextPair)] = shard
			e.nextPair += shards
		}
	}
	for _, tt := range []struct {
		name       string
		initiator  uint64
		responder  uint64
		flags      wire.Flags
		shard      int
		recognised bool
	}{
		{"an initiator's first", 13, 0, wire.FlagInitiator, 0, false},
		{"the answer to our first", 13, 22, wire.FlagResponse, 5, true},
		{"a request to a responder of ours", 13, 22, wire.FlagInitiator, 6, true},
		{"a request to an initiator of ours", 13, 22, 0, 5, true},
	} {
		m := wire.Message{Header: wire.Header{InitiatorSPI: tt.initiator, ResponderSPI: tt.responder, Exchange: wire.Informational, Flags: tt.flags}}
		data, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if shard, ok := ShardOf(data, shards); shard != tt.shard || ok != tt.recognised {
			t.Errorf("%s: got %d, %v", tt.name, shard, ok)
		}
	}
	if _, ok := ShardOf([]byte("no message"), shards); ok {
		t.Error("what is no message names a shard")
	}
}
