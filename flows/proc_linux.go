package flows

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// Where the kernel has no sock_diag, /proc says what connections there are. They cannot be ended.

// listed reads the flows of one protocol and family from /proc.
func listed(family, proto uint8) (all []Flow, err error) {
	name := map[uint8]string{protoTCP: "tcp", protoUDP: "udp"}[proto]
	if family == familyIPv6 {
		name += "6"
	}
	f, err := os.Open("/proc/thread-self/net/" + name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the kernel has no such family
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan(); lines.Scan(); { // the first one names the columns
		flow, talks, err := parseLine(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		if talks {
			flow.Proto, flow.End = proto, func() error { return ErrUnsupported }
			all = append(all, flow)
		}
	}
	return all, lines.Err()
}

// listedAll is List without sock_diag.
func listedAll() (all []Flow, err error) {
	for _, proto := range []uint8{protoTCP, protoUDP} {
		for _, family := range []uint8{familyIPv4, familyIPv6} {
			some, e := listed(family, proto)
			all, err = append(all, some...), errors.Join(err, e)
		}
	}
	return all, err
}

// parseLine reads a line of /proc/net/tcp and its like: number, local address and port, remote ones, state. talks: it is in one of states.
func parseLine(line string) (f Flow, talks bool, err error) {
	fields := strings.Fields(line)
	if len(fields) < 4 {
		return f, false, fmt.Errorf("%d fields: %q", len(fields), line)
	}
	state, err := strconv.ParseUint(fields[3], 16, 5)
	if err != nil {
		return f, false, fmt.Errorf("state: %w", err)
	}
	if f.Local, err = parseAddress(fields[1]); err != nil {
		return f, false, err
	}
	f.Remote, err = parseAddress(fields[2])
	return f, states&(1<<state) != 0, err
}

// parseAddress reads the kernel's words, in hexadecimal and the order of this machine, and the port.
func parseAddress(s string) (a netip.AddrPort, err error) {
	host, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return a, fmt.Errorf("address %q", s)
	}
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return a, fmt.Errorf("port: %w", err)
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	addr, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}
