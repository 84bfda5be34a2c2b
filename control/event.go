package control

import (
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Kind tells the audit events apart.
type Kind string

// The kinds. A rekey is none of them.
const (
	SAUp      Kind = "sa-up"             // from now on an address is spoken to encrypted
	SADown    Kind = "sa-down"           // from now on it is not
	Promoted  Kind = "promoted"          // who came in as nobody has proved a key
	Withhold  Kind = "withheld"          // an address was left out of an answer, or packets without a lookup to it were refused
	Conflict  Kind = "conflict"          // a name claims an address whose live key is another's
	Downgrade Kind = "downgrade-refused" // less than what an address had proved before was not taken
	RollOver  Kind = "roll-over"         // an address has proved another key than before
	Ended     Kind = "flows-ended"       // connections that had been protected were ended, so as not to go on in clear
	// Present is no event: it is how `tacit status --watch` shows what there is at its beginning.
	Present Kind = "present"
)

// Kinds are all that a daemon records.
var Kinds = []Kind{SAUp, SADown, Promoted, Withhold, Conflict, Downgrade, RollOver, Ended}

// Event is one thing that happened, and why: a line of the log (msg=audit, with the same keys) and of Events. Texts are printable ASCII on
// one line, of at most MaxText octets each.
type Event struct {
	Seq       uint64     `json:"seq"` // counts from 1 at the daemon's start
	Time      time.Time  `json:"time"`
	Kind      Kind       `json:"event"`
	Address   netip.Addr `json:"address"`
	Local     netip.Addr `json:"local"` // our own address; empty where the event is about all of them
	Name      string     `json:"name"`  // whose, as A-labels without the final dot; empty: nobody's in particular
	Assurance Assurance  `json:"assurance"`
	KeyID     string     `json:"key_id"`
	Suite     string     `json:"suite"`
	Why       string     `json:"why"`
	LeftOut   uint64     `json:"left_out,omitempty"` // events before this one that were too many to record, or said the same again
}

// Events is what has happened after some Seq.
type Events struct {
	SchemaVersion int     `json:"schema_version"`
	Events        []Event `json:"events"`
	// Next is what to ask for the next time.
	Next uint64 `json:"next"`
	// Missed counts those that are forgotten: the daemon keeps the last few only.
	Missed uint64 `json:"missed,omitempty"`
}

// MaxText bounds text from outside, in octets (TRUST.md A-53).
const MaxText = 300

// Clean makes text from outside fit for a terminal and a log: printable ASCII on one line, the rest escaped, at most MaxText octets and
// an ellipsis. Names are A-labels already: what is not ASCII is no name.
func Clean(s string) string {
	cut := len(s) > MaxText
	if cut {
		s = s[:MaxText]
	}
	if strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c >= 0x7f }) {
		q := strconv.QuoteToASCII(s)
		s = strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
		if len(s) > MaxText {
			s, cut = s[:MaxText], true
		}
	}
	if cut {
		s += "..."
	}
	return s
}
