package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tacit/ike"
	"tacit/ike/wire"
)

// spoken is a loop that does not run, and what it has logged.
func spoken(t *testing.T) (*play, *loop, *bytes.Buffer) {
	t.Helper()
	p := newPlay(t)
	l, text := idleLoop(t, p), &bytes.Buffer{}
	l.log = slog.New(slog.NewTextHandler(text, nil))
	return p, l, text
}

// A negotiation that fails at us as the responder is a line that says with whom and why; one that does not is none.
func TestFailedNegotiationIsLogged(t *testing.T) {
	p, l, text := spoken(t)
	wanted := ike.AuthorizationWanted{SA: 7, Local: netip.AddrPortFrom(p.p.local, 500), Remote: netip.AddrPortFrom(p.p.remote, 500), Null: true}
	l.engineEvent(p.now, wanted)
	l.engineEvent(p.now, ike.Closed{SA: 7, Err: fmt.Errorf("%w: no key of its name verifies", ike.ErrAuthentication)})
	if got := text.String(); !strings.Contains(got, `msg="negotiation failed" peer=192.0.2.2:500`) || !strings.Contains(got, "no key of its name verifies") {
		t.Errorf("logged %q", got)
	}
	text.Reset()
	l.engineEvent(p.now, wanted)
	l.over(p.now, 7, nil)
	l.engineEvent(p.now, ike.Closed{SA: 7, Err: errors.New("later")})
	if text.Len() != 0 || len(l.refusals.asked) != 0 {
		t.Errorf("logged %q, %d kept", text, len(l.refusals.asked))
	}
}

// A first message that has nothing for us is one too.
func TestNoProposalIsLogged(t *testing.T) {
	p, l, text := spoken(t)
	remote := netip.AddrPortFrom(p.p.remote, 500)
	_, out := ike.New(ike.Config{}).Initiate(p.now, ike.Peer{Local: remote, Remote: netip.AddrPortFrom(p.p.local, 500), LocalID: ike.ID{Kind: ike.IDNull}})
	m, err := wire.Parse(out.Send[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	for _, pl := range m.Payloads {
		if sa, ok := pl.(*wire.SA); ok {
			for _, q := range sa.Proposals {
				for i := range q.Transforms {
					q.Transforms[i].ID = 999
				}
			}
		}
	}
	data, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	l.receive(p.now, ike.Datagram{Local: out.Send[0].Remote, Remote: remote, Data: data})
	if got := text.String(); !strings.Contains(got, `peer=192.0.2.2:500 name="" why="it offers no algorithms`) {
		t.Errorf("logged %q", got)
	}
}

// Strangers get a few lines a minute, however many they are, and then how many were left out.
func TestRefusalsDoNotFillTheLog(t *testing.T) {
	p, l, text := spoken(t)
	for range 1000 {
		l.unmet(p.now, netip.AddrPort{}, "no-proposal")
	}
	if n := strings.Count(text.String(), "\n"); n != refusalLogs {
		t.Errorf("%d lines, want %d", n, refusalLogs)
	}
	text.Reset()
	for range 2 {
		l.unmet(p.now.Add(time.Minute), netip.AddrPort{}, "no-proposal")
	}
	if got := text.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, fmt.Sprintf("unsaid=%d\n", 1000-refusalLogs)) || !strings.Contains(got, "unsaid=0\n") {
		t.Errorf("logged %q", got)
	}
}
