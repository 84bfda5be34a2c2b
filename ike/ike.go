// Package ike is an IKEv2 engine (RFC 7296) without a socket, a clock or a goroutine: bytes and the time go in, bytes and
// events come out. It never sees DNS; who may be believed is handed to it as an Authorization.
package ike

import (
	"crypto"
	"io"
	"math/rand/v2"
	"net/netip"
	"time"

	"tacit/ipsec"
)

// SAID names an IKE SA of this host: our own SPI of it. The name stays when the IKE SA is rekeyed, though the SPI does not.
type SAID uint64

// Datagram is one IKE message on the wire, without the non-ESP marker; or, outwards, the one octet of a NAT keepalive (RFC 3948, 2.3).
type Datagram struct {
	Local, Remote netip.AddrPort
	Data          []byte
}

// Output is what a call asks the caller to do. Send may always be sent at once. Wake is when Advance wants to be called
// next; zero: not at all.
type Output struct {
	Events []Event
	Send   []Datagram
	Wake   time.Time

	Dropped string // Receive: why the datagram was dropped, as in Stats.Drops; empty: it was not
}

// IDKind is an Identification type (RFC 7296, 3.5; RFC 7619, 2.2).
type IDKind uint8

// The identification types we use.
const (
	IDIPv4 IDKind = 1
	IDFQDN IDKind = 2
	IDIPv6 IDKind = 5
	IDNull IDKind = 13
)

// ID is an identity that an end claims. Value is an FQDN in lower case without the final dot, an address in its
// presentation form, or empty for IDNull.
type ID struct {
	Kind  IDKind
	Value string
}

// Config is the same for all SAs of an Endpoint.
type Config struct {
	Rand io.Reader // nil: crypto/rand

	Name   string           // our FQDN, sent as IDr (and as IDi when a Peer asks for it); empty: anonymous
	Public crypto.PublicKey // our key's public half: ed25519.PublicKey, *ecdsa.PublicKey, *rsa.PublicKey; nil: none

	AskKeys       bool            // ask initiators for their raw keys (RFC 7670): Authorization.Known will want them
	Encapsulate   bool            // ask for ESP in UDP also where there is no NAT (by the NAT detection hash)
	Inner         bool            // behind a NAT ask the responder for an address: the caller's data plane translates (ipsec.Pair.Inner)
	Outside       []netip.Addr    // addresses of NATs that lead our ports to us (outside.go); with Inner only
	IKELifetime   time.Duration   // 0: 8 h
	ChildLifetime time.Duration   // soft, for children that we initiated; a responder's is half as long again; 0: 1 h
	Liveness      time.Duration   // an SA that is silent for so long is probed by Do(Probe) of the caller or by itself; 0: never by itself
	CookieAbove   int             // half-open SAs, or of one network a quarter of them, above which a cookie is demanded (RFC 7296, 2.6); 0: 32; -1: always
	MaxHalfOpen   int             // half-open SAs above which nothing new is accepted; 0: 10,000
	FirstPair     uint32          // Pair ids start here
	Shard, Shards int             // of how many Endpoints that share the host's ports, a power of two, this is which: see ShardOf; 0, 0: the only one
	Census        Census          // what the caps are about, shared by all Endpoints of a host; nil: this one's own
	MaxSAs        int             // IKE SAs of all states above which no initiator is accepted; 0: 250,000
	MaxPerPeer    int             // IKE SAs that one address may ask for at one of ours; then its oldest go; 0: 64
	MaxPerNetwork int             // and one network (IPv4 /24, IPv6 /56), at all of ours; then no more; 0: 16,384
	CrashSecret   []byte          // makes the tokens of quick crash detection (RFC 6290); it must outlive the process; empty: we give none
	Path          int             // octets of an IP datagram that pass everywhere, at least 576; longer messages go in fragments (RFC 7383); 0: 1280
	PostQuantum   PostQuantum     // when the keys are made by the hybrid with ML-KEM; 0: After
	InitSends     int             // how often an IKE_SA_INIT that nobody answers is sent; 0: like any request
	Retransmit    []time.Duration // the wait after each send of a request; after the last it is given up. nil: 0.5 s, 1, 2, 4, 8 s
}

// Peer is whom to initiate to.
type Peer struct {
	Local, Remote netip.AddrPort // port 500; a NAT moves it to 4500
	RemoteID      ID             // the IDr that we require (TRUST.md A-14)
	LocalID       ID             // IDNull: NULL authentication (RFC 7619); IDFQDN: Config.Name, signed with our key
	Tell          Tell           // when the peer learns LocalID
	TellBehindNAT bool           // and it does only if a NAT is before us and the peer is asked for an address: LocalID has none of ours
	ClearRefused  bool           // the peer is told that packets came from it in clear and were dropped
	Childless     bool           // no Child SA, if the responder can do without (RFC 6023): only the proof is wanted
	Auth          Authorization  // what the peer must prove
}

