package daemon

import (
	"net/netip"
	"time"

	"tacit/ike"
)

// Who came to us and did not come in: a line of the log says why, but strangers do not fill the disk.

const (
	refusalLogs  = 20 // lines of it, of a loop, in refusalEvery
	refusalEvery = time.Minute
)

// refusals are what a loop says of them.
type refusals struct {
	asked        map[ike.SAID]ike.AuthorizationWanted // negotiations that are not over
	since        time.Time
	said, unsaid int // lines since then; and that were left out before the next one
}

// failing are the reasons for which the engine drops a first message that are likely to be a mistake of somebody's configuration.
var failing = map[string]string{
	"no-proposal":        "it offers no algorithms that we accept",
	"bad-ke":             "its key exchange is not valid",
	"version":            "it speaks another version of IKE",
	"too-many-half-open": "too many negotiations are under way",
	"too-many-sas":       "there are too many IKE SAs",
}

// unmet logs a first message that was dropped.
func (l *loop) unmet(now time.Time, remote netip.AddrPort, dropped string) {
	if why := failing[dropped]; why != "" {
		l.sayRefused(now, "negotiation failed", remote, "", why)
	}
}

// over notes the end of a negotiation that asked whom we believe; err says why it failed, nil that it did not or that it is logged already.
func (l *loop) over(now time.Time, sa ike.SAID, err error) {
	e, ok := l.refusals.asked[sa]
	delete(l.refusals.asked, sa)
	if ok && err != nil {
		l.sayRefused(now, "negotiation failed", e.Remote, e.ID.Value, err.Error())
	}
}

// asks reports whether a negotiation that asked whom we believe is not over. What one that is over were given would never be taken back.
func (l *loop) asks(sa ike.SAID) bool {
	_, ok := l.refusals.asked[sa]
	return ok
}

func (l *loop) sayRefused(now time.Time, what string, remote netip.AddrPort, name, why string) {
	r := &l.refusals
	if now.Sub(r.since) >= refusalEvery {
		r.since, r.said = now, 0
	}
	if r.said++; r.said > refusalLogs {
		r.unsaid++
		return
	}
	l.log.Info(what, "peer", remote, "name", name, "why", why, "unsaid", r.unsaid)
	r.unsaid = 0
}
