package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// stateRoot holds one directory for each lab that stands: its owner's pid, and the private files of its hosts.
const stateRoot = "/run/tacit-lab"

// cableName is the namespace of the switch; no host may have this name.
const cableName = "cable"

var labsMade atomic.Int64

// Lab is a switch with hosts on it. Its methods may be called from any goroutine.
type Lab struct {
	name  string
	dir   string
	cable *space
	nl    *netlink.Handle // in the cable's namespace
	br    netlink.Link

	mu     sync.Mutex // hosts and taps are added by the caller while Close may come from a signal handler
	hosts  []*Host
	taps   []*Tap
	closed bool
}

// New makes a lab with an empty switch. The lab's name, and the names of its namespaces, carry the process id.
// It needs root.
func New(name string) (*Lab, error) {
	if err := checkName("lab", name); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("a lab needs root: it makes network namespaces")
	}
	full := fmt.Sprintf("tacit-%s-%d", name, os.Getpid())
	if n := labsMade.Add(1); n > 1 {
		full += "-" + strconv.FormatInt(n, 10)
	}
	l := &Lab{name: full, dir: filepath.Join(stateRoot, full)}
	if err := l.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("lab %s: %w", full, err), l.Close())
	}
	return l, nil
}

func (l *Lab) build() error {
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return err
	}
	if err := writeOwner(l.dir); err != nil {
		return err
	}
	if _, err := os.Stat(netnsDir); os.IsNotExist(err) {
		if err := os.WriteFile(filepath.Join(l.dir, madeFile), nil, 0o644); err != nil {
			return err
		}
	}
	var err error
	if l.cable, err = newSpace(l.name + "." + cableName); err != nil {
		return err
	}
	// The switch itself says nothing: no neighbour discovery, no multicast reports of its own.
	if err := l.cable.sysctl("net.ipv6.conf.all.disable_ipv6", "1"); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := l.cable.sysctl("net.ipv6.conf.default.disable_ipv6", "1"); err != nil && !os.IsNotExist(err) {
		return err
	}
	if l.nl, err = netlink.NewHandleAt(netns.NsHandle(l.cable.fd)); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	return l.makeSwitch()
}

func (l *Lab) makeSwitch() error {
	snoop := false
	br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs(), MulticastSnooping: &snoop}
	br.Name = "switch"
	br.MTU = 1500
	if err := l.nl.LinkAdd(br); err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	link, err := l.nl.LinkByName(br.Name)
	if err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	l.br = link
	return l.nl.LinkSetUp(link)
}

// Name is the lab's full name, as Remove takes it.
func (l *Lab) Name() string { return l.name }

// Dir is a directory of the lab's own for files that go with it. It lies in the machine's /run: processes on hosts, which
// have a /run of their own, do not see it. Host.SetFile("/run/...") is for them.
func (l *Lab) Dir() string { return l.dir }

// Hosts are the hosts in the order they were made.
func (l *Lab) Hosts() []*Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Host(nil), l.hosts...)
}

// HostOf finds the host that has the address.
func (l *Lab) HostOf(a netip.Addr) (*Host, bool) {
	for _, h := range l.Hosts() {
		for _, p := range h.Addrs() {
			if p.Addr() == a {
				return h, true
			}
		}
	}
	return nil, false
}

// Close ends every process in the lab and removes all that the lab made. It may be called more than once, and after
// a failed New.
func (l *Lab) Close() error {
	hosts, first := l.detach()
	if !first {
		return nil
	}
	var errs []error
	for _, h := range hosts {
		h.stopAll()
	}
	for _, h := range hosts {
		h.space.close()
		h.nl.Close()
	}
	if l.nl != nil {
		l.nl.Close()
	}
	if l.cable != nil {
		l.cable.close()
	}
	errs = append(errs, removeNamed(l.name))
	return errors.Join(errs...)
}

// Keep leaves the lab and its processes standing after this process has ended; Sweep passes it by, Remove removes it.
// The taps end.
func (l *Lab) Keep() error {
	if err := os.WriteFile(filepath.Join(l.dir, keepFile), nil, 0o644); err != nil {
		return err
	}
	l.detach()
	return nil
}

// detach ends the taps and says whether this was the first call.
func (l *Lab) detach() ([]*Host, bool) {
	l.mu.Lock()
	first := !l.closed
	l.closed = true
	hosts, taps := l.hosts, l.taps
	l.taps = nil
	l.mu.Unlock()
	for _, t := range taps {
		t.Close()
	}
	return hosts, first
}
