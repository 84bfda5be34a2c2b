package main

import "tacit/tun"

// cleanup removes what a dead daemon left in this network namespace (TRUST.md I7).
func cleanup() error { return tun.Cleanup(tun.Config{}) }
