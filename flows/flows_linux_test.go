package flows

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"tacit/lab"
)

// TestParse: every prefix of the kernel's answer fails, and what is cut off never comes from the next one.
func TestParse(t *testing.T) {
	b := make([]byte, messageLength)
	b[0], b[4], b[5], b[6], b[7] = familyIPv6, 0x12, 0x34, 0, 53
	b[4+4+10], b[4+4+11] = 0xff, 0xff
	copy(b[4+4+12:], []byte{192, 0, 2, 1})
	copy(b[4+20:], netip.MustParseAddr("2001:db8::2").AsSlice())
	f, family, id, err := parse(b)
	if err != nil || family != familyIPv6 || len(id) != idLength || f.Local != netip.MustParseAddrPort("192.0.2.1:4660") || f.Remote != netip.MustParseAddrPort("[2001:db8::2]:53") {
		t.Errorf("got %+v, %d, %v", f, family, err)
	}
	for n := range messageLength {
		if _, _, _, err := parse(b[:n]); err == nil {
			t.Errorf("%d octets are taken", n)
		}
	}
	b[0] = 1
	if _, _, _, err := parse(b); err == nil {
		t.Error("a Unix socket is taken")
	}
}

// mine are the flows between two addresses of this process's own.
func mine(t *testing.T, remote netip.AddrPort) (all []Flow) {
	t.Helper()
	listed, err := List()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range listed {
		if f.Remote == remote {
			all = append(all, f)
		}
	}
	return all
}

// TestEnd ends connections of our own: the program hears of it at once, and the listener and what is not connected stay.
func TestEnd(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, tt := range []struct{ network, listen, dial string }{
		{"tcp", "127.0.0.1:0", ""}, {"tcp", "[::1]:0", ""}, {"tcp", "[::]:0", "127.0.0.1"}, {"udp", "127.0.0.1:0", ""}, {"udp", "[::1]:0", ""},
	} {
		var to netip.AddrPort
		if tt.network == "tcp" {
			l, err := net.Listen("tcp", tt.listen)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			to = l.Addr().(*net.TCPAddr).AddrPort()
		} else {
			l, err := net.ListenPacket("udp", tt.listen)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			to = l.LocalAddr().(*net.UDPAddr).AddrPort()
		}
		if tt.dial != "" {
			to = netip.AddrPortFrom(netip.MustParseAddr(tt.dial), to.Port())
		}
		c, err := net.Dial(tt.network, to.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		found := mine(t, to)
		if len(found) != 1 {
			t.Errorf("%v: %d flows, want one", tt, len(found))
			continue
		}
		if err := found[0].End(); errors.Is(err, ErrUnsupported) {
			lab.Missing(t, err)
		} else if err != nil {
			t.Errorf("%v: %v", tt, err)
		}
		if err := found[0].End(); err != nil {
			t.Errorf("%v: a second time: %v", tt, err)
		}
		c.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNABORTED) {
			t.Errorf("%v: its program reads %v, want ECONNABORTED", tt, err)
		}
		if n := len(mine(t, to)); n != 0 {
			t.Errorf("%v: %d flows are left", tt, n)
		}
	}
}

// An IPv6 socket that speaks IPv4, as a server's often does, is found by its addresses of IPv4, and ended.
func TestEndMapped(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	l, err := net.Listen("tcp", "[::]:0")
	if err != nil {
		lab.Missing(t, err)
	}
	defer l.Close()
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), l.Addr().(*net.TCPAddr).AddrPort().Port())
	near, err := net.Dial("tcp4", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	ended := 0
	for _, f := range mine(t, near.LocalAddr().(*net.TCPAddr).AddrPort()) {
		if err := f.End(); errors.Is(err, ErrUnsupported) {
			lab.Missing(t, err)
		} else if err != nil {
			t.Error(err)
		}
		ended++
	}
	far.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := far.Read(make([]byte, 1)); ended != 1 || !errors.Is(err, syscall.ECONNABORTED) {
		t.Errorf("%d ended, its program reads %v", ended, err)
	}
}
