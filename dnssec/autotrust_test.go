package dnssec

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// timePasses moves the clock, and lets the probes happen that this makes due.
func (p *player) timePasses(a *act) error {
	if len(a.args) < 2 {
		return fmt.Errorf("TIME_PASSES of what?")
	}
	seconds, err := strconv.ParseFloat(a.args[1], 64)
	if a.args[0] == "EVAL" {
		var n int64
		n, err = p.eval(strings.Join(a.args[1:], " "))
		seconds = float64(n)
	}
	if err != nil {
		return err
	}
	p.elapsed += time.Duration(seconds * float64(time.Second))
	if p.roll == nil {
		return nil
	}
	p.up.at(a.n + 1) // the TRAFFIC step
	if next, ok := p.roll.Next(); ok && !p.now().Before(next) {
		if err := p.roll.Probe(context.Background()); err != nil {
			p.t.Logf("step %d: %v", a.n, err)
		}
	}
	return nil
}

// assign is ASSIGN name = ${...}. A range is a bound on the next probe.
func (p *player) assign(a *act) error {
	if len(a.args) < 3 || a.args[1] != "=" {
		return fmt.Errorf("ASSIGN what?")
	}
	text := strings.Join(a.args[2:], " ")
	w := strings.Fields(strings.Trim(text, "${}"))
	if len(w) != 4 || w[0] != "range" {
		n, err := p.eval(text)
		p.vars[a.args[0]] = n
		return err
	}
	low, err := strconv.ParseInt(w[1], 10, 64)
	if err != nil {
		return err
	}
	high, err := strconv.ParseInt(strings.TrimSuffix(w[3], "}"), 10, 64)
	if err != nil {
		return err
	}
	left := int64(0)
	if next, ok := p.roll.Next(); ok {
		left = int64(next.Sub(p.now()) / time.Second)
	}
	if left < low || left > high {
		p.t.Errorf("step %d: the next probe is in %d s, want %d to %d", a.n, left, low, high)
	}
	p.vars[a.args[0]] = left
	return nil
}

var operand = regexp.MustCompile(`\$[a-z][a-z0-9]*|time|[0-9]+|[-+*]`)

// eval is an expression of sums and products, without precedence but from left to right, as the scenarios have them.
func (p *player) eval(text string) (int64, error) {
	sum, op := int64(0), "+"
	for _, w := range operand.FindAllString(text, -1) {
		if strings.Contains("+-*", w) {
			op = w
			continue
		}
		n, err := strconv.ParseInt(w, 10, 64)
		switch {
		case w == "time":
			n, err = p.now().Unix(), nil
		case w[0] == '$':
			n, err = p.vars[w[1:]], nil
		}
		if err != nil {
			return 0, err
		}
		switch op {
		case "+":
			sum += n
		case "-":
			sum -= n
		case "*":
			sum *= n
		}
	}
	return sum, nil
}

var expression = regexp.MustCompile(`\$\{[^}]*\}`)

// state is a state file, its expressions worked out.
func (p *player) state(lines []string) (*TrustPoint, error) {
	var out []string
	for _, line := range lines {
		out = append(out, expression.ReplaceAllStringFunc(line, func(e string) string {
			n, err := p.eval(e)
			if err != nil {
				p.t.Errorf("%s: %v", e, err)
			}
			return strconv.FormatInt(n, 10)
		}))
	}
	return ParseTrustPoint([]byte(strings.Join(out, "\n")), "state")
}

// checkAutotrust compares the keys, their states and times with a file of unbound's. The count of failures is that of unbound's retries.
func (p *player) checkAutotrust(a *act) error {
	want, err := p.state(a.file)
	if err != nil {
		return err
	}
	got, err := ParseTrustPoint(p.saved, "saved")
	if err != nil {
		return err
	}
	if g, w := keysAsText(got), keysAsText(want); !slices.Equal(g, w) {
		p.t.Errorf("step %d: keys %v, want %v", a.n, g, w)
	}
	if got.Revoked() != want.Revoked() {
		p.t.Errorf("step %d: revoked %v, want %v", a.n, got.Revoked(), want.Revoked())
	}
	if want.Failed == 0 && !want.LastSuccess.IsZero() && !want.Revoked() && !got.LastSuccess.Equal(want.LastSuccess) {
		p.t.Errorf("step %d: last success %v, want %v", a.n, got.LastSuccess, want.LastSuccess)
	}
	return nil
}

func keysAsText(p *TrustPoint) (out []string) {
	for _, k := range p.Keys {
		seen := ""
		if k.State == KeyAddPend {
			seen = fmt.Sprintf(" seen %d", k.Seen)
		}
		out = append(out, fmt.Sprintf("%d %s%s %d", k.Key.KeyTag(), k.State, seen, k.Changed.Unix()))
	}
	slices.Sort(out)
	return out
}
