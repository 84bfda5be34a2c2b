//go:build !linux

package lab

func maybeChild() {}
