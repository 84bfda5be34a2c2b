//go:build !linux

package resolver

import "errors"

// shareAddress fails: elsewhere sockets that share a port do not share the work.
func shareAddress(uintptr) error { return errors.ErrUnsupported }