// Tell says when a peer that we initiate to learns our name.
type Tell uint8

// IDi leaves before the responder has proved itself (RFC 7296, 1.2), unless it goes in a second authentication (RFC 4739), which costs
// a round trip and which the responder must know (TRUST.md A-52).
const (
	TellFirst     Tell = iota // at once
	TellAfter                 // in a second authentication where the responder knows that, else at once
	TellOnlyAfter             // in a second authentication, else never: we stay nobody
)

// Authorization says who the peer may be and what it may have: the PAD's word (RFC 4301, 4.4.3).
type Authorization struct {
	Keys      []crypto.PublicKey // any one of them suffices; at most 8 are tried
	Anonymous bool               // NULL authentication, or a signature by an unknown key, is allowed as nobody
	Pending   bool               // keys are still being looked up: with Anonymous the peer comes up as nobody, and Promote may follow
	Refuse    bool               // AUTHENTICATION_FAILED
	// Known says whether a key that the peer sends in CERT is one of whom it may be, though only its fingerprint was known before (RFC 7670, 5: "the
	// identity ... must be obtained by some out-of-band means"); nil: none is. It must be pure.
	Known func(crypto.PublicKey) bool
	// Same narrows Anonymous down to the one who was here before: it is given the key that the peer sent in CERT and proved, or nil if there is none; nil:
	// whoever it is. It must be pure.
	Same func(raw crypto.PublicKey) bool
	// Mask is what we can be known again by where we are nobody: a key that a peer who asks for it gets in CERT, beside ID_NULL (RFC 7619, 2.2: "ID_NULL
	// could be used when authentication is performed via raw public keys and the identities are the keys themselves"). It must sign in some tens of
	// microseconds; nil: there is none.
	Mask crypto.Signer
	Mode ipsec.Mode // preferred; Tunnel is the fallback where the peer does not echo USE_TRANSPORT_MODE
	// Inner is the address that an initiator gets that is behind a NAT (AuthorizationWanted.Inner): all that is between us and it is what that one may ask
	// for. Nobody else may have it while the IKE SA lives.
	Inner netip.Addr
	// Selector is what the peer may ask for; zero: our address and its own, everything.
	Selector ipsec.Selector
}

// Endpoint holds the IKE SAs of one shard. It is owned by one goroutine: none of its methods may run beside another.
// No method returns an error: a bad datagram is dropped and counted, a dead SA is a Closed event.
type Endpoint struct {
	cfg     Config
	offer   offer
	cookies cookies
	stats   Stats
	jitter  *rand.Rand

	sas    map[SAID]*sa     // by our SPI
	heirs  map[SAID]*sa     // those whose SAID is not their SPI: they were rekeyed
	young  map[youngKey]*sa // those that may have crossed another
	half   map[halfKey]*sa  // responders that are not established
	spis   map[ipsec.SPI]struct{}
	timers timers
	work   map[uint64]work     // key exchanges that are out, by token
	suites map[ikeSuite]string // their summaries

	peers       map[pairOfHosts][]*sa // established, oldest first
	shown       int                   // tokens of quick crash detection since shownSince
	shownSince  moment
	fragmented  int // octets of messages that are not whole
	nextPair    uint32
	lastToken   uint64
	lastVersion moment // of the last INVALID_MAJOR_VERSION

	called time.Time // when the call came that is being served
	now    moment    // the same
	out    Output    // and what it returns
	spare  Output    // empty lists with room, see Recycle
}

// Result is Signature, SharedSecret or Installed.
type Result interface{ result() }

// Signature answers SignatureWanted.
type Signature struct {
	Token uint64
	Sig   []byte
	Err   error
}

// Installed answers ChildWanted: the data plane's acknowledgement.
type Installed struct {
	Token uint64
	Err   error
}

func (Signature) result() {}
func (Installed) result() {}

// Command is what Do does to an SA.
type Command uint8

// The commands.
const (
	Probe       Command = iota + 1 // liveness check now (an empty INFORMATIONAL)
	Delete                         // a DELETE, retransmitted, then Closed
	RekeyChild                     // rekey the Child SAs now
	RekeyIKE                       // rekey the IKE SA now
	TellRefused                    // a Probe that says what Peer.ClearRefused does
)

// Event is one of the types below.
type Event interface{ event() }

