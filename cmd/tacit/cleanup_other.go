//go:build !linux

package main

// cleanup has nothing to do where there is no data plane.
func cleanup() error { return nil }
