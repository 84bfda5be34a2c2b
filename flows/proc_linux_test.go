package flows

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"tacit/lab"
)

// TestProc: what /proc says of a connection of our own is what there is; it cannot be ended.
func TestProc(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", listen)
		if err != nil {
			lab.Missing(t, err)
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		family := uint8(familyIPv4)
		if listen[0] == '[' {
			family = familyIPv6
		}
		all, err := listed(family, protoTCP)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, f := range all {
			if f.Remote == l.Addr().(*net.TCPAddr).AddrPort() && f.Local == c.LocalAddr().(*net.TCPAddr).AddrPort() && errors.Is(f.End(), ErrUnsupported) {
				found++
			}
			if !f.Remote.Addr().IsValid() || f.Remote.Port() == 0 {
				t.Errorf("no flow: %+v", f)
			}
		}
		if found != 1 {
			t.Errorf("%s: found %d times", listen, found)
		}
	}
}

func TestParseLine(t *testing.T) {
	for line, want := range map[string]string{
		"0: 0100007F:0035 00000000:0000 0A":            "listening",
		"1: 010200C0:D431 020200C0:0050 01 00000000:0": "talks",
		"2: 010200C0:D431 020200C0:0050 06 00000000:0": "waits",
		"": "error", "1: 010200C0:D431": "error", "1: 010200C0:D431 020200C0:0050 zz": "error", "1: 0102:D431 020200C0:0050 01": "error",
		"1: 010200C0 020200C0:0050 01": "error", "1: 010200C0:D431 020200C0:10050 01": "error",
	} {
		f, talks, err := parseLine(line)
		switch {
		case want == "error":
			if err == nil {
				t.Errorf("%q is taken", line)
			}
		case err != nil || talks != (want == "talks"):
			t.Errorf("%q: %+v %v %v", line, f, talks, err)
		case talks && (f.Local != netip.MustParseAddrPort("192.0.2.1:54321") || f.Remote != netip.MustParseAddrPort("192.0.2.2:80")):
			t.Errorf("%q: %+v", line, f)
		}
	}
}
