package main

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// moment is something that happened, before it is told relative to the question.
type moment struct {
	at    time.Time
	event string
	about string
	order int // among moments of one time
}

// timeline puts the moments in order, told in milliseconds after the first.
func timeline(moments []moment) []demoEvent {
	slices.SortStableFunc(moments, func(a, b moment) int {
		if c := a.at.Compare(b.at); c != 0 {
			return c
		}
		return a.order - b.order
	})
	events := []demoEvent{}
	for _, m := range moments {
		events = append(events, demoEvent{milliseconds(m.at.Sub(moments[0].at)), m.event, m.about})
	}
	return events
}

// daemonEvents are the log lines that become moments, with the words for them.
var daemonEvents = map[string]struct{ event, about string }{
	"dns-validated":   {"DNS validated", "address and key proven, from the root down"},
	"sa-installed":    {"SA installed", "both ways, acknowledged by the data plane"},
	"answer-released": {"answer released", "only now"},
}

// logMoments picks, from a daemon's log in slog's text form, the first line of each event about the peer at or after
// the time.
func logMoments(log io.Reader, peer netip.Addr, from time.Time) []moment {
	var out []moment
	seen := map[string]bool{}
	sc := bufio.NewScanner(log)
	for sc.Scan() {
		line := logLine(sc.Text())
		words, known := daemonEvents[line["msg"]]
		at, err := logTime(line)
		if !known || err != nil || at.Before(from) || seen[line["msg"]] || !samePeer(line["peer"], peer) {
			continue
		}
		seen[line["msg"]] = true
		out = append(out, moment{at: at, event: words.event, about: words.about})
	}
	return out
}

// logTime prefers t, which has all digits, to slog's time, which has milliseconds.
func logTime(line map[string]string) (time.Time, error) {
	if t, ok := line["t"]; ok {
		return time.Parse(time.RFC3339Nano, t)
	}
	return time.Parse(time.RFC3339Nano, line["time"])
}

func samePeer(text string, peer netip.Addr) bool {
	a, err := netip.ParseAddr(text)
	return err == nil && a.Unmap() == peer
}

// logLine splits a line of slog.TextHandler into its keys and values; what is malformed ends it.
func logLine(s string) map[string]string {
	m := map[string]string{}
	for s = strings.TrimLeft(s, " "); s != ""; s = strings.TrimLeft(s, " ") {
		key, rest, ok := strings.Cut(s, "=")
		if !ok {
			return m
		}
		if strings.HasPrefix(rest, `"`) {
			quoted, err := strconv.QuotedPrefix(rest)
			if err != nil {
				return m
			}
			m[key], _ = strconv.Unquote(quoted)
			s = rest[len(quoted):]
			continue
		}
		value, after, _ := strings.Cut(rest, " ")
		m[key], s = value, after
	}
	return m
}

// bytesAbout is "ESP, 132 bytes".
func bytesAbout(kind string, n int) string { return fmt.Sprintf("%s, %d bytes", kind, n) }