// AuthorizationWanted: a responder has a decrypted IKE_AUTH request and must know whom it may believe. Answer: Authorize.
type AuthorizationWanted struct {
	SA            SAID
	Local, Remote netip.AddrPort
	ID            ID               // what the initiator claims; not verified
	Null          bool             // it uses NULL authentication
	Raw           crypto.PublicKey // the key in its CERT, which it has not proved yet; nil: none
	Began         time.Time        // when its first message came
	More          bool             // its name follows when we have proved ours: another AuthorizationWanted; of the answer to this one only Refuse counts
	Asked         ID               // the IDr that it asked for; Kind 0: none. The engine has refused names that are not ours.
	Inner         bool             // it is behind a NAT, and asks for an address: Authorization.Inner
}

// SignatureWanted asks for a signature by our key over Data with the hash (crypto.Hash(0) for Ed25519; Data is then the
// message, otherwise its digest). PSS says which RSA scheme. Answer: Supply(Signature).
type SignatureWanted struct {
	SA    SAID
	Token uint64
	Data  []byte
	Opts  crypto.SignerOpts
}

// ChildWanted: selectors and keys are ready; install Pair. Answer: Supply(Installed). Only then does a responder reply.
type ChildWanted struct {
	SA        SAID
	Token     uint64
	Pair      ipsec.Pair
	Initiator bool // of this exchange: install both directions; a responder installs the inbound one
	Rekey     bool // Pair.ID is known already
}

// Established: the IKE SA is authenticated. Initiators see it when the response is verified, responders when the request is.
type Established struct {
	SA            SAID
	Local, Remote netip.AddrPort
	Initiator     bool
	RemoteID      ID               // what the peer says it is
	Key           crypto.PublicKey // the key of Authorization.Keys that it proved; nil: anonymous
	Raw           crypto.PublicKey // anonymous: the key that it sent in CERT and proved; nobody says whose it is, but it can be known again
	NAT           NAT
	Summary       string        // suite in a few words, for status
	RTT           time.Duration // of the first exchange (initiator)
}

// NAT is what NAT detection found (RFC 7296, 2.23). Remote is the peer's word: one that wants its ESP in UDP says so too, so that only
// an address that differs from the one it owns tells a real one.
type NAT struct{ Local, Remote bool }

// Promoted: a peer that came up as nobody has proved a key by now.
type Promoted struct {
	SA       SAID
	RemoteID ID
	Key      crypto.PublicKey
}

// ClearRefused: the peer has dropped what came from us in clear. An initiator's follows Established.
type ClearRefused struct{ SA SAID }

// ChildUp: the Child SA carries traffic. An initiator's follows its Supply, a responder's its reply.
type ChildUp struct {
	SA    SAID
	Pair  ipsec.Pair // without keys
	Rekey bool
}

// ChildRefused: the peer grants no Child SA that AddChild asked for.
type ChildRefused struct {
	SA       SAID
	Selector ipsec.Selector
	Err      error
}

// ChildPreferred: send with this Pair from now on, if it is not the one already (InstallOutbound). Another of the same traffic is about
// to end.
type ChildPreferred struct {
	SA    SAID
	Pair  ipsec.Pair // without keys
	Rekey bool       // what ends is an older SA of the same Pair: a Pair that is not armed stays so
}

// ChildRetired: an older inbound SA of the Pair has ended (after a rekey): Retire it.
type ChildRetired struct {
	SA   SAID
	Pair uint32
	In   ipsec.SPI
}

// ChildDown: the Child SA is gone: Remove it.
type ChildDown struct {
	SA   SAID
	Pair uint32
	Err  error
}

// Rekeyed: the IKE SA has new keys and a new lifetime; it and its children are as they were.
type Rekeyed struct {
	SA        SAID
	Initiator bool   // we asked for it
	Summary   string // as in Established
}

// Redirected: the peer's NAT has given it another address or port (Follow, or a message of the peer's). Redirect the Pair.
type Redirected struct {
	SA   SAID
	Pair ipsec.Pair // without keys
}

// Alive: an authenticated message came from the peer (an answer to Probe, any request), and nobody has said Hush.
type Alive struct {
	SA    SAID
	Owner any // what Own was told of it; nil: nothing
}

// Closed: the SA is gone, its children before it. Err nil: deleted by either side. The SAID is never heard of again.
type Closed struct {
	SA  SAID
	Err error
}

func (AuthorizationWanted) event() {}
func (SignatureWanted) event()     {}
func (ChildWanted) event()         {}
func (Established) event()         {}
func (Promoted) event()            {}
func (ClearRefused) event()        {}
func (ChildUp) event()             {}
func (ChildRefused) event()        {}
func (ChildPreferred) event()      {}
func (ChildRetired) event()        {}
func (ChildDown) event()           {}
func (Rekeyed) event()             {}
func (Redirected) event()          {}
func (Alive) event()               {}
func (Closed) event()              {}

// Stats counts what an Endpoint did. Drops is by reason.
type Stats struct {
	SAs, HalfOpen                 int
	Sent, Received, Retransmitted uint64
	Drops                         map[string]uint64
}
