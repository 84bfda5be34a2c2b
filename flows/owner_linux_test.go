package flows

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"tacit/lab"
)

// The user behind a client is found by its addresses, for connected sockets and others, and for those of both families.
func TestOwner(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		server, err := net.ListenPacket("udp", at)
		if err != nil {
			lab.Missing(t, err)
		}
		defer server.Close()
		listener, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		connected, err := net.Dial("udp", server.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		open, err := net.ListenPacket("udp", ":0") // takes both families
		if err != nil {
			t.Fatal(err)
		}
		stream, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		to := netip.MustParseAddrPort(server.LocalAddr().String())
		client := func(a net.Addr) netip.AddrPort {
			return netip.AddrPortFrom(to.Addr(), netip.MustParseAddrPort(a.String()).Port())
		}
		for what, c := range map[string]struct {
			tcp  bool
			from net.Addr
			to   netip.AddrPort
		}{
			"connected": {false, connected.LocalAddr(), to}, "unconnected": {false, open.LocalAddr(), to},
			"TCP": {true, stream.LocalAddr(), netip.MustParseAddrPort(listener.Addr().String())},
		} {
			if uid, err := Owner(c.tcp, client(c.from), c.to); err != nil || int(uid) != os.Getuid() {
				t.Errorf("%s at %s: user %d, %v", what, at, uid, err)
			}
		}
		gone := client(connected.LocalAddr())
		connected.Close()
		open.Close()
		stream.Close()
		if uid, err := Owner(false, gone, to); !errors.Is(err, ErrNoOwner) {
			t.Errorf("a closed socket has the owner %d, %v", uid, err)
		}
	}
}

func BenchmarkOwner(b *testing.B) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer server.Close()
	c, err := net.Dial("udp", server.LocalAddr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for b.Loop() {
		if _, err := Owner(false, netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(server.LocalAddr().String())); err != nil {
			b.Fatal(err)
		}
	}
}
