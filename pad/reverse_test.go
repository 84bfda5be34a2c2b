package pad

import (
	"net/netip"
	"testing"
	"time"

	"tacit/ipseckey"
)

// TestWays is R5 for a reverse zone: there, and only there, another gateway counts.
func TestWays(t *testing.T) {
	const x, g4, g6 = "192.0.2.1", "203.0.113.9", "2001:db8::9"
	weak := ipseckey.Record{Algorithm: ipseckey.AlgRSA, Unusable: "RSA modulus of 1024 bits"}
	var many []ipseckey.Record
	for i := range byte(MaxWays + 2) {
		many = append(many, withGateway(record(i+1, i), ipseckey.GatewayIPv4, netip.AddrFrom4([4]byte{203, 0, 113, i}).String()))
	}
	for _, tt := range []struct {
		why     string
		records []ipseckey.Record
		want    []string // gateway or name, "" for the address itself, and how many keys
		keys    []int
		reason  string
	}{
		{"none", []ipseckey.Record{record(1, 10)}, []string{""}, []int{1}, ""},
		{"the address itself", []ipseckey.Record{withGateway(record(1, 10), ipseckey.GatewayIPv4, x)}, []string{""}, []int{1}, ""},
		{"both are one way", []ipseckey.Record{record(1, 10), withGateway(record(2, 10), ipseckey.GatewayIPv4, x)}, []string{""}, []int{2}, ""},
		{"another", []ipseckey.Record{withGateway(record(1, 10), ipseckey.GatewayIPv4, g4)}, []string{g4}, []int{1}, ""},
		{"another family", []ipseckey.Record{withGateway(record(1, 10), ipseckey.GatewayIPv6, g6)}, []string{g6}, []int{1}, ""},
		{"a name", []ipseckey.Record{withGateway(record(1, 10), ipseckey.GatewayName, "GW.example.")}, []string{"gw.example."}, []int{1}, ""},
		{"the root", []ipseckey.Record{withGateway(record(1, 10), ipseckey.GatewayName, ".")}, nil, nil, "no name"},
		{"lower precedence first", []ipseckey.Record{record(1, 20), withGateway(record(2, 10), ipseckey.GatewayIPv4, g4)}, []string{g4, ""}, []int{1, 1}, ""},
		{"a weak key (A-26)", []ipseckey.Record{weak}, nil, nil, "1024 bits"},
		{"nothing", nil, nil, nil, "no record"},
		{"too many", many, []string{"203.0.113.0", "203.0.113.1", "203.0.113.2", "203.0.113.3"}, []int{1, 1, 1, 1}, ""},
	} {
		ways, why := Ways(tt.records, netip.MustParseAddr(x))
		if len(ways) != len(tt.want) || why != tt.reason && (tt.reason == "" || len(ways) > 0) {
			t.Errorf("%s: got %+v (%s), want %v (%s)", tt.why, ways, why, tt.want, tt.reason)
			continue
		}
		for i, w := range ways {
			got := w.Name
			if w.Gateway.IsValid() {
				got = w.Gateway.String()
			}
			if got != tt.want[i] || len(w.Keys) != tt.keys[i] {
				t.Errorf("%s: way %d is %q with %d keys, want %q with %d", tt.why, i, got, len(w.Keys), tt.want[i], tt.keys[i])
			}
		}
	}
}

// TestPrecedence is R3: administrator, reverse zone, prover.
func TestPrecedence(t *testing.T) {
	of := func(s Source, id string) Claim {
		c := claim(s.String()+".", time.Hour, id)
		c.Source = s
		return c
	}
	for _, tt := range []struct {
		live, other Source
		want        bool
	}{
		{Forward, Forward, false}, {Forward, Reverse, true}, {Forward, Administrator, true},
		{Reverse, Forward, false}, {Reverse, Reverse, false}, {Reverse, Administrator, true},
		{Administrator, Forward, false}, {Administrator, Reverse, false}, {Administrator, Administrator, false},
	} {
		a := NewAddress(linger)
		a.Ask(start, of(tt.live, "k"))
		if a.Outranks(start, of(tt.other, "other")) {
			t.Error("there is nobody to go before")
		}
		a.Prove(start, key("k"))
		if got := a.Outranks(start, of(tt.other, "other")); got != tt.want {
			t.Errorf("%v against %v: %v, want %v", tt.other, tt.live, got, tt.want)
		}
		if a.Outranks(start, of(tt.other, "k")) {
			t.Errorf("%v against %v: they agree", tt.other, tt.live)
		}
		if got := a.Outranks(at(2*time.Hour), of(tt.other, "other")); got != (tt.other > Forward) {
			t.Errorf("%v against %v, which has ended: %v", tt.other, tt.live, got)
		}
	}
}

// Two ways with the same key fail each for itself.
func TestWaysFailApart(t *testing.T) {
	a := NewAddress(linger)
	one, two := claim("x.", time.Hour, "k"), claim("x.", time.Hour, "k")
	one.Gateway, two.Gateway = netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")
	a.Fail(start, one, "no answer")
	if s := a.Ask(start, one); s.State != Failed {
		t.Errorf("the one: %v", s.State)
	}
	if s := a.Ask(start, two); s.State != Negotiate {
		t.Errorf("the other: %v", s.State)
	}
	a.Prove(start, key("k"))
	if a.Failing(start, one) {
		t.Error("a failure outlives the proof")
	}
}
