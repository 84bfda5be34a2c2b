package policy

import (
	"testing"

	"tacit/dnssec"
)

// TestDecide is the table of TRUST.md 1, row by row, for all five classes. The columns: block, private, private-or-clear,
// clear-or-private, clear.
func TestDecide(t *testing.T) {
	const (
		unchecked, bogus, indeterminate = dnssec.Unchecked, dnssec.Bogus, dnssec.Indeterminate
		insecure, secure                = dnssec.Insecure, dnssec.Secure
	)
	type outcomes [5]Outcome
	for _, tt := range []struct {
		row    string
		facts  Facts
		want   outcomes
		ede    uint16 // of the strictest class that gives no answer
		report Report
	}{
		{"secure, secure key", Facts{secure, secure, true, false, false},
			outcomes{Refuse, Protect, Protect, Answer, Answer}, EDENone, ReportAuthenticated},
		{"secure, secure denial", Facts{secure, secure, false, true, false},
			outcomes{Refuse, Withhold, Answer, Answer, Answer}, EDEProhibited, ReportNoKey},
		{"secure, a secure key that may not be used", Facts{secure, secure, false, false, false},
			outcomes{Refuse, Withhold, Answer, Answer, Answer}, EDEProhibited, ReportNoKey},
		{"secure, bogus key (A-02)", Facts{secure, bogus, false, false, false},
			outcomes{Refuse, Withhold, Withhold, Answer, Answer}, EDEBogus, ReportStripping},
		{"secure, bogus denial (A-01)", Facts{secure, bogus, false, true, false},
			outcomes{Refuse, Withhold, Withhold, Answer, Answer}, EDEBogus, ReportStripping},
		{"secure, key timed out", Facts{secure, indeterminate, false, false, false},
			outcomes{Refuse, Withhold, Withhold, Answer, Answer}, EDEIndeterminate, ReportStripping},
		{"secure, unsigned key (A-03)", Facts{secure, insecure, true, false, false},
			outcomes{Refuse, Withhold, Withhold, Answer, Answer}, EDENSECMissing, ReportStripping},
		{"secure, unsigned denial", Facts{secure, insecure, false, true, false},
			outcomes{Refuse, Withhold, Withhold, Answer, Answer}, EDENSECMissing, ReportStripping},
		{"secure, nobody asked for the key", Facts{secure, unchecked, false, false, false},
			outcomes{Refuse, Withhold, Withhold, Answer, Answer}, EDEIndeterminate, ReportStripping},
		{"insecure, secure key (A-04)", Facts{insecure, secure, true, false, false},
			outcomes{Refuse, Withhold, Answer, Answer, Answer}, EDEProhibited, ReportAnonymous},
		{"insecure, insecure key", Facts{insecure, insecure, true, false, false},
			outcomes{Refuse, Withhold, Answer, Answer, Answer}, EDEProhibited, ReportAnonymous},
		{"insecure, key timed out (A-32)", Facts{insecure, indeterminate, false, false, false},
			outcomes{Refuse, Withhold, Answer, Answer, Answer}, EDEProhibited, ReportAnonymous},
		{"bogus, secure key (A-04)", Facts{bogus, secure, true, false, false},
			outcomes{Refuse, ServFail, ServFail, ServFail, ServFail}, EDEBogus, ReportBogus},
		{"bogus, bogus", Facts{bogus, bogus, false, false, false},
			outcomes{Refuse, ServFail, ServFail, ServFail, ServFail}, EDEBogus, ReportBogus},
		{"indeterminate, secure key", Facts{indeterminate, secure, true, false, false},
			outcomes{Refuse, ServFail, ServFail, ServFail, ServFail}, EDEIndeterminate, ReportBogus},
		{"unchecked", Facts{unchecked, unchecked, false, false, false},
			outcomes{Refuse, ServFail, ServFail, Answer, Answer}, EDEIndeterminate, ReportBogus},
	} {
		for c := Block; c <= Clear; c++ {
			d := Decide(c, tt.facts)
			if d.Outcome != tt.want[c] {
				t.Errorf("%s: class %v: %v, want %v", tt.row, c, d.Outcome, tt.want[c])
			}
			if d.Why == "" {
				t.Errorf("%s: class %v: no reason", tt.row, c)
			}
			if free := d.Outcome == Answer || d.Outcome == Protect; free != (d.EDE == EDENone) {
				t.Errorf("%s: class %v: %v with EDE %d", tt.row, c, d.Outcome, d.EDE)
			}
		}
		if d := Decide(Private, tt.facts); d.EDE != tt.ede || d.ReportedAs != tt.report {
			t.Errorf("%s: EDE %d, reported as %q, want %d, %q", tt.row, d.EDE, d.ReportedAs, tt.ede, tt.report)
		}
	}
}

