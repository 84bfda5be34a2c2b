package e2e

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// The matrix: every implementation, in both roles, with every kind of key, in both modes, does all that two hosts do with each
// other. MATRIX.md has the table as it was printed last. A new column is an element of matrixGroups, a new peer a matrixPeer.

// null is the kind of key of an end that authenticates itself as nobody (RFC 7619).
const null = "NULL"

// matrixKeys make keys of the kinds that an IPSECKEY record holds.
var matrixKeys = map[string]func() (crypto.Signer, error){
	"Ed25519": func() (crypto.Signer, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	},
	"P-256":    func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) },
	"P-384":    func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P384(), rand.Reader) },
	"RSA-2048": func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) },
	"RSA-3072": func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 3072) },
}

// matrixPeer is an implementation on bob. One daemon serves all rows where it can.
type matrixPeer interface {
	// setup makes ready what all rows need; the keys are made and the zone is served.
	setup(t *testing.T, m *matrix, rows []matrixRow)
	// begin is called before a row's tacit starts, which it does once for every group of columns.
	begin(t *testing.T, r *matrixRun)
	initiate(t *testing.T, r *matrixRun) error // when it has succeeded or failed in each family
	rekeyChild(t *testing.T, r *matrixRun)
	rekeyIKE(t *testing.T, r *matrixRun)
	terminate(t *testing.T, r *matrixRun)
	// demandCookies makes bob ask every initiator for a cookie, or says why it cannot.
	demandCookies(t *testing.T, r *matrixRun) (cannot string)
	// sas counts what the peer has with alice. Every Child SA is in the row's mode.
	sas(t *testing.T, r *matrixRun) (ike, child int)
}

// matrixRow is a line of the table.
type matrixRow struct {
	ours, theirs string // kinds of keys, or null
	mode         string // transport or tunnel
	by           string // who initiates: tacit or peer
	depth        depth
	stranger     bool // tacit cannot initiate to the peer, and lets it in as nobody
}

// depth is how much of a row runs without TACIT_LONG.
type depth uint8

const (
	none  depth = iota
	brief       // up, a rekey, down
	usual       // and what else happens in an SA's life
	full
)

func (r matrixRow) key() string {
	if r.ours == r.theirs {
		return r.ours
	}
	return fmt.Sprintf("tacit %s, peer %s", r.ours, r.theirs)
}

func (r matrixRow) String() string {
	return strings.ReplaceAll(fmt.Sprintf("%s %s %s initiates", r.key(), r.mode, r.by), " ", "-")
}

// rowsOf are the rows of the kinds of keys, with the same kind at both ends, in both roles.
func rowsOf(modes, kinds []string, d func(matrixRow) depth) (rows []matrixRow) {
	for _, mode := range modes {
		for _, kind := range kinds {
			for _, by := range []string{"tacit", "peer"} {
				r := matrixRow{ours: kind, theirs: kind, mode: mode, by: by}
				r.depth = d(r)
				rows = append(rows, r)
			}
		}
	}
	return rows
}

// matrix is the lab in which the rows of one peer run, one after the other.
type matrix struct {
	*world
	peer     matrixPeer
	upstream string
	plane    string                 // tacit's
	keys     map[[2]string]identity // by end and kind

	logged int // length of tacit's log so far: all rows write to one file
	table  []string
	notes  []string
}

// endName is the FQDN of an end in a row: kinds and modes have names of their own, so that a peer knows by them which is meant.
func (r matrixRow) endName(end string) string {
	kind := r.theirs
	if end == "alice" {
		kind = r.ours
	}
	return strings.ToLower(end + "-" + kind + "-" + r.mode + ".example")
}

var matrixKeyPool = struct {
	sync.Mutex
	made map[[2]string]identity
}{made: map[[2]string]identity{}}

// matrixKey is the key of an end, the same for all peers: RSA keys take long under a slow kernel.
func matrixKey(t *testing.T, end, kind string) identity {
	t.Helper()
	matrixKeyPool.Lock()
	defer matrixKeyPool.Unlock()
	at := [2]string{end, kind}
	if _, ok := matrixKeyPool.made[at]; !ok {
		key, err := matrixKeys[kind]()
		if err != nil {
			t.Fatal(err)
		}
		matrixKeyPool.made[at] = identityOf(t, key)
	}
	return matrixKeyPool.made[at]
}

