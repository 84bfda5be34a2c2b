package tun

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"

	"tacit/guard"
)

// openDevice makes the TUN device. It goes when the process ends, however that comes.
func openDevice(cfg Config) (wgtun.Device, error) {
	op := "make device " + cfg.Device
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, hint("open /dev/net/tun", err)
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if !cfg.NoOffload {
		flags |= unix.IFF_VNET_HDR
	}
	req, err := unix.NewIfreq(cfg.Device)
	if err == nil {
		req.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, hint(op, err)
	}
	file := os.NewFile(uintptr(fd), "/dev/net/tun") // only now: before TUNSETIFF it polls as an error
	dev, err := wgtun.CreateTUNFromFile(file, deviceMTU)
	if err != nil {
		_ = file.Close()
		return nil, hint(op, err)
	}
	go func() {
		for range dev.Events() { // the device's own news: nobody else reads them
		}
	}()
	return dev, nil
}

// deviceQueue is how many packets the device holds for us: a burst to one peer must not push out another's.
const deviceQueue = 8192

// metricUnreachable is worse than any other route's: it counts when the device is gone.
const metricUnreachable = 1 << 30

// network is what we put into the kernel's routing: a rule by mark, and a table that leads into the device, or nowhere once
// the device is gone. So diverted packets never leave in clear, even if we die.
type network struct {
	cfg  Config
	nl   *netlink.Handle
	link netlink.Link
	v6   bool
	made bool // up was called
}

// openNetwork finds the device, in the network namespace of the calling thread, and sets what is its own.
func openNetwork(cfg Config) (*network, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, hint("open netlink", err)
	}
	n := &network{cfg: cfg, nl: nl}
	if n.link, err = nl.LinkByName(cfg.Device); err != nil {
		nl.Close()
		return nil, hint("find device "+cfg.Device, err)
	}
	if err := n.sysctls(); err != nil {
		nl.Close()
		return nil, err
	}
	return n, nil
}

// sysctls sets what concerns our device only; it goes with the device. src_valid_mark lets strict rp_filter see that the way back
// to the peer leads through the device.
func (n *network) sysctls() error {
	v4 := filepath.Join("/proc/sys/net/ipv4/conf", n.cfg.Device)
	if err := os.WriteFile(filepath.Join(v4, "src_valid_mark"), []byte("1"), 0o644); err != nil {
		n.cfg.Log.Warn("strict rp_filter will drop what peers send", "why", "cannot set src_valid_mark", "err", err)
	}
	v6 := filepath.Join("/proc/sys/net/ipv6/conf", n.cfg.Device)
	if _, err := os.Stat(v6); err != nil {
		return nil // a kernel without IPv6
	}
	// No link-local address and no router discovery on the device; IPv6 must be on, or it takes no packet.
	for _, s := range [][2]string{{"disable_ipv6", "0"}, {"addr_gen_mode", "1"}, {"accept_ra", "0"}, {"router_solicitations", "0"}} {
		if err := os.WriteFile(filepath.Join(v6, s[0]), []byte(s[1]), 0o644); err != nil {
			n.cfg.Log.Debug("sysctl", "name", s[0], "err", err)
		}
	}
	n.v6 = true
	return nil
}

// families are those that the kernel has.
func (n *network) families() []int {
	if n.v6 {
		return []int{unix.AF_INET, unix.AF_INET6}
	}
	return []int{unix.AF_INET}
}

// anywhere is 0.0.0.0/0 or ::/0.
func anywhere(family int) *net.IPNet {
	size := 128
	if family == unix.AF_INET {
		size = 32
	}
	return &net.IPNet{IP: make(net.IP, size/8), Mask: net.CIDRMask(0, size)}
}

// rulesOf are our rules: what bears MarkDivert is routed by our table. So is what bears MarkWatch by the next one, where there is no other route than that
// into the device: when it is gone the kernel goes on to the main table.
func rulesOf(cfg Config, family int) (all []*netlink.Rule) {
	for i, mark := range []uint32{guard.MarkDivert, guard.MarkWatch} {
		r := netlink.NewRule()
		mask := guard.MarkMask
		r.Family, r.Priority, r.Table = family, cfg.Rule, cfg.Table+i
		r.Mark, r.Mask = mark, &mask
		all = append(all, r)
	}
	return all
}

