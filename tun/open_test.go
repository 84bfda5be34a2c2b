package tun

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tacit/lab"
)

func TestHint(t *testing.T) {
	for err, want := range map[error]string{
		unix.EPERM:                           "CAP_NET_ADMIN",
		unix.EADDRINUSE:                      "another IKE daemon",
		unix.ENOENT:                          "/dev/net/tun",
		unix.EBUSY:                           "another tacit",
		fmt.Errorf("option: %w", unix.EPERM): "CAP_NET_RAW",
	} {
		got := hint("do something", err)
		if !errors.Is(got, err) || !strings.Contains(got.Error(), want) || !strings.HasPrefix(got.Error(), "tun: do something: ") {
			t.Errorf("%v: got %q, want it to say %q", err, got, want)
		}
	}
}

// ours counts what Open makes: the device and the rules.
func ours(t *testing.T, h *lab.Host) (n int) {
	t.Helper()
	if _, err := h.Netlink().LinkByName(DefaultDevice); err == nil {
		n++
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := h.Netlink().RuleList(family)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rules {
			if r.Table == DefaultTable || r.Table == DefaultTable+1 {
				n++
			}
		}
		for _, table := range []int{DefaultTable, DefaultTable + 1} {
			routes, err := h.Netlink().RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
			if err != nil && !errors.Is(err, unix.ENOENT) {
				t.Fatal(err)
			}
			n += len(routes)
		}
	}
	return n
}

// newHost is alone in a lab.
func newHost(t *testing.T, name string) *lab.Host {
	t.Helper()
	needLab(t)
	l, err := lab.New(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	h, err := l.Host("host", lab.Prefixes("192.0.2.1/24")...)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestOpenErrors: an Open that fails says what to do, and leaves nothing.
func TestOpenErrors(t *testing.T) {
	h := newHost(t, "open")
	var p *Plane
	open := func() (err error) { p, err = Open(Config{}); return err }

	taken, err := h.ListenPacket("udp4", "192.0.2.1:4500")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Do(open); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "udp port 4500 IPv4") {
		t.Errorf("port taken: got %v", err)
	}
	if n := ours(t, h); n != 0 {
		t.Errorf("port taken: %d things of ours are left", n)
	}
	_ = taken.Close()

	if err := h.Do(open); err != nil {
		t.Fatal(err)
	}
	if n := ours(t, h); n != 7 { // the device, and in each family two routes of one table and one of the other
		t.Errorf("open: got %d things of ours, want 7", n)
	}
	second := func() error { _, err := Open(Config{}); return err }
	if err := h.Do(second); !errors.Is(err, unix.EBUSY) {
		t.Errorf("second: got %v, want %v", err, unix.EBUSY)
	}
	if err := h.Do(func() error { return Cleanup(Config{}) }); !errors.Is(err, ErrRunning) {
		t.Errorf("cleanup: got %v, want %v", err, ErrRunning)
	}
	if n := ours(t, h); n != 7 {
		t.Errorf("after the second one failed: got %d things of the first, want 7", n)
	}
	if err := p.Close(false); err != nil {
		t.Error(err)
	}
	if n := ours(t, h); n != 0 {
		t.Errorf("closed: %d things of ours are left", n)
	}
}
