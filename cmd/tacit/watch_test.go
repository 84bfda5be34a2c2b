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

// script is a daemon that says what it is told, and then is gone.
type script struct {
	peers []control.Peer
	news  []control.Events
	asked []uint64
}

func (s *script) Status(context.Context) (control.Status, error) {
	return control.Status{Peers: s.peers}, nil
}

func (s *script) Events(_ context.Context, after uint64) (control.Events, error) {
	s.asked = append(s.asked, after)
	if len(s.asked) > len(s.news) {
		return control.Events{}, errors.New("gone")
	}
	return s.news[len(s.asked)-1], nil
}

// The watch begins with what is there, prints each event once, and says what it missed. What came from outside cannot write to the terminal.
func TestWatch(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.1")
	for _, asJSON := range []bool{false, true} {
		s := &script{
			peers: []control.Peer{{Address: addr, Names: []string{"bob.example"}, State: control.Protected, Assurance: control.Authenticated, Why: "proved the key\x1b[2J"}},
			news: []control.Events{{Next: 7}, {Next: 7},
				{Next: 11, Missed: 2, Events: []control.Event{
					{Seq: 10, Kind: control.SADown, Address: addr, Name: "bob.example", Assurance: control.Authenticated, Why: "the SA ended"},
					{Seq: 11, Kind: control.Withhold, Address: addr, Name: "bob\x1b]0;x.example", Assurance: control.NoAssurance, Why: "no answer\nPEER ok", LeftOut: 3}}}},
		}
		var out strings.Builder
		if err := watch(t.Context(), s, &out, asJSON); err == nil || err.Error() != "gone" {
			t.Fatal(err)
		}
		if want := []uint64{latestEvent, 7, 7, 11}; len(s.asked) != 4 || s.asked[0] != want[0] || s.asked[1] != 7 || s.asked[3] != 11 {
			t.Errorf("asked for what is after %v, want %v", s.asked, want)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != 3 || strings.Contains(out.String(), "\x1b") {
			t.Fatalf("got %q", lines)
		}
		if asJSON {
			var e control.Event
			if err := json.Unmarshal([]byte(lines[1]), &e); err != nil || e.Kind != control.SADown || e.Seq != 10 || e.LeftOut != 2 {
				t.Errorf("%s: %v", lines[1], err)
			}
			continue
		}
		for i, want := range []string{"present  192.0.2.1  bob.example  authenticated: protected: proved the key",
			"sa-down  192.0.2.1  bob.example  authenticated: the SA ended (2 events before this one were left out)",
			`withheld  192.0.2.1  bob\x1b]0;x.example  none: no answer\nPEER ok (3 events`} {
			if !strings.Contains(lines[i], want) {
				t.Errorf("line %d: %q, want %q", i, lines[i], want)
			}
		}
	}
}
