package e2e

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tacit/ipseckey"
)

// matrixPluto is libreswan, on the kernel's ESP. The connections of a row are added when it begins, and taken away when the next one does.
type matrixPluto struct {
	*pluto
	added []string
}

func (p *matrixPluto) setup(t *testing.T, m *matrix, rows []matrixRow) {
	nss := m.bob.File("/run/nss")
	if err := os.MkdirAll(nss, 0o700); err != nil {
		t.Fatal(err)
	}
	output(t, m.bob, "certutil", "-N", "-d", "sql:/run/nss", "--empty-password")
	conf := &strings.Builder{}
	conf.WriteString("config setup\n")
	var kinds []string
	seen := map[string]bool{}
	for _, r := range rows {
		if r.theirs != null && !slices.Contains(kinds, r.theirs) {
			kinds = append(kinds, r.theirs)
			importKey(t, m, m.keys[[2]string{"bob", r.theirs}], r.theirs)
		}
		if certified(r.ours) && !slices.Contains(kinds, "alice "+r.ours) {
			kinds = append(kinds, "alice "+r.ours)
			importCertificate(t, m, m.keys[[2]string{"alice", r.ours}], "alice-"+r.ours)
		}
		name := p.connection(r, "")
		if seen[name] {
			continue
		}
		seen[name] = true
		for i, family := range []string{"v4", "v6"} {
			p.write(conf, m, r, i, family)
		}
	}
	p.pluto = runPluto(t, m.bob, conf.String())
}

// certified says which keys pluto is given in certificates, none of which it sends: one of ECDSA of any other curve than P-256 ends it
// when it stands in the configuration (a null pointer in ECDSA_ipseckey_rdata_to_pubkey_content).
func certified(kind string) bool { return kind == "P-384" }

