package tun

import (
	"net/netip"
	"testing"
	"time"

	"tacit/guard"
	"tacit/ipsec"
	"tacit/plane"
)

// A flow that the path finds has the fate that the rules give from the first moment: the path may come before its maker says so.
func TestNewFlowIsSettled(t *testing.T) {
	var p *Plane
	if err := newHost(t, "unknown").Do(func() (err error) { p, err = Open(Config{}); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close(false) }()
	for i, tt := range []struct {
		action ipsec.Action
		want   plane.Fate
	}{{ipsec.Trap, plane.Wait}, {ipsec.Watch, plane.Copy}, {ipsec.Block, plane.Drop}} {
		if err := p.SetRules([]ipsec.Rule{{Remote: netip.MustParsePrefix("192.0.2.0/24"), Action: tt.action}}); err != nil {
			t.Fatal(err)
		}
		key := guard.Key{Own: alice4, Peer: netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)})}
		if got := p.newFlow(key).queue.Fate(time.Now()); got != tt.want {
			t.Errorf("%v: a new flow begins with %v, want %v", tt.action, got, tt.want)
		}
	}
}
