//go:build !linux

package main

import (
	"context"
	"errors"
	"io"
)

// maybeLabChild is for Linux, where the demo starts processes of this binary on its hosts.
func maybeLabChild() {}

var errNoDemo = errors.New("the demo needs Linux's network namespaces")

func runDemo(context.Context, demoOptions, io.Writer) (*demoReport, error) { return nil, errNoDemo }

func removeDemo(string) error { return errNoDemo }
