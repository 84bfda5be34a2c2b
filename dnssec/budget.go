package dnssec

import (
	"runtime"
	"sync/atomic"
)

// The work that one lookup may cost, whatever the upstream answers (CVE-2023-50387 "KeyTrap", CVE-2023-50868): no CNAME, retry or new query resets it.
const (
	maxSignatures  = 96      // signatures tried; a cold chain of five zones with a NSEC3 denial takes about 16
	maxHashes      = 20_000  // SHA-1 blocks of NSEC3: 34 labels at 100 iterations, for six names
	maxDigests     = 64      // DS digests computed; a chain of five zones takes 5 to 15
	maxOctets      = 1 << 20 // of answers, uncompressed
	fastSignatures = 32      // above it a lookup is heavy: see lanes
	fastSetSigs    = 4       // the same, of one RRset: two algorithms and a roll-over
	fastHashes     = 4_000   // the same
	fewSignatures  = 4       // above it a lookup is long: nobody waits for it who has something else to do
	fewHashes      = 500     // the same
	maxQueries     = 96      // questions to the upstream: DS and DNSKEY of every label of an ip6.arpa name
	maxChain       = 12      // CNAME and DNAME followed
	maxSetSigs     = 8       // RRSIGs looked at for one RRset
	maxTagKeys     = 3       // keys tried for one RRSIG: tags do collide, but not often
	maxZoneKeys    = 32      // keys kept of one DNSKEY RRset
	maxDS          = 16      // DS records looked at for one delegation
	maxIterations  = 100     // of NSEC3; above it a zone is as good as unsigned
	maxZones       = 4096    // delegations kept in the cache
	maxProofs      = 4096    // NSEC and NSEC3 records kept in the cache
	maxWildRRs     = 32      // records of a wildcard's RRset that is kept
	maxGather      = 8       // labels below the apex of names that cached NSEC3 are tried for: a hash each
	maxAnySets     = 24      // RRsets taken of an answer to ANY (RFC 8482, 4.1: they need not be all)
	maxWays        = 4       // ways that are tried before what is Bogus is called so, the Rerouter's own choice among them
	maxRoutes      = 4096    // names whose way is remembered
	maxSends       = 128     // questions that an Exchanger may need for those: to each authority on the way down
	maxPrefetch    = 4       // labels whose DS and DNSKEY are asked before they are known to be needed
	maxDenialRRs   = 16      // NSEC or NSEC3 records looked at for one denial
	maxWalkAtOnce  = 6       // DS questions in flight of one walk down
)

// budget counts work down. It is shared by the goroutines of a lookup: one atomic each, no lock.
type budget struct {
	sigs, hashes, queries, digests, octets, sends atomic.Int64

	user string // whose lookup it is: others' do not wait for what he has begun

	odd atomic.Bool // a signature did not hold, or there are more signatures or keys than an honest zone has
}

func newBudget() *budget {
	b := new(budget)
	b.sigs.Store(maxSignatures)
	b.hashes.Store(maxHashes)
	b.queries.Store(maxQueries)
	b.digests.Store(maxDigests)
	b.octets.Store(maxOctets)
	b.sends.Store(maxSends)
	return b
}

// key is the key of work that lookups share, from that of what it is about.
func (b *budget) key(about string) string {
	if b == nil || b.user == "" {
		return about
	}
	return about + " " + b.user
}

func (b *budget) signature() bool     { return b.sigs.Add(-1) >= 0 }
func (b *budget) query() bool         { return b.queries.Add(-1) >= 0 }
func (b *budget) hash(n int64) bool   { return b.hashes.Add(-n) >= 0 }
func (b *budget) send() bool          { return b.sends.Add(-1) >= 0 }
func (b *budget) digest() bool        { return b.digests.Add(-1) >= 0 }
func (b *budget) answer(n int64) bool { return b.octets.Add(-n) >= 0 }
func (b *budget) spent() bool {
	return b.sigs.Load() < 0 || b.hashes.Load() < 0 || b.queries.Load() < 0 || b.digests.Load() < 0 || b.octets.Load() < 0
}

// heavy says whether the lookup has cost more cryptography than an honest one with a cold cache does, or is odd. An attacker who begins a
// lookup for each trap is so told from the others before the trap costs anything.
func (b *budget) heavy() bool {
	return b.odd.Load() || b.sigs.Load() < maxSignatures-fastSignatures || b.hashes.Load() < maxHashes-fastHashes
}

// long says whether the lookup has cost more than one whose zone is known.
func (b *budget) long() bool {
	return b.odd.Load() || b.sigs.Load() < maxSignatures-fewSignatures || b.hashes.Load() < maxHashes-fewHashes
}

// lanes are the semaphores for the cryptography of all lookups of a Validator: as many operations at once as there are processors, and of heavy lookups one
// in all. Each operation waits anew, so that an honest lookup stands behind one operation of an attacker's at a time, however many of those there are.
type lanes struct {
	all, heavy chan struct{}
}

func newLanes(n int) *lanes {
	return &lanes{make(chan struct{}, n), make(chan struct{}, 1)}
}

// enter waits for a turn; the function that it returns ends it.
func (l *lanes) enter(heavy bool) (leave func()) {
	if l == nil {
		return func() {}
	}
	if heavy {
		l.heavy <- struct{}{}
	}
	l.all <- struct{}{}
	return func() {
		<-l.all
		if heavy {
			<-l.heavy
			runtime.Gosched() // after whoever waits for a processor
		}
	}
}

// turn waits for one at computing.
func (c *checker) turn() (end func()) {
	if c.work.long() {
		c.leave()
	}
	return c.lanes.enter(c.work.heavy())
}
