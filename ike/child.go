package ike

import (
	"slices"
	"time"

	"tacit/ike/wire"
	"tacit/ipsec"
)

// childState is where a Child SA stands.
//
//	offered ──► inbound ──► up ◄──► rekeying ──► deleting ──► retired
//	                         └──────────────────────┘            ▲
//	                         └──── deleted by the peer ──────────┘
type childState uint8

const (
	childOffered  childState = iota // its exchange is under way
	childInbound                    // the data plane has been asked to accept it
	childUp                         // both ends have it
	childRekeying                   // up, and another is to take its place
	childDeleting                   // our DELETE is out
	childRetired                    // deleted; packets that are late are still taken for a moment
)

func (s childState) String() string {
	return [...]string{"offered", "inbound", "up", "rekeying", "deleting", "retired"}[s]
}

// childArrows are the allowed changes.
var childArrows = map[childState][]childState{
	childOffered:  {childInbound},
	childInbound:  {childUp},
	childUp:       {childRekeying, childDeleting, childRetired},
	childRekeying: {childUp, childDeleting, childRetired},
	childDeleting: {childRetired},
}

// childSA is two SAs of ESP that were made together.
type childSA struct {
	state     childState
	initiator bool // we asked for it
	unborn    bool // the data plane never had it
	in, out   ipsec.SPI
	born      moment
	rekeyAt   moment   // zero: another has taken its place
	endAt     moment   // when we delete it, if nobody else does; in retired: when nothing is taken on it any more
	sureAt    moment   // until then our answer may not have reached the peer, which does not know this one: we ask for nothing about it
	replaces  *childSA // what it was made in place of, while that is still there
	heir      *childSA // what has taken its place
}

// setState is the only place where the state changes.
func (c *childSA) setState(e *Endpoint, to childState) {
	if !slices.Contains(childArrows[c.state], to) {
		e.drop("no arrow from child " + c.state.String() + " to " + to.String()) // a mistake of this package
	}
	c.state = to
}

// child is a Pair: the Child SAs that follow each other by rekeys and share its ID.
type child struct {
	id       uint32
	mode     ipsec.Mode
	noPFS    bool           // the peer has refused a key exchange at a rekey
	selector ipsec.Selector // zero until one is up
	sas      []*childSA
	since    moment // since when it says TEMPORARY_FAILURE; zero: it does not
}

// firstborn is a child with the SA that it begins with, and room for the list of one.
type firstborn struct {
	child
	sa   childSA
	list [1]*childSA
}

// children are the Child SAs of an IKE SA. Each direction has one exchange under way at most.
type children struct {
	unsure bool // of one at least the peer may not have our answer: childSA.sureAt
	all    []*child
	wishes []wish
	mine   *negotiation // in an exchange of ours
	theirs *negotiation // in one of the peer's
	grant  grant
}

// grant is what the peer may have, by the Authorization of the IKE SA.
type grant struct {
	selector ipsec.Selector
	mode     ipsec.Mode
}

// negotiation is a Child SA in the making.
type negotiation struct {
	child      *child   // nil: a new one, until the data plane is asked
	old, fresh *childSA // old: what is rekeyed; nil for a new one
	mode       ipsec.Mode
	selector   ipsec.Selector
	ni         []byte
	share      *share
	again      bool // INVALID_KE_PAYLOAD was obeyed
	inner      bool // our address in it is the responder's to assign

	low       []byte       // the lower of the two nonces
	rival     *negotiation // of ours: the peer's rekey of the same Child SA, which we answered meanwhile
	redundant bool         // it has lost against the other: its creator deletes it

	followed bool           // the answer that is due is that to IKE_FOLLOWUP_KE
	token    uint64         // of the ChildWanted that is out
	deadline moment         // for its answer
	reply    []wire.Payload // responder
	pair     ipsec.Pair     // without keys
}

// Bounds of the Child SAs (TRUST.md A-23).
const (
	maxChildren   = 8                // Pairs of an IKE SA
	maxServing    = 4                // Child SAs of a Pair, rekeyed ones that nobody has deleted yet among them
	installWithin = 5 * time.Second  // a data plane that does not answer for so long has refused
	replacedFor   = 30 * time.Second // how long we wait for the DELETE of what the peer has replaced
)
