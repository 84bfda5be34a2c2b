//go:build !linux

package resolver

import (
	"errors"
	"net"
)

// shareAddress fails: elsewhere sockets that share a port do not share the work.
func shareAddress(uintptr) error { return errors.ErrUnsupported }

// makeRoom has the kernel keep as many queries as may be under way at once, while the reader is busy.
func makeRoom(u *net.UDPConn) { _ = u.SetReadBuffer(roomForQueries) }
