package dnssec

import "sync/atomic"

// The work that one lookup may cost, whatever the upstream answers (CVE-2023-50387 "KeyTrap", CVE-2023-50868): no CNAME, retry or new query resets it.
const (
	maxSignatures = 96     // signatures tried; a cold chain of five zones with a NSEC3 denial takes about 16
	maxHashes     = 20_000 // SHA-1 blocks of NSEC3: 34 labels at 100 iterations, for six names
	maxQueries    = 96     // questions to the upstream: DS and DNSKEY of every label of an ip6.arpa name
	maxChain      = 12     // CNAME and DNAME followed
	maxSetSigs    = 8      // RRSIGs looked at for one RRset
	maxTagKeys    = 3      // keys tried for one RRSIG: tags do collide, but not often
	maxZoneKeys   = 32     // keys kept of one DNSKEY RRset
	maxDS         = 16     // DS records looked at for one delegation
	maxIterations = 100    // of NSEC3; above it a zone is as good as unsigned
	maxZones      = 4096   // delegations kept in the cache
	maxProofs     = 8192   // NSEC and NSEC3 records kept in the cache
	maxGather     = 8      // labels below the apex of names that cached NSEC3 are tried for: a hash each
	maxAnySets    = 24     // RRsets taken of an answer to ANY (RFC 8482, 4.1: they need not be all)
	maxWays       = 3      // ways that are tried before what is Bogus is called so
	maxPrefetch   = 4      // labels whose DS and DNSKEY are asked before they are known to be needed
	maxDenialRRs  = 16     // NSEC or NSEC3 records looked at for one denial
	maxWalkAtOnce = 6      // DS questions in flight of one walk down
)

// budget counts work down. It is shared by the goroutines of a lookup: one atomic each, no lock.
type budget struct {
	sigs, hashes, queries atomic.Int64
}

func newBudget() *budget {
	b := new(budget)
	b.sigs.Store(maxSignatures)
	b.hashes.Store(maxHashes)
	b.queries.Store(maxQueries)
	return b
}

func (b *budget) signature() bool   { return b.sigs.Add(-1) >= 0 }
func (b *budget) query() bool       { return b.queries.Add(-1) >= 0 }
func (b *budget) hash(n int64) bool { return b.hashes.Add(-n) >= 0 }
func (b *budget) spent() bool {
	return b.sigs.Load() < 0 || b.hashes.Load() < 0 || b.queries.Load() < 0
}
