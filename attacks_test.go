package tacit

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

//go:generate env TACIT_WRITE=1 go test -count=1 -run ^TestAttacks$ .

// attack is what a test declares in its doc comment by a line "//tacit:attack A-NN outcome": that it carries out an attack of TRUST.md 3, and
// the outcome that it sees. A test may declare several.
type attack struct{ id, dir, test, outcome string }

// later are the attacks on what is not built yet, or of which a part is, and what the rest comes with.
var later = map[string]string{
	"A-15": "TCP 4500 comes with NAT",
	"A-30": "MOBIKE comes with NAT",
	"A-37": "socket activation comes with the packages",
	"A-40": "our own roll-over comes with publishing",
	"A-41": "comes with publishing",
	"A-42": "comes with publishing",
	"A-46": "a mapped AAAA comes with NAT",
	"A-47": "comes with taking over the host's resolver",
	"A-48": "comes with NAT",
	"A-55": "`dns.manage` comes with taking over the host's resolver",
}

const directive = "//tacit:attack "

var (
	attackRow  = regexp.MustCompile(`(?m)^\| (A-\d\d) \| (.*) \| (.*) \|$`)
	attackLine = regexp.MustCompile(`^//tacit:attack (A-\d\d) (\S.*\S)$`)
)

// declared are the attacks that tests declare, in the order of their numbers; those end to end first.
func declared(t *testing.T) (all []attack) {
	t.Helper()
	for _, s := range sources(t) {
		for _, g := range s.file.Comments {
			for _, c := range g.List {
				if !strings.HasPrefix(c.Text, directive) {
					continue
				}
				m, test := attackLine.FindStringSubmatch(c.Text), testOf(s, g)
				if m == nil || test == "" {
					t.Errorf("%v: want \"%sA-NN outcome\" in the doc comment of a test: %s", s.set.Position(c.Pos()), directive, c.Text)
					continue
				}
				all = append(all, attack{m[1], s.dir, test, m[2]})
			}
		}
	}
	place := func(a attack) string { return strings.Replace(a.dir, "e2e", "", 1) + " " + a.test }
	slices.SortFunc(all, func(a, b attack) int { return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(place(a), place(b))) })
	return all
}

// testOf is the name of the test that the comment is of.
func testOf(s source, g *ast.CommentGroup) string {
	for _, d := range s.file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Doc == g && s.test() && strings.HasPrefix(f.Name.Name, "Test") {
			return f.Name.Name
		}
	}
	return ""
}

// attackTable is ATTACKS.md.
func attackTable(t *testing.T) []byte {
	t.Helper()
	trust, err := os.ReadFile("TRUST.md")
	if err != nil {
		t.Fatal(err)
	}
	all := declared(t)
	var b bytes.Buffer
	b.WriteString(`# Attacks, and what was seen of them

Generated from the tests (` + "`go generate .`" + `): each declares the attack of TRUST.md 3 that it carries out. In ` + "`e2e`" + ` that is done by real daemons on
hosts of their own, with an attacker among them and a tap on the cable as the judge.

| # | attack | test | outcome seen |
|---|---|---|---|
`)
	known := map[string]bool{}
	for _, row := range attackRow.FindAllSubmatch(trust, -1) {
		id := string(row[1])
		known[id] = true
		n := 0
		for _, a := range all {
			if a.id == id {
				n++
				fmt.Fprintf(&b, "| %s | %s | `%s` %s | %s |\n", id, row[2], a.dir, a.test, a.outcome)
			}
		}
		switch why, ok := later[id]; {
		case ok:
			fmt.Fprintf(&b, "| %s | %s | | %s |\n", id, row[2], why)
		case n == 0:
			t.Errorf("no test declares %s: %s", id, row[2])
		}
	}
	for _, a := range all {
		if !known[a.id] {
			t.Errorf("%s %s: TRUST.md 3 has no attack %s", a.dir, a.test, a.id)
		}
	}
	return b.Bytes()
}

// TestAttacks: every attack of TRUST.md 3 has a test, or it is said what it comes with; and ATTACKS.md says what the tests say. With
// TACIT_WRITE=1 it is written.
func TestAttacks(t *testing.T) {
	want := attackTable(t)
	if os.Getenv("TACIT_WRITE") == "1" {
		if err := os.WriteFile("ATTACKS.md", want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile("ATTACKS.md"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("ATTACKS.md is not what the tests say (%v): go generate .", err)
	}
}

// TestScenarios: the tests that MATRIX.md names beside libreswan's scenarios exist, each in the room that it says.
func TestScenarios(t *testing.T) {
	text, err := os.ReadFile("MATRIX.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n## libreswan's scenarios\n")
	section, _, _ = strings.Cut(section, "\n## ")
	named := regexp.MustCompile("`([a-z0-9]+)` (Test\\w+)").FindAllStringSubmatch(section, -1)
	if n := strings.Count(section, "Test"); !found || n == 0 || n != len(named) {
		t.Fatalf("%d tests, of which %d have a room before them", n, len(named))
	}
	exist := map[string]bool{}
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && s.test() {
				exist[s.dir+" "+f.Name.Name] = true
			}
		}
	}
	for _, m := range named {
		if !exist[m[1]+" "+m[2]] {
			t.Errorf("MATRIX.md names %s of %s, and there is none", m[2], m[1])
		}
	}
}
