package e2e

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// matrixSwan is strongSwan. Its rows differ in the identities, by which it tells its connections.
type matrixSwan struct {
	*swan
	kernel bool
}

// The smallest fragments; one half-open SA, and everybody is asked for a cookie; no waiting for what is lost or late.
const swanMatrixConf = `
	fragment_size = 576
	cookie_threshold = 1
	delete_rekeyed_delay = 1
	retransmit_timeout = 0.5
	retransmit_base = 1.5
`

func (p *matrixSwan) setup(t *testing.T, m *matrix, rows []matrixRow) {
	conf, files := &strings.Builder{}, map[string]string{}
	conf.WriteString("connections {\n")
	seen := map[string]bool{}
	for _, r := range rows {
		name := p.connection(r, "")
		if seen[name] {
			continue
		}
		seen[name] = true
		for end, kind := range map[string]string{"alice": r.ours, "bob": r.theirs} {
			key := m.keys[[2]string{end, kind}]
			files["pubkey/"+end+kind+".pem"] = publicPEM(t, key)
			if end == "bob" {
				files["private/"+end+kind+".pem"] = key.pem
			}
		}
		for i, family := range []string{"v4", "v6"} {
			p.write(conf, m, r, i, family)
		}
	}
	conf.WriteString("}\n")
	files["swanctl.conf"] = conf.String()
	daemon := strongswanConf
	if p.kernel {
		daemon = kernelConf(daemon)
	}
	daemon = strings.Replace(daemon, "charon-systemd {\n", "charon-systemd {\n"+swanMatrixConf, 1)
	p.swan = runSwan(t, m.bob, daemon, files)
	if p.kernel {
		// For up to ten seconds, the more likely the younger the kernel is, charon 5.9 takes all cookies for late: the time that it allows
		// them is less than nothing then (src/libcharon/network/receiver.c, cookie_verify). With the threshold above it wants them at once.
		time.Sleep(10 * time.Second)
	}
}

func (p *matrixSwan) connection(r matrixRow, family string) string {
	return strings.ToLower(r.theirs + "-" + r.mode + "-" + family)
}

func (p *matrixSwan) write(conf *strings.Builder, m *matrix, r matrixRow, i int, family string) {
	encap := "yes"
	if p.kernel {
		encap = "no"
	}
	fmt.Fprintf(conf, `	%s {
		version = 2
		local_addrs = %v
		remote_addrs = %v
		mobike = no
		encap = %s
		send_certreq = no
		dpd_delay = 3s
		fragmentation = yes
		proposals = aes128gcm16-prfsha256-x25519,aes256-sha256-ecp256
		local {
			auth = pubkey
			pubkeys = bob%s.pem
			id = %s
		}
		remote {
			auth = pubkey
			pubkeys = alice%s.pem
			id = %s
		}
		children {
			%s {
				mode = %s
				esp_proposals = aes128gcm16,aes128gcm16-x25519
			}
		}
	}
`, p.connection(r, family), both(m.bob)[i], both(m.alice)[i], encap, r.theirs, r.endName("bob"), r.ours, r.endName("alice"),
		p.child(r, family), r.mode)
}

func (p *matrixSwan) child(r matrixRow, family string) string {
	return p.connection(r, family) + "-child"
}

var swanSA = regexp.MustCompile(`(?m)^\S+: #(\d+), `)

// begin ends what is left of the row before, half-open SAs too.
func (p *matrixSwan) begin(t *testing.T, _ *matrixRun) {
	eventually(t, slower(10*time.Second), "charon is rid of all SAs", func() bool {
		left := swanSA.FindAllStringSubmatch(p.list(t), -1)
		for _, m := range left { // one that ends by itself meanwhile is no error
			_ = p.host.Command(t.Context(), "env", "STRONGSWAN_CONF=/run/strongswan.conf", "swanctl", "--terminate", "--ike-id", m[1], "--force", "--timeout", "1").Run()
		}
		return len(left) == 0
	})
}

// list is what charon says of its SAs.
func (p *matrixSwan) list(t *testing.T) string {
	t.Helper()
	return output(t, p.host, "env", "STRONGSWAN_CONF=/run/strongswan.conf", "swanctl", "--list-sas")
}