// runMatrix runs the rows and prints the table.
func runMatrix(t *testing.T, name, plane string, p matrixPeer, rows []matrixRow) {
	needE2E(t, "nsd", "unbound", "dnssec-signzone", "ldns-signzone", "getent", "nft")
	m := &matrix{world: newWorld(t), peer: p, plane: plane, keys: map[[2]string]identity{}}
	wanted, err := regexp.Compile(os.Getenv("TACIT_MATRIX_ROWS"))
	if err != nil {
		t.Fatal(err)
	}
	rows = slices.DeleteFunc(rows, func(r matrixRow) bool { return r.depth == none && !long() || !wanted.MatchString(r.String()) })
	if len(rows) == 0 {
		t.Skip("TACIT_MATRIX_ROWS names none of its rows")
	}
	var records []string
	named := map[string]bool{}
	for _, r := range rows {
		for _, e := range []struct {
			end, kind string
		}{{"alice", r.ours}, {"bob", r.theirs}} {
			host, n := m.alice, r.endName(e.end)
			if e.end == "bob" {
				host = m.bob
			}
			if named[n] {
				continue
			}
			named[n] = true
			if e.kind == null { // an address without a key
				records = append(records, hostRecords(n+".", host, nil)...)
				continue
			}
			key := matrixKey(t, e.end, e.kind)
			m.keys[[2]string{e.end, e.kind}] = key
			records = append(records, hostRecords(n+".", host, &key)...)
		}
	}
	dir, anchor := signZones(t, zoneFile{"example.", bindNSEC, records})
	m.anchor, m.upstream = anchor, m.up.Addr4().String()
	startNSD(t, m.ns, dir)
	startUnbound(t, m.up, m.ns.Addr4().String())
	p.setup(t, m, rows)
	for _, row := range rows {
		t.Run(row.String(), func(t *testing.T) { m.run(t, row) })
	}
	m.print(t, name)
}

// run runs the columns of a row, group by group.
func (m *matrix) run(t *testing.T, row matrixRow) {
	cells := map[string]string{}
	if p, ok := m.peer.(matrixRefuser); ok && p.refuses(row) {
		cell := "FAIL"
		t.Run("refused", func(t *testing.T) {
			if why := m.refused(t, row, p); !t.Failed() {
				cell = m.note(why)
			}
		})
		for _, g := range matrixGroups {
			for _, c := range g.columns {
				if cells[c.name] = cell; g.by != "" && g.by != row.by {
					cells[c.name] = "."
				}
			}
		}
		m.line(t, row, cells)
		return
	}
	for _, g := range matrixGroups {
		var due []matrixColumn
		for _, c := range g.columns {
			if g.by != "" && g.by != row.by {
				cells[c.name] = "." // the other role's
			} else if row.depth >= c.from || long() {
				due = append(due, c)
			}
		}
		if len(due) == 0 {
			continue
		}
		t.Run(g.name, func(t *testing.T) {
			for _, c := range due {
				cells[c.name] = "FAIL"
			}
			r := m.start(t, row, g)
			for _, c := range due {
				ran := false // not all are under -test.run
				if t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) { ran = true; c.run(r, t) }) {
					cells[c.name] = map[bool]string{true: "yes", false: "-"}[ran]
				}
				if r.cannot != "" { // the column has shown it
					cells[c.name], r.cannot = m.note(r.cannot), ""
				}
			}
			if r.over {
				return
			}
			failed := t.Failed()
			if r.protected(t); t.Failed() && !failed {
				for _, c := range due { // nobody knows by which
					cells[c.name] = "FAIL"
				}
			}
		})
	}
	m.line(t, row, cells)
}

// line adds a row to the table.
func (m *matrix) line(t *testing.T, row matrixRow, cells map[string]string) {
	line := fmt.Sprintf("| %s | %s | %s |", row.key(), row.mode, row.by)
	for _, c := range matrixColumns() {
		line += " " + cmp.Or(cells[c], "-") + " |"
	}
	t.Log(line)
	m.table = append(m.table, line)
}

// note is the number of a reason.
func (m *matrix) note(why string) string {
	for i, n := range m.notes {
		if n == why {
			return fmt.Sprintf("(%d)", i+1)
		}
	}
	m.notes = append(m.notes, why)
	return fmt.Sprintf("(%d)", len(m.notes))
}

// print logs the table, and appends it to the file that TACIT_MATRIX names.
func (m *matrix) print(t *testing.T, name string) {
	head, rule := "| key | mode | initiator |", "|---|---|---|"
	for _, c := range matrixColumns() {
		head, rule = head+" "+c+" |", rule+"---|"
	}
	text := fmt.Sprintf("### %s\n\n%s\n%s\n%s\n", name, head, rule, strings.Join(m.table, "\n"))
	for i, n := range m.notes {
		text += fmt.Sprintf("\n(%d) %s\n", i+1, n)
	}
	t.Logf("the matrix (-: not in a short run; .: of the other role)\n%s", text)
	if path := os.Getenv("TACIT_MATRIX"); path != "" {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text + "\n"); err != nil {
			t.Fatal(err)
		}
	}
}

// long reports whether all there is shall run (scripts/test -long).
func long() bool { return os.Getenv("TACIT_LONG") != "" }
