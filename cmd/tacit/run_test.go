package main

import (
	"testing"

	"tacit/daemon"
	"tacit/ipsec/ipsectest"
)

// A daemon that does not start leaves shut what the one before it left shut when it was killed; where there was none it leaves nothing.
func TestGiveBack(t *testing.T) {
	for proofs, keep := range map[string]bool{"": false, `{"version":1}`: true} {
		dp := ipsectest.NewFake()
		if err := giveBack(daemon.Config{Dataplane: dp, Proofs: []byte(proofs)}); err != nil {
			t.Fatal(err)
		}
		if c := dp.Calls("Close"); len(c) != 1 || c[0].Keep != keep {
			t.Errorf("proofs %q: %+v, want keep %t", proofs, c, keep)
		}
	}
}
