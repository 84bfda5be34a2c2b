package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"tacit/control"
)

func TestWatch(t *testing.T) {
	peer := func(addr string, state control.State, assurance control.Assurance, why string) control.Peer {
		return control.Peer{Address: netip.MustParseAddr(addr), Names: []string{"bob.example"}, State: state, Assurance: assurance, Why: why}
	}
	looks := [][]control.Peer{
		{peer("192.0.2.1", control.Keying, control.NoAssurance, "looked up\x1b[2J")},
		{peer("192.0.2.1", control.Keying, control.NoAssurance, "looked up again")},
		{peer("192.0.2.1", control.Protected, control.Authenticated, "proved the key"), peer("192.0.2.2", control.Withheld, control.NoAssurance, "no answer")},
		{peer("192.0.2.2", control.Withheld, control.NoAssurance, "no answer")},
	}
	for _, asJSON := range []bool{false, true} {
		n := 0
		var out strings.Builder
		err := watch(t.Context(), func(context.Context) (s control.Status, err error) {
			if n == len(looks) {
				return s, errors.New("gone")
			}
			s.Peers = looks[n]
			n++
			return s, nil
		}, &out, asJSON)
		if err == nil || err.Error() != "gone" {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != 4 || strings.Contains(out.String(), "\x1b") {
			t.Fatalf("got %q", lines)
		}
		if asJSON {
			var c change
			if err := json.Unmarshal([]byte(lines[1]), &c); err != nil || c.Was != control.Keying || c.State != control.Protected {
				t.Errorf("%s: %v", lines[1], err)
			}
			continue
		}
		for i, want := range []string{"192.0.2.1  bob.example  keying, none: ", "keying -> protected, authenticated: proved the key", "192.0.2.2  bob.example  withheld",
			"192.0.2.1  bob.example  protected -> clear, none: nothing is known of it any more"} {
			if !strings.Contains(lines[i], want) {
				t.Errorf("line %d: %q, want %q", i, lines[i], want)
			}
		}
	}
}
