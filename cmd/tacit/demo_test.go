package main

import (
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestLogLine(t *testing.T) {
	tests := []struct {
		line string
		want map[string]string
	}{
		{`time=2026-01-02T03:04:05.678Z level=INFO msg=sa-installed peer=192.0.2.2`,
			map[string]string{"time": "2026-01-02T03:04:05.678Z", "level": "INFO", "msg": "sa-installed", "peer": "192.0.2.2"}},
		{`msg="two words" why="a \"quoted\" one" n=`, map[string]string{"msg": "two words", "why": `a "quoted" one`, "n": ""}},
		{`  a=1   b=2 `, map[string]string{"a": "1", "b": "2"}},
		{`a=1 stray`, map[string]string{"a": "1"}},
		{`a=1 b="never ends`, map[string]string{"a": "1"}},
		{``, map[string]string{}},
		{`panic: something`, map[string]string{}},
	}
	for _, tt := range tests {
		if got := logLine(tt.line); !maps.Equal(got, tt.want) {
			t.Errorf("%q: got %q, want %q", tt.line, got, tt.want)
		}
	}
}

func TestLogMoments(t *testing.T) {
	const log = `time=2026-01-02T03:04:04.000Z level=INFO msg=dns-validated peer=192.0.2.2 t=2026-01-02T03:04:04.000000001Z
time=2026-01-02T03:04:05.100Z level=INFO msg=dns-validated peer=192.0.2.9 t=2026-01-02T03:04:05.100000000Z
time=2026-01-02T03:04:05.100Z level=INFO msg=dns-validated name=bob.example. peer=192.0.2.2 t=2026-01-02T03:04:05.100200300Z
not a line of ours
time=2026-01-02T03:04:05.103Z level=INFO msg=sa-installed peer=::ffff:192.0.2.2
time=2026-01-02T03:04:05.104Z level=INFO msg=answer-released peer=192.0.2.2 t=2026-01-02T03:04:05.104Z
time=2026-01-02T03:04:05.105Z level=INFO msg=answer-released peer=192.0.2.2 t=2026-01-02T03:04:05.105Z
`
	asked := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	moments := logMoments(strings.NewReader(log), netip.MustParseAddr("192.0.2.2"), asked)
	moments = append(moments, moment{at: asked, event: "question"})
	var got []string
	for _, e := range timeline(moments) {
		got = append(got, e.Event)
	}
	if want := "question, DNS validated, SA installed, answer released"; strings.Join(got, ", ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
	if at := timeline(moments)[1].At; at != 100.2 {
		t.Errorf("DNS validated at %v ms, want 100.2", at)
	}
}

func TestVerdict(t *testing.T) {
	good := demoReport{Tap: demoTap{ESP: 10, IKE: 4}}
	if err := good.verdict(); err != nil {
		t.Errorf("a good run: %v", err)
	}
	for name, spoil := range map[string]func(*demoReport){
		"clear":   func(r *demoReport) { r.Tap.Clear = 1 },
		"no ESP":  func(r *demoReport) { r.Tap.ESP = 0 },
		"dropped": func(r *demoReport) { r.Tap.Dropped = 1 },
		"problem": func(r *demoReport) { r.Problems = []string{"it rains"} },
	} {
		r := good
		spoil(&r)
		err := r.verdict()
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		if name == "clear" && !errors.Is(err, errClear) {
			t.Errorf("clear: got %v", err)
		}
	}
}

func TestReportForms(t *testing.T) {
	r := &demoReport{
		SchemaVersion: 1, Lab: "tacit-demo-1",
		Hosts:    []demoHost{{"alice", []string{"192.0.2.1", "2001:db8::1"}, "runs tacit"}},
		Contacts: []demoContact{{"bob.example A", "192.0.2.2", []demoEvent{{0, "question", ""}, {1.25, "SA installed", "both ways"}}}},
		Plain:    plainContact{"plain.test", "192.0.2.3", 0.5, 3, 10},
		Tap:      demoTap{ESP: 12, ESPBytes: 1200, IKE: 4},
		Kept:     &demoKept{map[string]string{"alice": "nsenter 1"}, "tacit demo --remove tacit-demo-1"},
	}
	var text, js strings.Builder
	if err := errors.Join(r.write(&text), r.writeJSON(&js)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"bob.example A", "1.25 ms  SA installed", "12 packets of ESP", "0 packets in clear", "plain.test", "nsenter 1",
		"--remove tacit-demo-1"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, text.String())
		}
	}
	var back demoReport
	if err := json.Unmarshal([]byte(js.String()), &back); err != nil || back.Tap != r.Tap || len(back.Contacts[0].Events) != 2 {
		t.Errorf("JSON: %v, %+v", err, back)
	}
}
