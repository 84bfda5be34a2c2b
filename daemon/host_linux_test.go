package daemon

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"tacit/config"
	"tacit/pad"
)

// A list that changes while it is read is read again; one that never stands still, or fails, is an error.
func TestWholeList(t *testing.T) {
	failed := errors.New("no socket")
	for _, c := range []struct {
		answers []error
		want    error
		calls   int
	}{
		{[]error{nil}, nil, 1},
		{[]error{netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted, nil}, nil, 3},
		{[]error{netlink.ErrDumpInterrupted, failed}, failed, 2},
		{[]error{netlink.ErrDumpInterrupted}, netlink.ErrDumpInterrupted, listings},
	} {
		calls := 0
		list, err := whole(func() ([]int, error) {
			calls++
			return []int{calls}, c.answers[min(calls, len(c.answers))-1]
		})
		if !errors.Is(err, c.want) || calls != c.calls || len(list) != 1 || list[0] != calls {
			t.Errorf("%v: got %v, %v after %d calls; want %v after %d", c.answers, list, err, calls, c.want, c.calls)
		}
	}
}

// Where an upstream has proven its name is never claimed (TRUST.md R6), from then on and after the host's addresses are read again.
func TestUpstreamGivenByName(t *testing.T) {
	h, err := newHost(&config.Config{})
	if err != nil {
		t.Fatal(err)
	}
	before, addr := h.environment(), netip.MustParseAddr("198.51.100.53")
	if ok, why := pad.Claimable(addr, *before, "bob.example."); !ok {
		t.Fatal(why)
	}
	h.learned(addr)
	if h.environment() == before {
		t.Error("what was concluded before still stands")
	}
	if err := h.read(); err != nil {
		t.Fatal(err)
	}
	if ok, why := pad.Claimable(addr, *h.environment(), "bob.example."); ok || why != "our DNS upstream" {
		t.Errorf("claimable: %t (%s)", ok, why)
	}
	now := h.environment()
	h.learned(addr)
	if h.environment() != now {
		t.Error("another snapshot for what was known")
	}
	for i := range 2 * maxNamed {
		h.learned(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}))
	}
	if n := len(h.environment().Upstreams); n != maxNamed {
		t.Errorf("%d upstreams", n)
	}
}
