package tun

import (
	"testing"

	"tacit/ipsec"
)

// TRUST.md A-19, and the word of ipsec.Pair.Authenticated: a Pair with nobody, armed later, displaces none with somebody.
func TestNobodyDisplacesSomebody(t *testing.T) {
	f := &flow{}
	arm := func(authenticated bool) *outbound {
		pr := &pair{flow: f, armed: true, spec: ipsec.Pair{Authenticated: authenticated}}
		pr.out = &outbound{pair: pr}
		f.armed = append(f.armed, pr)
		return pr.out
	}
	anonymous := arm(false)
	if f.current() != anonymous {
		t.Error("the only Pair is not used")
	}
	first := arm(true)
	if f.current() != first {
		t.Error("somebody does not displace nobody")
	}
	arm(false)
	if f.current() != first {
		t.Error("nobody displaces somebody")
	}
	second := arm(true)
	if f.current() != second {
		t.Error("of two Pairs with somebody the one armed last is not used")
	}
}
