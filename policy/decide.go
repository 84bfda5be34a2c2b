package policy

import "tacit/dnssec"

// Outcome is what becomes of an address in an answer.
type Outcome uint8

// The outcomes.
const (
	Answer   Outcome = iota // release it as it is
	Protect                 // key it, release it when the data plane has acknowledged; failure withholds it
	Withhold                // leave it out (R1: this answer only; nothing happens to the address)
	ServFail                // the answer itself cannot be believed
	Refuse                  // the administrator blocked the name
)

func (o Outcome) String() string {
	if o > Refuse {
		return "unknown"
	}
	return [...]string{"answer", "protect", "withhold", "servfail", "refuse"}[o]
}

// MarshalText is String.
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// The Extended DNS Errors (RFC 8914, 4) that go with decisions. Other is for a negotiation that failed: IANA has no code for it,
// so its text says what happened.
const (
	EDEOther         uint16 = 0
	EDEIndeterminate uint16 = 5
	EDEBogus         uint16 = 6
	EDENSECMissing   uint16 = 12
	EDEBlocked       uint16 = 15
	EDEProhibited    uint16 = 18
	EDENone          uint16 = 0xffff
)

// Report is what status may say of a name because of DNS alone (TRUST.md 1, last column).
type Report string

// The reports.
const (
	ReportAuthenticated Report = "authenticated"      // once IKE has proven the key
	ReportNoKey         Report = "no key, proven"     // DNSSEC proves that there is none, or none that we may use
	ReportStripping     Report = "possible stripping" // a denial is missing that must be there
	ReportAnonymous     Report = "anonymous at best"
	ReportBogus         Report = "bogus"
	ReportClear         Report = "clear by policy"
	ReportBlocked       Report = "blocked by policy"
)

// Decision is a cell of the table of TRUST.md 1.
type Decision struct {
	Outcome    Outcome
	EDE        uint16 // RFC 8914 info code for Withhold, ServFail and Refuse; EDENone: none
	Why        string
	ReportedAs Report
	Anonymous  bool // encryption with whoever is there is to be tried: Protect waits for it, Answer does not
}

// Facts is what validation found out about an address and the key at its final owner. Each status is the weakest link of its
// chain.
type Facts struct {
	Addr   dnssec.Status
	Key    dnssec.Status
	Usable bool // the key answer holds a key that may be used for the address (pad.UsableKeys)
	Denied bool // the key answer is a denial
	// Anonymous: the rule takes a server that proves no key.
	Anonymous bool
}

// row is a line of the table: the first whose condition holds. The outcomes are in the order of the classes Private,
// PrivateOrClear, and ClearOrPrivate with Clear.
type row struct {
	holds                  func(f Facts) bool
	private, orClear, open Outcome
	ede                    uint16
	why                    string
	report                 Report
	nobody                 bool // no key is to be proven: anonymous is as good as it gets
}

// table is TRUST.md 1. What no row of the document mentions is decided so that an attacker who drops or alters packets gains
// nothing: an address that could not be validated is not released, a key that could not be validated is not a denial.
var table = []row{
	{func(f Facts) bool { return f.Addr == dnssec.Bogus },
		ServFail, ServFail, ServFail, EDEBogus, "the address is bogus", ReportBogus, false},
	{func(f Facts) bool { return f.Addr == dnssec.Indeterminate },
		ServFail, ServFail, ServFail, EDEIndeterminate, "the address could not be validated", ReportBogus, false},
	{func(f Facts) bool { return f.Addr == dnssec.Unchecked },
		ServFail, ServFail, Answer, EDEIndeterminate, "the address was not validated", ReportBogus, false},
	{func(f Facts) bool { return f.Addr == dnssec.Insecure },
		Withhold, Answer, Answer, EDEProhibited, "the address is provably unsigned", ReportAnonymous, true},
	{func(f Facts) bool { return f.Key == dnssec.Secure && f.Usable },
		Protect, Protect, Answer, EDEOther, "a key is published and proven", ReportAuthenticated, false},
	{func(f Facts) bool { return f.Key == dnssec.Secure && f.Denied },
		Withhold, Answer, Answer, EDEProhibited, "it is proven that no key is published", ReportNoKey, true},
	// The owner of the name says so himself, provably: like an unknown algorithm in RFC 4035, 5.2, and unusable TLSA records.
	{func(f Facts) bool { return f.Key == dnssec.Secure },
		Withhold, Answer, Answer, EDEProhibited, "no published key may be used for this address", ReportNoKey, true},
	{func(f Facts) bool { return f.Key == dnssec.Bogus },
		Withhold, Withhold, Answer, EDEBogus, "the key is bogus", ReportStripping, false},
	{func(f Facts) bool { return f.Key == dnssec.Insecure },
		Withhold, Withhold, Answer, EDENSECMissing, "the address is signed and the key answer is not", ReportStripping, false},
	{func(Facts) bool { return true },
		Withhold, Withhold, Answer, EDEIndeterminate, "there is neither a key nor a proof that there is none", ReportStripping, false},
}

// Decide is the decision table of TRUST.md 1 for one address under one rule's class.
func Decide(class Class, f Facts) Decision {
	if class == Block {
		return Decision{Outcome: Refuse, EDE: EDEBlocked, Why: "blocked by policy", ReportedAs: ReportBlocked}
	}
	for _, r := range table {
		if !r.holds(f) {
			continue
		}
		d := Decision{Outcome: r.open, EDE: r.ede, Why: r.why, ReportedAs: r.report}
		switch class {
		case Private:
			d.Outcome = r.private
			if f.Anonymous && r.nobody && f.Addr == dnssec.Secure {
				d.Outcome, d.Anonymous = Protect, true
			}
		case PrivateOrClear:
			d.Outcome = r.orClear
			d.Anonymous = f.Anonymous && r.nobody
		default:
			if d.Outcome == Answer {
				d.Why, d.ReportedAs = "clear by policy", ReportClear
			}
		}
		if d.Outcome == Answer || d.Outcome == Protect {
			d.EDE = EDENone
		}
		return d
	}
	panic("policy: the last row holds always")
}
