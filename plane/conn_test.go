package plane

import (
	"errors"
	"net/netip"
	"os"
	"testing"
)

func TestConns(t *testing.T) {
	var sent []byte
	done := make(chan struct{})
	conns := Conns{Done: done, Send: func(port uint16, b []byte, local netip.Addr, remote netip.AddrPort) error {
		sent = b
		return nil
	}}
	if _, err := conns.Open(netip.AddrPortFrom(alice, 501)); err == nil {
		t.Error("port 501: accepted")
	}
	at := netip.AddrPortFrom(alice, PortNATT)
	c, err := conns.Open(netip.AddrPortFrom(netip.IPv4Unspecified(), PortNATT))
	if err != nil {
		t.Fatal(err)
	}
	from := netip.AddrPortFrom(bob, 4500)
	conns.Deliver(at, from, []byte("x"))
	conns.Deliver(netip.AddrPortFrom(alice, PortIKE), from, []byte("y"))
	conns.Deliver(netip.MustParseAddrPort("[2001:db8::1]:4500"), from, []byte("z"))
	b := make([]byte, 10)
	if n, local, remote, err := c.Read(b); err != nil || string(b[:n]) != "x" || local != at || remote != from {
		t.Errorf("got %q to %v from %v, %v", b[:n], local, remote, err)
	}
	if conns.Dropped.Load() != 2 {
		t.Errorf("dropped %d, want 2", conns.Dropped.Load())
	}
	if err := c.Write([]byte{0xff}, at, from); err != nil || string(sent) != "\xff" {
		t.Errorf("a keepalive: sent %q, %v", sent, err)
	}
	if err := c.Write([]byte("ww"), at, from); err != nil || string(sent) != "\x00\x00\x00\x00ww" {
		t.Errorf("sent %q, %v", sent, err)
	}
	if message, ok := IsIKE(sent); !ok || string(message) != "ww" {
		t.Errorf("IsIKE: got %q, %v", message, ok)
	}
	for _, esp := range []string{"", "\xff", "\x00\x00\x00\x00", "\x00\x00\x01\x00payload"} {
		if _, ok := IsIKE([]byte(esp)); ok {
			t.Errorf("%q taken for IKE", esp)
		}
	}
	for range ikeQueue + 1 {
		conns.Deliver(at, from, []byte("x"))
	}
	if conns.Dropped.Load() != 3 {
		t.Errorf("dropped %d, want 3", conns.Dropped.Load())
	}
	if err := errors.Join(c.Close(), c.Close()); err != nil || len(conns.list) != 0 {
		t.Errorf("close: %v, %d left", err, len(conns.list))
	}
	c, _ = conns.Open(at)
	close(done)
	if _, _, _, err := c.Read(b); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}
