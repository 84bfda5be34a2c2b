package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// demoReport is what the demo found; --json prints it.
type demoReport struct {
	SchemaVersion int           `json:"schema_version"`
	Lab           string        `json:"lab"`
	Hosts         []demoHost    `json:"hosts"`
	Contacts      []demoContact `json:"contacts"` // with Bob, one for each family
	Plain         plainContact  `json:"plain"`
	Tap           demoTap       `json:"tap"`
	Problems      []string      `json:"problems"`
	Kept          *demoKept     `json:"kept,omitempty"`
	Took          float64       `json:"took_ms"`
}

type demoHost struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
	About     string   `json:"about"`
}

// demoContact is one lookup of Bob's name with the connection that follows.
type demoContact struct {
	Question string      `json:"question"`
	Answer   string      `json:"answer"`
	Events   []demoEvent `json:"events"`
}

// demoEvent is a line of the timeline; At is in milliseconds after the question.
type demoEvent struct {
	At    float64 `json:"at_ms"`
	Event string  `json:"event"`
	About string  `json:"about"`
}

// plainContact is the contact with the host that publishes no key.
type plainContact struct {
	Question string  `json:"question"`
	Answer   string  `json:"answer"`
	Lookup   float64 `json:"lookup_ms"`
	Page     float64 `json:"page_ms"`
	Clear    int     `json:"packets_in_clear"`
}

// demoTap counts the packets between Alice and Bob.
type demoTap struct {
	ESP      int `json:"esp"`
	ESPBytes int `json:"esp_bytes"`
	IKE      int `json:"ike"`
	Neighbor int `json:"neighbor"`
	Clear    int `json:"clear"`
	Dropped  int `json:"dropped"`
}

// demoKept says how to enter and remove what --keep left.
type demoKept struct {
	Enter  map[string]string `json:"enter"`
	Remove string            `json:"remove"`
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (r *demoReport) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// write prints the report for a person.
func (r *demoReport) write(w io.Writer) error {
	var b strings.Builder
	b.WriteString("\nFour hosts on one cable, each in a network namespace of its own:\n\n")
	for _, h := range r.Hosts {
		b.WriteString("  " + padRight(h.Name, 7))
		for _, a := range h.Addresses {
			b.WriteString(padRight(a, 13))
		}
		b.WriteString("  " + h.About + "\n")
	}
	for _, c := range r.Contacts {
		fmt.Fprintf(&b, "\nalice asks for %s\n\n", c.Question)
		for _, e := range c.Events {
			fmt.Fprintf(&b, "  %9.2f ms  %s%s\n", e.At, padRight(e.Event, 24), e.About)
		}
	}
	b.WriteString("\nThe tap on the cable, between alice and bob:\n\n")
	fmt.Fprintf(&b, "  %5d packets of ESP (%d bytes)\n  %5d packets of IKE\n", r.Tap.ESP, r.Tap.ESPBytes, r.Tap.IKE)
	if r.Tap.Neighbor > 0 {
		fmt.Fprintf(&b, "  %5d of ARP and neighbour discovery\n", r.Tap.Neighbor)
	}
	fmt.Fprintf(&b, "  %5d packets in clear\n", r.Tap.Clear)
	if r.Plain.Answer != "" {
		fmt.Fprintf(&b, "\n%s, who publishes no key, was reached in clear at once: answer in %.2f ms, page in %.2f ms.\n",
			r.Plain.Question, r.Plain.Lookup, r.Plain.Page)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "\nNot as it should be: %s\n", p)
	}
	if r.Kept != nil {
		r.Kept.write(&b, r.Hosts)
	}
	if r.verdict() == nil {
		b.WriteString("\nNobody told alice anything about bob: DNS is all they share. ")
	} else {
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "All of it took %.1f s.\n", r.Took/1000)
	_, err := io.WriteString(w, b.String())
	return err
}

func (k *demoKept) write(b *strings.Builder, hosts []demoHost) {
	b.WriteString("\nThe hosts stand. A shell on one of them, with its own resolver and /run:\n\n")
	for _, h := range hosts {
		if cmd, ok := k.Enter[h.Name]; ok {
			fmt.Fprintf(b, "  %-6s %s\n", h.Name, cmd)
		}
	}
	fmt.Fprintf(b, "\nRemove them all:\n\n         %s\n", k.Remove)
}

func padRight(s string, n int) string {
	if len(s) >= n {
		return s + " "
	}
	return s + strings.Repeat(" ", n-len(s))
}
