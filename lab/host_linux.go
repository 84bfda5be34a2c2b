package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// linkName is the name of a host's only link.
const linkName = "eth0"

// Host is a network namespace with a link to the switch.
type Host struct {
	Name string
	lab  *Lab
	*space
	nl   *netlink.Handle
	dir  string
	mac  net.HardwareAddr
	link netlink.Link

	mu    sync.Mutex // addresses, files and processes are changed by the caller while Close may come from a signal handler
	addrs []netip.Prefix
	binds []bind
	procs map[*Cmd]bool
}

// Host makes a host with the addresses: lo is up, forwarding is off, IPv6 addresses are ready at once (no duplicate
// address detection), nothing is learned from router advertisements, offloads are off so that the cable carries frames
// no longer than its MTU with their checksums in place.
func (l *Lab) Host(name string, addrs ...netip.Prefix) (*Host, error) {
	if err := checkName("host", name); err != nil {
		return nil, err
	}
	if name == cableName {
		return nil, fmt.Errorf("host name %q is the switch's", name)
	}
	s, err := newSpace(l.name + "." + name)
	if err != nil {
		return nil, err
	}
	nl, err := netlink.NewHandleAt(netns.NsHandle(s.fd))
	if err != nil {
		s.close()
		return nil, errors.Join(fmt.Errorf("host %s: netlink: %w", name, err), removeSpace(s.name))
	}
	h := &Host{Name: name, lab: l, space: s, nl: nl, dir: filepath.Join(l.dir, name), procs: map[*Cmd]bool{}}
	l.mu.Lock()
	n := len(l.hosts) + 1
	l.hosts = append(l.hosts, h)
	closed := l.closed
	l.mu.Unlock()
	if closed {
		return nil, fmt.Errorf("host %s: the lab is closed", name)
	}
	h.mac = net.HardwareAddr{2, 0, 0, 0, byte(n >> 8), byte(n)}
	if err := h.build(addrs); err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err) // the lab's Close takes what stands
	}
	return h, nil
}

func (h *Host) build(addrs []netip.Prefix) error {
	if err := h.quiet(); err != nil {
		return err
	}
	if err := h.plugIn(); err != nil {
		return err
	}
	for _, a := range addrs {
		if err := h.AddAddr(a); err != nil {
			return err
		}
	}
	if err := h.awaitRoutes(); err != nil {
		return err
	}
	return h.privateFiles()
}

// awaitRoutes waits until the kernel delivers to all IPv6 addresses of the link, its own link-local one among them: it sets their local routes a
// moment after the addresses.
func (h *Host) awaitRoutes() error {
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(time.Millisecond) {
		missing, err := h.missingRoutes()
		switch {
		case err != nil && !errors.Is(err, netlink.ErrDumpInterrupted): // the routes change while they are read: once more
			return fmt.Errorf("local routes: %w", err)
		case err == nil && !missing:
			return nil
		case time.Now().After(end):
			return errors.New("local routes: an IPv6 address does not become usable")
		}
	}
}

func (h *Host) missingRoutes() (bool, error) {
	addrs, err := h.nl.AddrList(h.link, netlink.FAMILY_V6)
	if err != nil {
		return false, err
	}
	routes, err := h.nl.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return false, err
	}
	linkLocal := false
	for _, a := range addrs {
		linkLocal = linkLocal || a.IP.IsLinkLocalUnicast()
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Dst != nil && r.Dst.IP.Equal(a.IP) }) {
			return true, nil
		}
	}
	return !linkLocal, nil
}

// quiet sets what every host of a lab has in common. A namespace inherits IPv4 settings from the machine's own.
func (h *Host) quiet() error {
	v6 := []string{"accept_dad=0", "dad_transmits=0", "accept_ra=0", "router_solicitations=0", "forwarding=0"}
	v4 := []string{"forwarding=0", "rp_filter=0", "accept_redirects=0", "send_redirects=0", "src_valid_mark=0"}
	return h.Do(func() error {
		for _, which := range []string{"all", "default"} {
			if err := writeAll("/proc/sys/net/ipv4/conf/"+which, v4); err != nil {
				return err
			}
			if err := writeAll("/proc/sys/net/ipv6/conf/"+which, v6); err != nil {
				return err
			}
		}
		return nil
	})
}

