package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tacit/ipseckey"
	"tacit/lab"
)

// tacit is a daemon on a host.
type tacit struct {
	t    *testing.T
	host *lab.Host
	cmd  *lab.Cmd
	env  []string
}

// options is what tests say about a daemon; the rest of its configuration is the same for all.
type options struct {
	name     string // its own FQDN; needs identity
	identity string // PEM
	upstream string // address, or address and port

	upstreams []string // more than one, in place of upstream
	top       string   // more lines of the configuration's top level
	dns       string   // more lines of [dns]
	policy    string   // whole [[policy]] tables
	observe   bool

	dataplane string   // default: dataplane()
	env       []string // more of the environment
}

// upstreamList is the list as TOML has it.
func (o options) upstreamList() string {
	list := o.upstreams
	if list == nil {
		list = []string{o.upstream}
	}
	return `["` + strings.Join(list, `", "`) + `"]`
}

// dataplane is the one under test: tun, which works on every kernel, unless TACIT_DATAPLANE says otherwise.
func dataplane() string { return cmp.Or(os.Getenv("TACIT_DATAPLANE"), "tun") }

// startTacit runs `tacit run` on the host, whose resolv.conf points to it, and waits until it answers.
func startTacit(t *testing.T, h *lab.Host, anchor string, o options) *tacit {
	t.Helper()
	var conf strings.Builder
	if o.name != "" {
		fmt.Fprintf(&conf, "name = %q\n", o.name)
	}
	if o.identity != "" {
		put(t, h, "/run/identity.pem", o.identity)
		if err := os.Chmod(h.File("/run/identity.pem"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Fprintf(&conf, `identity = "/run/identity.pem"
dataplane = %q
socket = "/run/tacit.sock"
%s
[dns]
listen = ["127.0.0.1:53"]
upstream = %s
trust-anchors = "/run/root.key"
%s
%s
`, cmp.Or(o.dataplane, dataplane()), o.top, o.upstreamList(), o.dns, o.policy)
	put(t, h, "/run/tacit.toml", conf.String())
	put(t, h, "/run/root.key", anchor)
	put(t, h, "/etc/resolv.conf", "nameserver 127.0.0.1\n")
	d := &tacit{t: t, host: h, env: o.env}
	d.start(o.observe)
	return d
}

// start runs the daemon with the configuration that lies there.
func (d *tacit) start(observe bool) {
	d.t.Helper()
	exe, err := tacitBinary()
	if err != nil {
		d.t.Fatal(err)
	}
	args := []string{"run", "--config", "/run/tacit.toml"}
	if observe {
		args = append(args, "--observe")
	}
	ready := func() int {
		text, _ := os.ReadFile(d.host.File("/run/tacit.log")) // there is none yet at the first start
		return strings.Count(string(text), "msg=ready ")
	}
	before := ready()
	d.cmd = startEnv(d.t, d.host, d.env, exe, args...)
	if err := d.host.AwaitTCP(d.t.Context(), d.cmd, "127.0.0.1:53"); err != nil {
		d.t.Fatalf("%v\n%s", err, tail(d.log(), 20))
	}
	// Its sockets are there first, and its rules in force only then: a start that fails changes nothing.
	eventually(d.t, time.Minute, "tacit is ready", func() bool { return ready() > before })
}

// kill ends the daemon as a crash would.
func (d *tacit) kill() {
	d.t.Helper()
	if err := d.cmd.Signal(unix.SIGKILL); err != nil {
		d.t.Fatal(err)
	}
	<-d.cmd.Done()
}

// stop ends the daemon in good order.
func (d *tacit) stop() {
	d.t.Helper()
	if err := d.cmd.Stop(5 * time.Second); err != nil {
		d.t.Fatal(err)
	}
}

// log is all that the daemon has written.
func (d *tacit) log() string {
	d.t.Helper()
	return logOf(d.t, d.host, "tacit")
}

// run runs another verb of the binary on the daemon's host, with its configuration.
func (d *tacit) run(args ...string) (stdout string, err error) {
	d.t.Helper()
	exe, err := tacitBinary()
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), 20*time.Second)
	defer cancel()
	out, err := d.host.Command(ctx, exe, append(args, "--config", "/run/tacit.toml")...).Output()
	return string(out), err
}

// identity is a key pair as PEM with the data of its IPSECKEY record.
type identity struct {
	pem    string
	record string // presentation form
	typ45  string // RFC 3597 form, with "TYPE45"
}

func newIdentity(t *testing.T) identity {
	t.Helper()
	key, err := ipseckey.GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return identityOf(t, key)
}

// identityOf is one with a key of any kind.
func identityOf(t *testing.T, key crypto.Signer) identity {
	t.Helper()
	text, err := ipseckey.MarshalIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ipseckey.NewRecord(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return identity{pem: string(text), record: r.String(), typ45: fmt.Sprintf(`TYPE45 \# %d %x`, len(raw), raw)}
}

// hostRecords are the addresses of a host and, if it has one, its key, in zone-file form.
func hostRecords(name string, h *lab.Host, key *identity) []string {
	r := []string{fmt.Sprintf("%s 60 IN A %s", name, h.Addr4()), fmt.Sprintf("%s 60 IN AAAA %s", name, h.Addr6())}
	if key != nil {
		r = append(r, fmt.Sprintf("%s 60 IN %s", name, key.typ45))
	}
	return r
}

// getaddrinfo looks a name up with the C library of the host: the addresses in its order.
func getaddrinfo(t *testing.T, h *lab.Host, database, name string) ([]string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := h.Command(ctx, "getent", database, name).Output()
	if err != nil {
		return nil, err
	}
	var addrs []string
	seen := map[string]bool{}
	for line := range bytes.Lines(out) {
		if f := bytes.Fields(line); len(f) > 0 && !seen[string(f[0])] {
			seen[string(f[0])] = true
			addrs = append(addrs, string(f[0]))
		}
	}
	return addrs, nil
}

// mustResolve fails the test unless getaddrinfo yields exactly these addresses, in any order.
func mustResolve(t *testing.T, h *lab.Host, name string, want ...string) {
	t.Helper()
	got, err := getaddrinfo(t, h, "ahosts", name)
	if err != nil {
		t.Fatalf("%s looks %s up: %v", h.Name, name, err)
	}
	left := map[string]bool{}
	for _, a := range want {
		left[a] = true
	}
	for _, a := range got {
		if !left[a] {
			t.Errorf("%s looks %s up: got %v, want %v", h.Name, name, got, want)
			return
		}
		delete(left, a)
	}
	if len(left) > 0 {
		t.Errorf("%s looks %s up: got %v, want %v", h.Name, name, got, want)
	}
}