// keyCertificate is a key's, in PEM. Nobody looks at what it says.
func keyCertificate(t *testing.T, id identity, name string) string {
	t.Helper()
	key, err := ipseckey.ParseIdentity([]byte(id.pem))
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// importKey puts a key in pluto's database, which takes it with a certificate only.
func importKey(t *testing.T, m *matrix, id identity, name string) {
	t.Helper()
	put(t, m.bob, "/run/import.pem", id.pem+keyCertificate(t, id, name))
	output(t, m.bob, "openssl", "pkcs12", "-export", "-in", "/run/import.pem", "-name", name, "-passout", "pass:", "-out", "/run/import.p12")
	output(t, m.bob, "pk12util", "-i", "/run/import.p12", "-d", "sql:/run/nss", "-W", "")
	for _, f := range []string{"import.pem", "import.p12"} {
		if err := os.Remove(filepath.Join(m.bob.File("/run"), f)); err != nil {
			t.Fatal(err)
		}
	}
}

// importCertificate puts the peer's public key there.
func importCertificate(t *testing.T, m *matrix, id identity, name string) {
	t.Helper()
	put(t, m.bob, "/run/import.pem", keyCertificate(t, id, name))
	output(t, m.bob, "certutil", "-A", "-n", name, "-t", ",,", "-a", "-i", "/run/import.pem", "-d", "sql:/run/nss")
}

func (p *matrixPluto) connection(r matrixRow, family string) string {
	return strings.ToLower(r.ours + "-" + r.theirs + "-" + r.mode + "-" + family)
}

func (p *matrixPluto) write(conf *strings.Builder, m *matrix, r matrixRow, i int, family string) {
	fmt.Fprintf(conf, `
conn %s
	ikev2=insist
	type=%s
	left=%v
	leftupdown=%%disabled
	right=%v
	ike=aes_gcm128-sha2_256-dh31
	esp=aes_gcm128
	dpddelay=3
	dpdtimeout=60
	dpdaction=clear
	auto=ignore
`, p.connection(r, family), r.mode, both(m.bob)[i], both(m.alice)[i])
	for _, e := range []struct{ side, end, kind string }{{"left", "bob", r.theirs}, {"right", "alice", r.ours}} {
		switch word := plutoAuth(e.kind); {
		case e.kind == null:
			fmt.Fprintf(conf, "\t%sid=%%null\n\t%sauth=null\n", e.side, e.side)
		case certified(e.kind):
			name := map[string]string{"bob": "", "alice": "alice-"}[e.end] + e.kind
			fmt.Fprintf(conf, "\t%sid=@%s\n\t%sauth=%s\n\t%scert=%s\n\t%ssendcert=never\n", e.side, r.endName(e.end), e.side, word, e.side, name, e.side)
		default:
			fmt.Fprintf(conf, "\t%sid=@%s\n\t%sauth=%s\n\t%s%s=0s%s\n", e.side, r.endName(e.end), e.side, word, e.side,
				map[string]string{"rsasig": "rsasigkey", "ecdsa": "ecdsakey"}[word], rawKey(m.keys[[2]string{e.end, e.kind}].record))
		}
	}
}

// plutoAuth is pluto's word for a way to authenticate.
func plutoAuth(kind string) string {
	switch {
	case strings.HasPrefix(kind, "RSA"):
		return "rsasig"
	case strings.HasPrefix(kind, "P-"):
		return "ecdsa"
	}
	return "null"
}

func (p *matrixPluto) begin(t *testing.T, r *matrixRun) {
	for _, c := range p.added {
		p.say(t, "--delete", "--name", c)
	}
	p.added = nil
	p.say(t, "--ddos-auto")
	for _, family := range []string{"v4", "v6"} {
		c := p.connection(r.matrixRow, family)
		output(t, p.host, libreswanTool("addconn"), "--config", "/run/ipsec.conf", "--ctlsocket", "/run/pluto/pluto.ctl", c)
		p.added = append(p.added, c)
	}
}

// say tells pluto something.
func (p *matrixPluto) say(t *testing.T, args ...string) string {
	t.Helper()
	return output(t, p.host, libreswanTool("whack"), append([]string{"--rundir", "/run/pluto"}, args...)...)
}

// each tells it for both families at once.
func (p *matrixPluto) each(t *testing.T, r *matrixRun, word string) error {
	var errs [2]error
	var wg sync.WaitGroup
	for i, family := range []string{"v4", "v6"} {
		wg.Go(func() {
			c := p.host.Command(t.Context(), libreswanTool("whack"), "--rundir", "/run/pluto", word, "--name", p.connection(r.matrixRow, family))
			if out, err := c.Output(); err != nil {
				errs[i] = fmt.Errorf("whack %s: %w\n%s", word, err, out)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs[:]...)
}

// must is each for what may not fail.
func (p *matrixPluto) must(t *testing.T, r *matrixRun, word string) {
	t.Helper()
	if err := p.each(t, r, word); err != nil {
		t.Error(err)
	}
}

func (p *matrixPluto) initiate(t *testing.T, r *matrixRun) error { return p.each(t, r, "--initiate") }
func (p *matrixPluto) rekeyChild(t *testing.T, r *matrixRun)     { p.must(t, r, "--rekey-ipsec") }
func (p *matrixPluto) rekeyIKE(t *testing.T, r *matrixRun)       { p.must(t, r, "--rekey-ike") }
func (p *matrixPluto) terminate(t *testing.T, r *matrixRun)      { p.must(t, r, "--terminate") }

func (p *matrixPluto) demandCookies(t *testing.T, _ *matrixRun) (cannot string) {
	p.say(t, "--ddos-busy")
	return ""
}

var (
	plutoIKE   = regexp.MustCompile(`(?m)^\S*\s*#\d+: .* STATE_V2_ESTABLISHED_IKE_SA`)
	plutoChild = regexp.MustCompile(`(?m)^\S*\s*#\d+: .* STATE_V2_ESTABLISHED_CHILD_SA`)
)

func (p *matrixPluto) sas(t *testing.T, _ *matrixRun) (ikes, children int) {
	t.Helper()
	list := p.say(t, "--showstates")
	return len(plutoIKE.FindAllString(list, -1)), len(plutoChild.FindAllString(list, -1))
}

// TestXFRMMatrixLibreswan is libreswan on the kernel's ESP: raw RSA and ECDSA keys, and NULL authentication of both ends and of either.
func TestXFRMMatrixLibreswan(t *testing.T) {
	needLibreswan(t, "certutil", "pk12util", "openssl", "ip")
	rows := rowsOf([]string{"transport", "tunnel"}, []string{"RSA-2048", "RSA-3072", "P-256", "P-384"}, func(r matrixRow) depth {
		switch {
		case r.ours == "RSA-2048" && r.mode == "transport" && r.by == "tacit":
			return full
		case r.ours == "P-256" && r.mode == "tunnel" && r.by == "peer":
			return brief
		}
		return none
	})
	for _, mode := range []string{"transport", "tunnel"} {
		nobodies := brief
		if mode == "tunnel" {
			nobodies = none
		}
		rows = append(rows,
			matrixRow{ours: null, theirs: "RSA-2048", mode: mode, by: "tacit"},
			matrixRow{ours: null, theirs: "RSA-2048", mode: mode, by: "peer"},
			matrixRow{ours: "RSA-2048", theirs: null, mode: mode, by: "peer", stranger: true},
			matrixRow{ours: null, theirs: null, mode: mode, by: "tacit"},
			matrixRow{ours: null, theirs: null, mode: mode, by: "peer", stranger: true, depth: nobodies})
	}
	runMatrix(t, "libreswan 4.10, the kernel's ESP", "xfrm", &matrixPluto{}, rows)
}
