package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tacit/config"
	"tacit/pad"
)

// refresh is how often the host's addresses and routes are read again, should the kernel's notices get lost.
const refresh = 30 * time.Second

// host knows the addresses of this host: what may never be claimed (TRUST.md R6), and which address of ours
// speaks to a peer. Readers take a snapshot.
type host struct {
	file *config.Config
	env  atomic.Pointer[pad.Environment]

	// The mutex guards named, and that of two snapshots the later one stays: the connections to upstreams learn in goroutines of their own.
	mu    sync.Mutex
	named []netip.Addr // of upstreams that are given by name
}

func newHost(f *config.Config) (*host, error) {
	h := &host{file: f}
	return h, h.read()
}

// environment is the current snapshot.
func (h *host) environment() *pad.Environment { return h.env.Load() }

// forResponder is the environment for a client that stands at its address itself: a private address needs no zone's word then.
func (h *host) forResponder() pad.Environment {
	e := *h.environment()
	e.InternalZones = []string{"."}
	return e
}

// read takes a new snapshot from the kernel. It is another one even where it holds the same, or could not be read: what was
// concluded from the one before, like our address towards a peer, is to be found out again.
func (h *host) read() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	e, err := Environment(h.file)
	old := h.env.Load()
	if err != nil && old != nil {
		e = *old // and a new snapshot all the same: nothing that was decided by the old one is sure
	}
	for _, a := range h.named {
		if !slices.Contains(e.Upstreams, a) {
			e.Upstreams = append(slices.Clip(e.Upstreams), a)
		}
	}
	if err == nil && old != nil && reflect.DeepEqual(e, *old) {
		return nil
	}
	h.env.Store(&e)
	return err
}

// maxNamed bounds the addresses of upstreams that are given by name.
const maxNamed = 8

// learned is told where an upstream that is given by name has proven it. A name's address is not taken on anybody's word: what is never claimed
// is not protected.
func (h *host) learned(addr netip.Addr) {
	h.mu.Lock()
	known := slices.Contains(h.named, addr)
	if !known {
		h.named = append(h.named, addr)
		h.named = h.named[max(0, len(h.named)-maxNamed):]
	}
	h.mu.Unlock()
	if !known {
		_ = h.read() // it makes another snapshot in any case; the next notice reads again
	}
}

// renew makes another snapshot of the same, for what was concluded otherwise than by it.
func (h *host) renew() {
	e := *h.environment()
	h.env.Store(&e)
}

// Environment is what this host must never take for a peer (TRUST.md R6), as the kernel and the configuration say now.
func Environment(f *config.Config) (pad.Environment, error) {
	e := pad.Environment{NATs: f.NATAddresses, InternalZones: f.DNS.InternalZones}
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return e, fmt.Errorf("reading the host's addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			e.Own = append(e.Own, ip.Unmap())
		}
		if n, ok := netip.AddrFromSlice(a.IPNet.IP); ok {
			ones, _ := a.IPNet.Mask.Size()
			e.Networks = append(e.Networks, netip.PrefixFrom(n.Unmap(), ones))
		}
	}
	routes, err := whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return e, fmt.Errorf("reading the host's routes: %w", err)
	}
	var ways []netip.Prefix
	for _, r := range routes {
		if ip, ok := netip.AddrFromSlice(r.Gw); ok && (r.Dst == nil || r.Dst.IP.IsUnspecified()) {
			e.Gateways = append(e.Gateways, ip.Unmap())
		}
		if r.Dst != nil {
			if ip, ok := netip.AddrFromSlice(r.Dst.IP); ok {
				ones, _ := r.Dst.Mask.Size()
				ways = append(ways, netip.PrefixFrom(ip.Unmap(), ones))
			}
		}
	}
	e.Pools = poolsOf(f.NATPool, e.Networks, ways)
	for _, u := range f.DNS.Upstream {
		if u.Addr.IsValid() {
			e.Upstreams = append(e.Upstreams, u.Addr.Addr())
		}
	}
	return e, nil
}

// listings is how often a list is read that changes while it is read.
const listings = 10

// whole returns a list of the kernel's that did not change while it was read.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range listings {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// watch reads again at each of the kernel's notices, until ctx ends. moved is called when the host's addresses or gateways have changed, or what it may assign.
func (h *host) watch(ctx context.Context, log *slog.Logger, moved func()) {
	done := make(chan struct{})
	defer close(done)
	addrs := make(chan netlink.AddrUpdate, 16)
	routes := make(chan netlink.RouteUpdate, 16)
	if err := netlink.AddrSubscribe(addrs, done); err != nil {
		log.Warn("address changes are seen late", "err", err)
		addrs = nil
	}
	if err := netlink.RouteSubscribe(routes, done); err != nil {
		log.Warn("route changes are seen late", "err", err)
		routes = nil
	}
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-addrs:
			if !ok {
				addrs = nil
			}
		case _, ok := <-routes:
			if !ok {
				routes = nil
			}
		case <-tick.C:
		}
		old := h.environment()
		if err := h.read(); err != nil {
			log.Warn("the host's addresses are not known", "err", err)
		}
		if e := h.environment(); !reflect.DeepEqual(e.Own, old.Own) || !reflect.DeepEqual(e.Gateways, old.Gateways) || !reflect.DeepEqual(e.Pools, old.Pools) {
			moved()
		}
	}
}

// source returns the address that the kernel would speak from to remote. No packet is sent.
func source(remote netip.Addr) (netip.Addr, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(remote, 500)))
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

// routed reports whether the kernel has a way to an address.
func routed(remote netip.Addr) error {
	_, err := source(remote)
	return err
}

// discard is the port of the service that throws away what it gets (RFC 863). Nobody has it any more.
const discard = 9

// nudge sends a datagram that means nothing. A dummy packet of ESP (RFC 4303, 2.6) would not do: Linux drops it before the SA counts as used.
func nudge(local, remote netip.Addr) error {
	c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(remote, discard)))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte{0})
	return err
}

// markSocket sets SO_MARK on a socket before it is used. The runtime is not told of the system call, as upstream's for a question to a forwarder nearby
// are not.
func markSocket(mark int) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		v, errno := int32(mark), syscall.Errno(0)
		err := c.Control(func(fd uintptr) {
			_, _, errno = unix.RawSyscall6(unix.SYS_SETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MARK, uintptr(unsafe.Pointer(&v)), unsafe.Sizeof(v), 0)
		})
		if err == nil && errno != 0 {
			err = errno
		}
		return err
	}
}
