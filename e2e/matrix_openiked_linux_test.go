package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"tacit/lab"
)

// matrixIked is openiked, on the kernel's ESP. It has one key of its own, so that it is started anew for each kind, and no word for a
// rekey: the lifetimes of its configuration make it.
type matrixIked struct {
	t    *testing.T // the whole test: iked serves several rows
	kind string
	host *lab.Host
	etc  string
	read int // length of iked's log when the row's tacit was started
	cmd  *lab.Cmd
}

// openikedTool is one of openiked's programs, unpacked: the package would have its daemon start with the machine.
func openikedTool(name string) string { return os.Getenv("TACIT_OPENIKED") + "/usr/sbin/" + name }

// setup gives the host an /etc of its own, with the user whose name iked knows.
func (p *matrixIked) setup(t *testing.T, m *matrix, rows []matrixRow) {
	p.t, p.host = t, m.bob
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("iked wrote:\n%s", tail(p.log(), 400))
		}
	})
	etc, err := m.bob.PrivateDir("/etc")
	if err != nil {
		t.Fatal(err)
	}
	p.etc = etc
	for _, dir := range []string{"iked/private", "iked/ca", "iked/certs", "iked/crls", "iked/pubkeys/fqdn"} {
		if err := os.MkdirAll(filepath.Join(etc, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(m.bob.File("/run/iked"), 0o755); err != nil {
		t.Fatal(err)
	}
	p.file(t, 0o644, "passwd", "root:x:0:0::/root:/bin/sh\n_iked:x:64999:64999::/run/iked:/usr/sbin/nologin\n")
	p.file(t, 0o644, "group", "root:x:0:\n_iked:x:64999:\n")
	for _, r := range rows {
		p.file(t, 0o644, "iked/pubkeys/fqdn/"+r.endName("alice"), publicPEM(t, m.keys[[2]string{"alice", r.ours}]))
	}
}

func (p *matrixIked) file(t *testing.T, mode os.FileMode, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.etc, name), []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// config is iked.conf for a row; active: iked initiates.
func (p *matrixIked) config(r *matrixRun, mode string) string {
	text := &strings.Builder{}
	text.WriteString("set fragmentation\nset nomobike\nset dpd_check_interval 3\n")
	for i, family := range []string{"inet", "inet6"} {
		bob, alice := both(r.bob)[i], both(r.alice)[i]
		fmt.Fprintf(text, `ikev2 "%s" %s %s esp %s from %v to %v local %v peer %v \
	ikesa enc aes-256 auth hmac-sha2-256 prf hmac-sha2-256 group curve25519 \
	childsa enc aes-256 auth hmac-sha2-512 \
	srcid %s dstid %s ikelifetime %d lifetime %d rfc7427
`, family, mode, r.mode, family, bob, alice, bob, alice, r.endName("bob"), r.endName("alice"),
			int(slower(25*time.Second).Seconds()), int(slower(10*time.Second).Seconds()))
	}
	return text.String()
}

// begin starts iked when the key is another one. What a row has left is ended by a reset.
func (p *matrixIked) begin(t *testing.T, r *matrixRun) {
	p.read = len(p.log())
	p.file(t, 0o600, "iked.conf", p.config(r, "passive"))
	p.file(t, 0o600, "active.conf", p.config(r, "active"))
	if p.cmd != nil && p.kind == r.theirs {
		output(t, p.host, openikedTool("ikectl"), "reset", "sa")
		output(t, p.host, openikedTool("ikectl"), "load", "/etc/iked.conf")
		return
	}
	if p.cmd != nil {
		if err := p.cmd.Stop(5 * time.Second); err != nil {
			t.Error(err)
		}
	}
	p.kind = r.theirs
	p.file(t, 0o600, "iked/private/local.key", r.keys[[2]string{"bob", r.theirs}].pem)
	_ = os.Remove(p.host.File("/run/iked.sock"))
	before := len(p.log())
	defer withoutModprobe(t)()
	p.cmd = start(p.t, p.host, openikedTool("iked"), "-d", "-v", "-v", "-f", "/etc/iked.conf")
	eventually(t, time.Minute, "iked's sockets", func() bool {
		return strings.Count(p.log()[before:], "config_getsocket: received socket") >= 4
	})
}

// withoutModprobe has a slow kernel of ours load no modules until the function is called: who registers with PF_KEY has it look for every
// algorithm that it knows of, which takes a minute of modprobes.
func withoutModprobe(t *testing.T) (undo func()) {
	const setting = "/proc/sys/kernel/modprobe"
	if os.Getenv("TACIT_ESP") != "1" {
		return func() {}
	}
	old, err := os.ReadFile(setting)
	if err != nil {
		t.Fatal(err)
	}
	set := func(text []byte) {
		if err := os.WriteFile(setting, text, 0o644); err != nil {
			t.Error(err)
		}
	}
	set([]byte("/bin/false\n"))
	return func() { set(old) }
}

func (p *matrixIked) log() string {
	b, err := os.ReadFile(p.host.File("/run/iked.log"))
	if err != nil {
		return ""
	}
	return string(b)
}

func (p *matrixIked) initiate(t *testing.T, r *matrixRun) error {
	output(t, p.host, openikedTool("ikectl"), "load", "/etc/active.conf")
	r.await(t, slower(10*time.Second), "both families", func() bool { i, c := p.sas(t, r); return i == 2 && c == 2 })
	return nil
}

// rekeyChild waits for the end of the lifetime.
func (p *matrixIked) rekeyChild(t *testing.T, r *matrixRun) {
	since := len(r.messages())
	r.await(t, slower(15*time.Second), "openiked rekeys", func() bool { return r.requests(r.bob, createChildSA, since) >= 2 })
}

func (p *matrixIked) rekeyIKE(t *testing.T, r *matrixRun) {
	heirs := r.heirs()
	r.await(t, slower(30*time.Second), "openiked rekeys its IKE SA", func() bool { return r.heirs() >= heirs+2 })
}

func (p *matrixIked) terminate(t *testing.T, r *matrixRun) {
	output(t, p.host, openikedTool("ikectl"), "reset", "id", "FQDN/"+r.endName("alice"))
}

// demandCookies shows that iked answers everybody: it has a cookie for those that demand one, and no word for the demand.
func (p *matrixIked) demandCookies(t *testing.T, r *matrixRun) (cannot string) {
	const each = 40
	answers := func() (n int) {
		for _, m := range r.messages() {
			if m.Exchange == ikeSAInit && m.Response && m.of(r.bob) {
				n++
			}
		}
		return n
	}
	r.halfOpen(t, r.bob, r.alice, each)
	r.await(t, slower(20*time.Second), "openiked answers", func() bool { return answers() >= 2*each || r.cookies(r.bob, true) > 0 })
	if r.cookies(r.bob, true) > 0 {
		return ""
	}
	t.Logf("%d answers to IKE_SA_INIT, none of which demands a cookie\n%s\n%s", answers(), r.timeline(0), r.timeline(1))
	return fmt.Sprintf("openiked 7.2 never demands a cookie: %d half-open SAs in each family are answered, and nothing is asked for (the test's log).", each)
}

var (
	ikedIKE   = regexp.MustCompile(`(?m)^iked_sas: .* ESTABLISHED`)
	ikedChild = regexp.MustCompile(`(?m)^\s*sa_childsas: .* in `)
)

func (p *matrixIked) sas(t *testing.T, _ *matrixRun) (ikes, children int) {
	t.Helper()
	list := output(t, p.host, openikedTool("ikectl"), "show", "sa")
	return len(ikedIKE.FindAllString(list, -1)), len(ikedChild.FindAllString(list, -1))
}

// refuses: tacit always offers transport mode.
func (p *matrixIked) refuses(r matrixRow) bool { return r.mode == "tunnel" && r.by == "tacit" }

// refusal is iked's own word.
func (p *matrixIked) refusal(t *testing.T, r *matrixRun) (why string) {
	const word = "no compatible policy found"
	said := p.log()[p.read:]
	var lines []string
	for _, line := range strings.Split(said, "\n") {
		for _, what := range []string{"USE_TRANSPORT_MODE", word, "AUTHENTICATION_FAILED", "NO_PROPOSAL_CHOSEN", "TS_UNACCEPTABLE"} {
			if strings.Contains(line, what) {
				lines = append(lines, line)
				break
			}
		}
	}
	t.Logf("openiked:\n%s", strings.Join(lines, "\n"))
	if !strings.Contains(said, word) || !strings.Contains(said, "USE_TRANSPORT_MODE") {
		t.Errorf("openiked does not say why:\n%s", tail(said, 200))
	}
	return "openiked 7.2 with a policy for tunnel mode refuses who offers USE_TRANSPORT_MODE, instead of leaving the offer unanswered: \"" + word + "\" (the test's log)."
}

// TestXFRMMatrixOpeniked is openiked on the kernel's ESP.
func TestXFRMMatrixOpeniked(t *testing.T) {
	needESP(t)
	needTree(t, "TACIT_OPENIKED")
	needE2E(t, openikedTool("iked"), "ip")
	var rows []matrixRow
	for _, kind := range []string{"P-256", "P-384", "RSA-2048", "RSA-3072"} {
		rows = append(rows, rowsOf([]string{"transport", "tunnel"}, []string{kind}, func(r matrixRow) depth {
			switch {
			case r.ours == "P-256" && r.mode == "transport" && r.by == "tacit":
				return usual
			case r.ours == "P-256" && r.mode == "tunnel" && r.by == "peer":
				return brief
			}
			return none
		})...)
	}
	for i := range rows {
		rows[i].stranger = rows[i].mode == "tunnel"
	}
	runMatrix(t, "openiked 7.2, the kernel's ESP", "xfrm", &matrixIked{}, rows)
}