// TestDecideNeverClear goes through all facts: with a class that asks for keys, a signed address is answered without one only
// where the DNS proves that there is none to use; and nothing that was not validated passes.
func TestDecideNeverClear(t *testing.T) {
	for addr := dnssec.Unchecked; addr <= dnssec.Secure; addr++ {
		for key := dnssec.Unchecked; key <= dnssec.Secure; key++ {
			for i := range 4 {
				f := Facts{addr, key, i&1 != 0, i&2 != 0, false}
				if d := Decide(Private, f); d.Outcome == Answer {
					t.Errorf("private: %+v is answered in clear", f)
				}
				d := Decide(PrivateOrClear, f)
				proven := addr == dnssec.Insecure || addr == dnssec.Secure && key == dnssec.Secure && !f.Usable
				if d.Outcome == Answer && !proven {
					t.Errorf("private-or-clear: %+v is answered in clear", f)
				}
				if d.Outcome == Protect && (addr != dnssec.Secure || key != dnssec.Secure || !f.Usable) {
					t.Errorf("private-or-clear: %+v gives authentication", f)
				}
			}
		}
	}
}

func TestOutcomeString(t *testing.T) {
	if got := Withhold.String(); got != "withhold" {
		t.Errorf("Withhold is %q", got)
	}
	if got := Outcome(9).String(); got != "unknown" {
		t.Errorf("outcome 9 is %q", got)
	}
}

// Where a rule takes anybody, it is tried where no key is to be proven; a key that is published, or stripped, stays what it is.
func TestDecideAnonymous(t *testing.T) {
	for _, tt := range []struct {
		row              string
		facts            Facts
		private, orClear Outcome
		anonymous        [2]bool
	}{
		{"secure denial", Facts{Addr: dnssec.Secure, Key: dnssec.Secure, Denied: true}, Protect, Answer, [2]bool{true, true}},
		{"no usable key", Facts{Addr: dnssec.Secure, Key: dnssec.Secure}, Protect, Answer, [2]bool{true, true}},
		{"insecure", Facts{Addr: dnssec.Insecure, Key: dnssec.Insecure}, Withhold, Answer, [2]bool{false, true}},
		{"a key", Facts{Addr: dnssec.Secure, Key: dnssec.Secure, Usable: true}, Protect, Protect, [2]bool{}},
		{"stripped", Facts{Addr: dnssec.Secure, Key: dnssec.Indeterminate}, Withhold, Withhold, [2]bool{}},
		{"bogus", Facts{Addr: dnssec.Bogus}, ServFail, ServFail, [2]bool{}},
	} {
		tt.facts.Anonymous = true
		p, c := Decide(Private, tt.facts), Decide(PrivateOrClear, tt.facts)
		if p.Outcome != tt.private || c.Outcome != tt.orClear || [2]bool{p.Anonymous, c.Anonymous} != tt.anonymous {
			t.Errorf("%s: %+v, %+v", tt.row, p, c)
		}
		for _, class := range []Class{Block, ClearOrPrivate, Clear} {
			if Decide(class, tt.facts).Anonymous {
				t.Errorf("%s: class %v tries", tt.row, class)
			}
		}
	}
}