func writeAll(dir string, settings []string) error {
	for _, s := range settings {
		key, value, _ := strings.Cut(s, "=")
		if err := os.WriteFile(filepath.Join(dir, key), []byte(value), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// plugIn makes the cable between the host and the switch. The pair is made in the switch's namespace with its far end
// in the host's, so that it never appears on the machine itself.
func (h *Host) plugIn() error {
	v := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: linkName,
		PeerNamespace: netlink.NsFd(h.fd), PeerHardwareAddr: h.mac}
	v.Name = h.Name
	v.MasterIndex = h.lab.br.Attrs().Index
	v.MTU = 1500
	if err := h.lab.nl.LinkAdd(v); err != nil {
		return fmt.Errorf("cable: %w", err)
	}
	if err := h.lab.cable.do(func() error { return setOffload(h.Name, false) }); err != nil {
		return err
	}
	port, err := h.lab.nl.LinkByName(h.Name)
	if err != nil {
		return fmt.Errorf("cable: %w", err)
	}
	if err := h.lab.nl.LinkSetUp(port); err != nil {
		return fmt.Errorf("cable: %w", err)
	}
	lo, err := h.nl.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := h.nl.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	if h.link, err = h.nl.LinkByName(linkName); err != nil {
		return fmt.Errorf("cable: %w", err)
	}
	if err := h.Offload(false); err != nil {
		return err
	}
	if err := h.nl.LinkSetUp(h.link); err != nil {
		return fmt.Errorf("cable: %w", err)
	}
	return h.awaitLink()
}

// awaitLink waits until both ends of the cable are up. The kernel tells the switch a moment after the link is set up;
// what is sent before that is lost, and neighbour discovery tries again only after a second.
func (h *Host) awaitLink() error {
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(time.Millisecond) {
		port, err := h.lab.nl.LinkByName(h.Name)
		if err != nil {
			return fmt.Errorf("cable: %w", err)
		}
		link, err := h.nl.LinkByName(linkName)
		if err != nil {
			return fmt.Errorf("cable: %w", err)
		}
		if port.Attrs().OperState == netlink.OperUp && link.Attrs().OperState == netlink.OperUp {
			return h.lab.nl.LinkSetUp(port) // changes nothing, but waits for those who were told of the change
		}
		if time.Now().After(end) {
			return errors.New("cable: the link does not come up")
		}
	}
}

// AddAddr gives the host's link one more address, ready for use at once.
func (h *Host) AddAddr(p netip.Prefix) error {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := h.nl.AddrAdd(h.link, a); err != nil {
		return fmt.Errorf("address %v: %w", p, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.addrs = append(h.addrs, p)
	return nil
}

// DelAddr takes an address away.
func (h *Host) DelAddr(p netip.Prefix) error {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if err := h.nl.AddrDel(h.link, a); err != nil {
		return fmt.Errorf("address %v: %w", p, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.addrs {
		if h.addrs[i] == p {
			h.addrs = append(h.addrs[:i], h.addrs[i+1:]...)
			break
		}
	}
	return nil
}

// Addrs are the addresses given to the host.
func (h *Host) Addrs() []netip.Prefix {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]netip.Prefix(nil), h.addrs...)
}

// Addr4 is the host's first IPv4 address, Addr6 its first IPv6 address; the zero Addr if it has none.
func (h *Host) Addr4() netip.Addr { return h.firstAddr(netip.Addr.Is4) }

// Addr6 is the host's first IPv6 address.
func (h *Host) Addr6() netip.Addr { return h.firstAddr(netip.Addr.Is6) }

func (h *Host) firstAddr(is func(netip.Addr) bool) netip.Addr {
	for _, p := range h.Addrs() {
		if is(p.Addr()) {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// MAC is the address of the host's link.
func (h *Host) MAC() net.HardwareAddr { return h.mac }

// Namespace is the name that `ip netns exec` takes.
func (h *Host) Namespace() string { return h.space.name }

// Plug connects (true) or pulls (false) the host's cable, at the switch's end.
func (h *Host) Plug(in bool) error {
	port, err := h.lab.nl.LinkByName(h.Name)
	if err != nil {
		return err
	}
	if in {
		if err := h.lab.nl.LinkSetUp(port); err != nil {
			return err
		}
		return h.awaitLink()
	}
	return h.lab.nl.LinkSetDown(port)
}

// FlushNeighbours empties the neighbour caches (ARP and IPv6) of the host.
func (h *Host) FlushNeighbours() error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := h.nl.NeighList(h.link.Attrs().Index, family)
		if err != nil {
			return err
		}
		for i := range list {
			if err := h.nl.NeighDel(&list[i]); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("neighbour %v: %w", list[i].IP, err)
			}
		}
	}
	return nil
}

// Netlink is a netlink handle inside the host's namespace, for what this package has no word for.
func (h *Host) Netlink() *netlink.Handle { return h.nl }

// Do runs f on a thread inside the host's namespace and returns its error. Sockets that f makes stay in the namespace
// and may be used from anywhere. Goroutines that f starts are outside; so are net's look-ups of names.
func (h *Host) Do(f func() error) error { return h.do(f) }

// Go runs f inside the host's namespace and does not wait; the channel yields its error.
func (h *Host) Go(f func() error) <-chan error {
	c := make(chan error, 1)
	go func() { c <- h.do(f) }()
	return c
}

// Sysctl sets a value inside the host's namespace, for example ("net.ipv4.conf.all.rp_filter", "1").
func (h *Host) Sysctl(key, value string) error {
	if err := h.sysctl(key, value); err != nil {
		return fmt.Errorf("host %s: sysctl %s: %w", h.Name, key, err)
	}
	return nil
}

// Listen listens inside the host's namespace. The address must be a literal.
func (h *Host) Listen(network, address string) (l net.Listener, err error) {
	err = h.Do(func() error { l, err = net.Listen(network, address); return err })
	return l, err
}

// ListenPacket opens a packet socket inside the host's namespace. The address must be a literal.
func (h *Host) ListenPacket(network, address string) (c net.PacketConn, err error) {
	err = h.Do(func() error { c, err = net.ListenPacket(network, address); return err })
	return c, err
}

// Dial connects from inside the host's namespace. The address must be a literal. It has the form of
// http.Transport.DialContext and of net.Resolver.Dial.
func (h *Host) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = h.Do(func() error {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Resolver is Go's own resolver asking server (an address and port) from inside the host's namespace.
func (h *Host) Resolver(server string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return h.Dial(ctx, network, server)
	}}
}
