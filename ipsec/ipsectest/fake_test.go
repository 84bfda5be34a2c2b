package ipsectest

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"tacit/ipsec"
)

var _ ipsec.Dataplane = (*Fake)(nil)

func TestFakeRecordsAndFails(t *testing.T) {
	f := NewFake()
	p := ipsec.Pair{ID: 3, In: ipsec.SA{SPI: 300}, Out: ipsec.SA{SPI: 400}}
	f.FailAt(2)
	if err := f.InstallInbound(p); err != nil {
		t.Fatal(err)
	}
	if err := f.InstallOutbound(p); !errors.Is(err, ErrInjected) || f.Armed(3) {
		t.Fatalf("second call: got %v, armed %v; want %v and nothing changed", err, f.Armed(3), ErrInjected)
	}
	f.Raise(ipsec.Event{Kind: ipsec.FirstPacket, ID: 3})
	if e := <-f.Events(); e.ID != 3 || !f.Armed(3) {
		t.Errorf("first packet: got %+v, armed %v", e, f.Armed(3))
	}
	broken := errors.New("broken")
	f.FailOn("SetPolicy", broken)
	if err := f.SetPolicy(ipsec.Selector{}, ipsec.Hold, time.Time{}); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	f.FailOn("SetPolicy", nil)
	if err := f.SetPolicy(ipsec.Selector{}, ipsec.Hold, time.Time{}); err != nil {
		t.Error(err)
	}
	if pol, ok := f.Policy(ipsec.Selector{}); !ok || pol.Action != ipsec.Hold {
		t.Errorf("policy: got %v, %v", pol, ok)
	}
	if err := errors.Join(f.Retire(3, 300), f.Remove(3), f.Remove(3)); err != nil {
		t.Error(err)
	}
	if got := len(f.Calls("Remove")); got != 2 {
		t.Errorf("got %d calls of Remove, want 2", got)
	}
}

func TestFakeWire(t *testing.T) {
	a, b := NewFake(), NewFake()
	Wire(a, b)
	from, to := netip.MustParseAddrPort("192.0.2.1:500"), netip.MustParseAddrPort("192.0.2.2:500")
	ca, err := a.Conn(netip.AddrPortFrom(netip.IPv4Unspecified(), 500))
	if err != nil {
		t.Fatal(err)
	}
	cb, err := b.Conn(to)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Write([]byte("hello"), from, to); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 9)
	n, local, remote, err := cb.Read(buf)
	if err != nil || string(buf[:n]) != "hello" || local != to || remote != from {
		t.Errorf("got %q, %v, %v, %v", buf[:n], local, remote, err)
	}
	if err := b.Close(false); err != nil {
		t.Error(err)
	}
	if _, _, _, err := cb.Read(buf); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after close: got %v", err)
	}
}
