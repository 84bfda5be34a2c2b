// Package tacit has no code of its own: the list of directories is the architecture, and this test holds its rules
// (ARCHITECTURE.md).
package tacit

import (
	"bytes"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// imports is who may import whom, inside the project. Tests may import more.
var imports = map[string][]string{
	"cmd/tacit":       {"config", "control", "daemon", "dnssec", "flows", "guard", "ipsec", "ipseckey", "lab", "pad", "policy", "resolver", "tun", "upstream", "xfrm"},
	"config":          {"ipsec", "policy", "upstream"},
	"control":         {},
	"daemon":          {"config", "control", "dnssec", "flows", "ike", "ipsec", "ipseckey", "pad", "policy", "resolver", "upstream", "wheel"},
	"dnssec":          {},
	"e2e":             {},
	"esp":             {"ipsec"},
	"fair":            {},
	"flows":           {},
	"guard":           {},
	"ike":             {"ike/wire", "ipsec"},
	"ike/wire":        {},
	"ipsec":           {},
	"ipsec/ipsectest": {"ipsec", "lab"},
	"ipseckey":        {},
	"lab":             {},
	"pad":             {"ipseckey"},
	"plane":           {"guard", "ipsec", "wheel"},
	"policy":          {"dnssec", "ipsec"},
	"resolver":        {"dnssec", "fair", "ipseckey"},
	"upstream":        {"dnssec", "fair"},
	"tun":             {"esp", "guard", "ipsec", "plane"},
	"wheel":           {},
	"xfrm":            {"guard", "ipsec", "plane"},
}

// pure are the packages of bytes and time in, bytes and events out; impure is what they may not import.
var (
	pure   = []string{"esp", "ike", "ike/wire", "ipsec", "ipseckey", "pad", "policy", "wheel"}
	impure = []string{"net", "os", "log", "log/slog", "sync", "context"}
)

const (
	longest       = 600 // lines of a file that is no test
	functionLines = 100
)

type source struct {
	dir, name string
	text      []byte
	file      *ast.File
	set       *token.FileSet
}

func (s source) test() bool { return strings.HasSuffix(s.name, "_test.go") }

func sources(t *testing.T) (all []source) {
	t.Helper()
	err := filepath.WalkDir(".", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && p != "." && (strings.HasPrefix(e.Name(), ".") || e.Name() == "testdata") {
			return filepath.SkipDir
		}
		if e.IsDir() || !strings.HasSuffix(p, ".go") {
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, p, text, parser.ParseComments)
		if err != nil {
			return err
		}
		all = append(all, source{path.Dir(filepath.ToSlash(p)), p, text, f, set})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestImports(t *testing.T) {
	for _, s := range sources(t) {
		if s.dir == "." || s.test() {
			continue
		}
		allowed, known := imports[s.dir]
		if !known {
			t.Errorf("%s: directory %s is not in the import table: the list of directories is the architecture", s.name, s.dir)
			continue
		}
		for _, i := range s.file.Imports {
			p, _ := strconv.Unquote(i.Path.Value)
			inside, ours := strings.CutPrefix(p, "tacit/")
			switch {
			case ours && !slices.Contains(allowed, inside):
				t.Errorf("%s: %s may not import %s", s.name, s.dir, inside)
			case slices.Contains(pure, s.dir) && slices.Contains(impure, p):
				t.Errorf("%s: %s is pure and may not import %s", s.name, s.dir, p)
			}
		}
	}
}

func TestPureTakesTimeAsArgument(t *testing.T) {
	for _, s := range sources(t) {
		if s.test() || !slices.Contains(pure, s.dir) {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && (sel.Sel.Name == "Now" || sel.Sel.Name == "Since" || sel.Sel.Name == "Until") {
					t.Errorf("%v: time.%s in a pure package", s.set.Position(n.Pos()), sel.Sel.Name)
				}
			}
			return true
		})
	}
}

func TestSizeAndFormat(t *testing.T) {
	for _, s := range sources(t) {
		if f, err := format.Source(s.text); err != nil || !bytes.Equal(f, s.text) {
			t.Errorf("%s is not formatted by gofmt", s.name)
		}
		if s.test() {
			continue
		}
		if n := bytes.Count(s.text, []byte("\n")); n > longest {
			t.Errorf("%s has %d lines, at most %d", s.name, n, longest)
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := s.set.Position(f.End()).Line - s.set.Position(f.Pos()).Line; n > functionLines {
				t.Errorf("%v: %s has %d lines, at most %d", s.set.Position(f.Pos()), f.Name.Name, n, functionLines)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	docs := map[string]bool{}
	for _, s := range sources(t) {
		if !s.test() {
			docs[s.dir] = docs[s.dir] || s.file.Doc != nil
		}
	}
	for dir, has := range docs {
		if !has {
			t.Errorf("%s has no package comment", dir)
		}
	}
}

var parserName = regexp.MustCompile(`^(Parse|Unpack|Decode|Unmarshal)`)

// TestEveryParserIsFuzzed: an exported parser Xxx has the fuzz target FuzzXxx in its package.
func TestEveryParserIsFuzzed(t *testing.T) {
	targets := map[string][]string{}
	type parserAt struct{ dir, name, at string }
	var parsers []parserAt
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			switch {
			case s.test() && strings.HasPrefix(f.Name.Name, "Fuzz"):
				targets[s.dir] = append(targets[s.dir], strings.ToLower(f.Name.Name))
			case !s.test() && parserName.MatchString(f.Name.Name) && f.Recv == nil:
				parsers = append(parsers, parserAt{s.dir, f.Name.Name, s.set.Position(f.Pos()).String()})
			}
		}
	}
	for _, p := range parsers {
		if !slices.ContainsFunc(targets[p.dir], func(f string) bool { return f == "fuzz"+strings.ToLower(p.name) }) {
			t.Errorf("%s: %s.%s has no fuzz target Fuzz%s", p.at, p.dir, p.name, p.name)
		}
	}
	if len(parsers) == 0 {
		t.Error("no parser found: this test looks in the wrong place")
	}
}
