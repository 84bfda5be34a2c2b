package resolver

import "sync/atomic"

// Stats counts what a server did since its start.
type Stats struct {
	Queries   uint64 `json:"queries"`   // taken in
	Cached    uint64 `json:"cached"`    // of the lookups: answered from the cache
	Lookups   uint64 `json:"lookups"`   // sent to the Lookuper
	Watched   uint64 `json:"watched"`   // address answers that the Watcher saw
	Withheld  uint64 `json:"withheld"`  // answers with an address left out, or refused for it
	Bogus     uint64 `json:"bogus"`     // SERVFAIL because validation said bogus
	Blocked   uint64 `json:"blocked"`   // names of class block
	TimedOut  uint64 `json:"timed_out"` // lookups that a query did not wait for any longer
	Tripped   uint64 `json:"tripped"`   // key lookups not waited for, because their zone does not answer such
	Overload  uint64 `json:"overload"`  // queries over the cap
	Malformed uint64 `json:"malformed"` // packets that are no query
	Panics    uint64 `json:"panics"`    // caught; each is a bug
}

type counters struct {
	queries, cached, lookups, watched, withheld, bogus, blocked, timedOut, tripped, overload, malformed, panics atomic.Uint64
}

// Stats is a snapshot of the counters.
func (s *Server) Stats() Stats {
	c := &s.stats
	return Stats{
		Queries: c.queries.Load(), Cached: c.cached.Load(), Lookups: c.lookups.Load(), Watched: c.watched.Load(),
		Withheld: c.withheld.Load(), Bogus: c.bogus.Load(), Blocked: c.blocked.Load(), TimedOut: c.timedOut.Load(),
		Tripped: c.tripped.Load(), Overload: c.overload.Load(), Malformed: c.malformed.Load(), Panics: c.panics.Load(),
	}
}
