package lab

import (
	"fmt"
	"testing"
)

// ending is a test of which only the end counts.
type ending struct{ said string }

func (*ending) Helper()            {}
func (e *ending) Fatal(why ...any) { e.said += "failed: " + fmt.Sprintln(why...); panic(e) }
func (e *ending) Skip(why ...any)  { e.said += "skipped: " + fmt.Sprintln(why...); panic(e) }

// Where tests must have everything, what is missing is a failure and no reason to skip.
func TestMissingFailsUnderCI(t *testing.T) {
	for _, tt := range []struct {
		ci, program, want string
	}{
		{"", "no-such-program", `skipped: it needs no-such-program: exec: "no-such-program": executable file not found in $PATH` + "\n"},
		{"false", "no-such-program", `skipped: it needs no-such-program: exec: "no-such-program": executable file not found in $PATH` + "\n"},
		{"true", "no-such-program", `failed: it needs no-such-program: exec: "no-such-program": executable file not found in $PATH` + "\n"},
		{"", "sh", ""},
		{"true", "sh", ""},
	} {
		t.Setenv("CI", tt.ci)
		e := &ending{}
		func() {
			defer func() {
				if r := recover(); r != nil && r != any(e) {
					panic(r)
				}
			}()
			Need(e, "sh", tt.program)
		}()
		if e.said != tt.want {
			t.Errorf("CI=%s, %s: %q, want %q", tt.ci, tt.program, e.said, tt.want)
		}
	}
}
