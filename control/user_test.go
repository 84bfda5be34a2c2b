package control

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func TestReload(t *testing.T) {
	if err := Dial(serve(t, daemon{})).Reload(t.Context()); err != nil {
		t.Errorf("our own user: %v", err)
	}
	if err := Dial(serve(t, daemon{err: errors.New("tacit.toml:3:1: unknown key")})).Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "tacit.toml:3:1") {
		t.Errorf("got %v, want the place", err)
	}
}

// the socket's group reads, root writes.
//
//tacit:attack A-36 the group reads, root writes
func TestOnlyRootChanges(t *testing.T) {
	for uid, want := range map[any]bool{0: true, 4711: false, nil: false} {
		ctx := context.Background()
		if uid != nil {
			ctx = context.WithValue(ctx, userKey{}, uid)
		}
		if got := mayChange(ctx); got != want {
			t.Errorf("user %v: %v, want %v", uid, got, want)
		}
	}
}
