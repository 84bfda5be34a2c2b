package ike

import "tacit/ike/wire"

// Several Endpoints can share a host's ports, each with SAs of its own that never move: their SPIs and Pair ids tell them apart.

// ours makes a number one of this Endpoint's.
func (e *Endpoint) ours(n uint64) uint64 {
	return n&^uint64(e.cfg.Shards-1) | uint64(e.cfg.Shard)
}

// ShardOf says which of several Endpoints a message is for. ok is false for an initiator's first message, which has no SPI of ours yet,
// and for what is no message: any of them will do, if it is the same one for all messages from an address.
func ShardOf(data []byte, shards int) (shard int, ok bool) {
	h, err := wire.ParseHeader(data)
	if err != nil {
		return 0, false
	}
	spi := h.InitiatorSPI
	if h.Flags&wire.FlagInitiator != 0 {
		spi = h.ResponderSPI
	}
	return int(spi & uint64(shards-1)), spi != 0
}