// each runs swanctl for both families, and wants what it says of success.
func (p *matrixSwan) each(t *testing.T, want string, args func(family string) []string) error {
	var errs [2]error
	var wg sync.WaitGroup
	for i, family := range []string{"v4", "v6"} {
		wg.Go(func() {
			c := p.host.Command(t.Context(), "env", append([]string{"STRONGSWAN_CONF=/run/strongswan.conf", "swanctl"}, args(family)...)...)
			if out, err := c.Output(); err != nil || !strings.Contains(string(out), want) {
				errs[i] = fmt.Errorf("swanctl: %v\n%s", err, out)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs[:]...)
}

// must is each for what may not fail.
func (p *matrixSwan) must(t *testing.T, want string, args func(family string) []string) {
	t.Helper()
	if err := p.each(t, want, args); err != nil {
		t.Error(err)
	}
}

func (p *matrixSwan) initiate(t *testing.T, r *matrixRun) error {
	return p.each(t, "initiate completed successfully", func(f string) []string { return []string{"--initiate", "--child", p.child(r.matrixRow, f)} })
}

func (p *matrixSwan) rekeyChild(t *testing.T, r *matrixRun) {
	p.must(t, "rekey completed successfully", func(f string) []string { return []string{"--rekey", "--child", p.child(r.matrixRow, f)} })
}

func (p *matrixSwan) rekeyIKE(t *testing.T, r *matrixRun) {
	p.must(t, "rekey completed successfully", func(f string) []string { return []string{"--rekey", "--ike", p.connection(r.matrixRow, f)} })
}

func (p *matrixSwan) terminate(t *testing.T, r *matrixRun) {
	p.must(t, "terminate completed successfully", func(f string) []string { return []string{"--terminate", "--ike", p.connection(r.matrixRow, f)} })
}

// demandCookies: charon goes on demanding for ten seconds after it was busy, and then has nothing half open.
func (p *matrixSwan) demandCookies(t *testing.T, r *matrixRun) (cannot string) {
	r.await(t, slower(15*time.Second), "charon has half-open SAs", func() bool {
		r.halfOpen(t, r.bob, r.alice, 3)
		return strings.Contains(p.list(t), "CONNECTING")
	})
	return ""
}

var (
	swanIKE   = regexp.MustCompile(`(?m)^\S+: #\d+, (ESTABLISHED|REKEYING|REKEYED|DELETING|CONNECTING)`)
	swanChild = regexp.MustCompile(`(?m)^  \S+-child: #\d+, reqid \d+, (\S+), (TRANSPORT|TUNNEL)`)
)

// sas counts all that there is; an SA in passing counts too.
func (p *matrixSwan) sas(t *testing.T, r *matrixRun) (ikes, children int) {
	t.Helper()
	list := p.list(t)
	for _, m := range swanIKE.FindAllStringSubmatch(list, -1) {
		if m[1] != "CONNECTING" { // the plain host's
			ikes++
		}
	}
	found := swanChild.FindAllStringSubmatch(list, -1)
	for _, m := range found {
		if m[2] != strings.ToUpper(r.mode) {
			t.Errorf("a Child SA in mode %s, want %s", m[2], r.mode)
		}
	}
	return ikes, len(found)
}

var swanKeys = []string{"Ed25519", "P-256", "P-384", "RSA-2048", "RSA-3072"}

// TestMatrixStrongSwan is strongSwan on this machine's kernel: ESP in user space (kernel-libipsec), tunnel mode.
func TestMatrixStrongSwan(t *testing.T) {
	needSwan(t)
	rows := rowsOf([]string{"tunnel"}, swanKeys, func(r matrixRow) depth {
		if r.ours == "RSA-3072" {
			return full
		}
		return brief
	})
	runMatrix(t, "strongSwan 5.9.8, ESP in user space (kernel-libipsec)", "tun", &matrixSwan{}, rows)
}

// TestXFRMMatrixStrongSwan is strongSwan on the kernel's ESP.
func TestXFRMMatrixStrongSwan(t *testing.T) {
	needESP(t, "charon-systemd", "swanctl")
	rows := rowsOf([]string{"transport", "tunnel"}, swanKeys, func(r matrixRow) depth {
		switch {
		case r.ours == "Ed25519" && r.mode == "transport" && r.by == "tacit":
			return usual
		case r.ours == "Ed25519" && r.mode == "tunnel" && r.by == "peer":
			return brief
		}
		return none
	})
	runMatrix(t, "strongSwan 5.9.8, the kernel's ESP", "xfrm", &matrixSwan{kernel: true}, rows)
}
