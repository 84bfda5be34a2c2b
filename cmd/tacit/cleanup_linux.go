package main

import (
	"errors"

	"tacit/tun"
	"tacit/xfrm"
)

// cleanup removes what a dead daemon left in this network namespace (TRUST.md I7), whichever data plane it had.
func cleanup() error {
	err := xfrm.Cleanup(xfrm.Config{})
	if errors.Is(err, xfrm.ErrRunning) {
		return err
	}
	if errors.Is(err, xfrm.ErrUnavailable) {
		err = nil // a kernel without IPsec has nothing of it
	}
	return errors.Join(err, tun.Cleanup(tun.Config{}))
}
