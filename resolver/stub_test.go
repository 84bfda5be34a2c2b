package resolver

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestStub(t *testing.T) {
	for _, c := range []struct {
		what, text, listen string
		want               string // in the error; empty: fine
	}{
		{"sole", "nameserver 127.0.0.1\n", "127.0.0.1:53", ""},
		{"glibc's comments and options", "# nameserver 9.9.9.9\n; nameserver 9.9.9.9\noptions edns0 trust-ad\nsearch a b\nnameserver\t127.0.0.1 # tacit\n", "127.0.0.1:53", ""},
		{"no nameserver means this host", "search example\n", "127.0.0.1:53", ""},
		{"no address", "nameserver\nnameserver example.org\nnameserver 127.0.0.1", "127.0.0.1:53", ""},
		{"empty", "", "127.0.0.1:53", ""},
		{"twice the same", "nameserver 127.0.0.1\nnameserver 127.0.0.1\n", "127.0.0.1:53", ""},
		{"both families", "nameserver 127.0.0.1\nnameserver ::1", "127.0.0.1:53 [::1]:53", ""},
		{"mapped", "nameserver ::ffff:127.0.0.1", "127.0.0.1:53", ""},
		{"every address", "nameserver 127.0.0.1", "0.0.0.0:53", ""},
		{"a fourth is not read", "nameserver 127.0.0.1\nnameserver 127.0.0.1\nnameserver 127.0.0.1\nnameserver 9.9.9.9", "127.0.0.1:53", ""},
		{"not at the line's start for us, but for stubs", " nameserver 9.9.9.9\nnameserver 127.0.0.1", "127.0.0.1:53", "9.9.9.9"},
		{"second", "nameserver 127.0.0.1\nnameserver 192.0.2.53\n", "127.0.0.1:53", "nameserver 192.0.2.53 stands beside tacit"},
		{"first", "nameserver 192.0.2.53\nnameserver 127.0.0.1\n", "127.0.0.1:53", "192.0.2.53"},
		{"link-local", "nameserver fe80::1%eth0\nnameserver 127.0.0.1\n", "127.0.0.1:53", "fe80::1%eth0"},
		{"systemd-resolved", "nameserver 127.0.0.53\n", "127.0.0.1:53", "127.0.0.53 is not tacit"},
		{"another port", "nameserver 127.0.0.1\n", "127.0.0.1:5353", "127.0.0.1:5353"},
		{"every address is not another host's", "nameserver 192.0.2.53", "0.0.0.0:53", "192.0.2.53"},
		{"carriage returns", "nameserver 127.0.0.1\r\nnameserver 192.0.2.53\r\n", "127.0.0.1:53", "192.0.2.53"},
	} {
		t.Run(c.what, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "resolv.conf")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			var listen []netip.AddrPort
			for _, l := range strings.Fields(c.listen) {
				listen = append(listen, netip.MustParseAddrPort(l))
			}
			err := CheckStub(path, listen)
			if (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if err := CheckStub(filepath.Join(t.TempDir(), "none"), []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")}); err != nil {
		t.Errorf("no file: %v; stubs ask this host then", err)
	}
}

func FuzzParseResolvConf(f *testing.F) {
	for _, s := range []string{"", "nameserver 1.2.3.4", "nameserver ::1%x\n#\n;", "nameserver\x00 1.1.1.1\nnameserver 1.1.1.1\r", strings.Repeat("nameserver 1.1.1.1\n", 9)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		as := ParseResolvConf(b)
		if len(as) == 0 || len(as) > maxNameservers || slices.ContainsFunc(as, func(a netip.Addr) bool { return !a.IsValid() }) {
			t.Errorf("got %v", as)
		}
	})
}