// up makes the routes, or replaces those that a dead process left.
func (n *network) up() error {
	n.made = true
	if err := n.nl.LinkSetTxQLen(n.link, deviceQueue); err != nil {
		return hint("set queue of "+n.cfg.Device, err)
	}
	if err := n.nl.LinkSetUp(n.link); err != nil {
		return hint("set "+n.cfg.Device+" up", err)
	}
	for _, family := range n.families() {
		way := &netlink.Route{LinkIndex: n.link.Attrs().Index, Dst: anywhere(family), Table: n.cfg.Table, Priority: 1,
			Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_STATIC}
		nowhere := &netlink.Route{Type: unix.RTN_UNREACHABLE, Dst: anywhere(family), Table: n.cfg.Table, Priority: metricUnreachable,
			Protocol: unix.RTPROT_STATIC}
		if family == unix.AF_INET6 {
			way.Scope = netlink.SCOPE_UNIVERSE
		}
		watch := *way
		watch.Table++
		for _, r := range []*netlink.Route{nowhere, way, &watch} {
			if err := n.nl.RouteReplace(r); err != nil {
				return hint(fmt.Sprintf("add route %v to table %d", r.Dst, r.Table), err)
			}
		}
	}
	return nil
}

// lead makes the rule, or takes it away: the kernel looks at each rule for each packet that it routes. While a dead process's elements stand its rule
// does too, and leads to where no packet leaves from. Should it be gone, guard drops what would leave by another device, until there are routes.
func (n *network) lead(marked bool) error {
	if !marked {
		return errors.Join(removeRule(n.nl, n.cfg, unix.AF_INET), removeRule(n.nl, n.cfg, unix.AF_INET6))
	}
	for _, family := range n.families() {
		for _, r := range rulesOf(n.cfg, family) {
			if err := n.nl.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
				return hint(fmt.Sprintf("add rule to table %d", r.Table), err)
			}
		}
	}
	return nil
}

// close removes what up and lead made. With keep the rule stays, and leads what is still marked to the unreachable route.
func (n *network) close(keep bool) error {
	var err error
	if !keep && n.made {
		err = removeRouting(n.nl, n.cfg)
	}
	n.nl.Close()
	return err
}

// removeRule removes our rules of a family: as many as crashes left. It is no error if there are none.
func removeRule(nl *netlink.Handle, cfg Config, family int) error {
	for _, r := range rulesOf(cfg, family) {
		err := error(nil)
		for err == nil {
			err = nl.RuleDel(r)
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EAFNOSUPPORT) {
			return hint("remove rule", err)
		}
	}
	return nil
}

// removeRouting removes our rules, then the routes of our tables. It is no error if there are none.
func removeRouting(nl *netlink.Handle, cfg Config) error {
	var errs []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		errs = append(errs, removeRule(nl, cfg, family), removeRoutes(nl, cfg.Table, family), removeRoutes(nl, cfg.Table+1, family))
	}
	return errors.Join(errs...)
}

func removeRoutes(nl *netlink.Handle, table, family int) error {
	routes, err := nl.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.ENOENT) {
		return hint(fmt.Sprintf("list table %d", table), err)
	}
	var errs []error
	for i := range routes {
		r := &routes[i]
		if r.Dst == nil {
			r.Dst = anywhere(family)
		}
		if err := nl.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, hint(fmt.Sprintf("remove route from table %d", table), err))
		}
	}
	return errors.Join(errs...)
}

// ErrRunning is returned by Cleanup while a process has the device.
var ErrRunning = errors.New("tun: a tacit is running here")

// Cleanup removes what a dead process left in the network namespace of the calling thread: rules, routes and the table of
// nftables with all its elements. Afterwards nftables and routing are as they were before that process started.
func Cleanup(cfg Config) error {
	cfg = cfg.withDefaults()
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return hint("open netlink", err)
	}
	defer nl.Close()
	if _, err := nl.LinkByName(cfg.Device); err == nil {
		return fmt.Errorf("%w: device %s exists", ErrRunning, cfg.Device)
	}
	return errors.Join(guard.Cleanup(), removeRouting(nl, cfg))
}
