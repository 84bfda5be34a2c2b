package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// maybeLabChild must be the first call of main.
func maybeLabChild() { lab.MaybeChild() }

// The names of the demo's small world: one zone is signed, the other is not.
const (
	demoBob   = "bob.example."
	demoPlain = "plain.test."
	demoPage  = "Hello from bob."
)

// demoWorld is the lab of a demo with what runs in it.
type demoWorld struct {
	lab                   *lab.Lab
	tap                   *lab.Tap
	alice, bob, plain, ns *lab.Host
	daemons               map[string]*lab.Cmd
	keep                  bool
}

// runDemo builds the world, looks and asks, and removes the world again.
func runDemo(ctx context.Context, o demoOptions, errOut io.Writer) (r *demoReport, err error) {
	if _, err := lab.Sweep(); err != nil {
		fmt.Fprintln(errOut, "demo: what an earlier demo left could not all be removed:", err)
	}
	l, err := lab.New("demo")
	if err != nil {
		return nil, err
	}
	w := &demoWorld{lab: l, keep: o.keep, daemons: map[string]*lab.Cmd{}}
	kept := false
	defer func() {
		if !kept {
			err = errors.Join(err, l.Close())
		}
	}()
	if err := w.build(ctx, o); err != nil {
		return nil, w.explain(err, errOut)
	}
	r = w.newReport()
	if err := w.look(ctx, r); err != nil {
		return nil, w.explain(err, errOut)
	}
	if o.keep && ctx.Err() == nil {
		r.Kept = w.howToEnter()
		kept = true
		err = l.Keep()
	}
	return r, err
}

// build makes the hosts and starts what runs on them. The lab's Close ends it again, not the context: daemons get the time
// to take their leave.
func (w *demoWorld) build(ctx context.Context, o demoOptions) (err error) {
	for _, h := range []struct {
		host  **lab.Host
		name  string
		addrs []string
	}{
		{&w.alice, "alice", []string{"192.0.2.1/24", "2001:db8::1/64"}},
		{&w.bob, "bob", []string{"192.0.2.2/24", "2001:db8::2/64"}},
		{&w.plain, "plain", []string{"192.0.2.3/24", "2001:db8::3/64"}},
		{&w.ns, "ns", []string{"192.0.2.53/24", "2001:db8::53/64"}},
	} {
		if *h.host, err = w.lab.Host(h.name, lab.Prefixes(h.addrs...)...); err != nil {
			return err
		}
	}
	if w.tap, err = w.lab.Tap(); err != nil {
		return err
	}
	anchor, err := w.startNames(ctx)
	if err != nil {
		return err
	}
	for _, h := range []*lab.Host{w.bob, w.plain} {
		page := demoPage
		if h == w.plain {
			page = "Hello from the plain host."
		}
		if _, err := h.StartWeb(ctx, page, o.keep, netip.AddrPortFrom(h.Addr4(), 80).String(),
			netip.AddrPortFrom(h.Addr6(), 80).String()); err != nil {
			return err
		}
	}
	if err := w.startDaemon(ctx, w.bob, anchor, "bob.example", "private-or-clear"); err != nil {
		return err
	}
	return w.startDaemon(ctx, w.alice, anchor, "", o.class)
}

// startNames gives Bob his key, signs the zones and serves them; it returns the trust anchor.
func (w *demoWorld) startNames(ctx context.Context) (string, error) {
	record, pem, err := demoIdentity()
	if err != nil {
		return "", err
	}
	if err := w.bob.SetFile("/run/identity.pem", pem); err != nil {
		return "", err
	}
	if err := os.Chmod(w.bob.File("/run/identity.pem"), 0o600); err != nil {
		return "", err
	}
	names, err := lab.NewDNS()
	if err != nil {
		return "", err
	}
	if err := errors.Join(names.AddZone("example.", true), names.AddZone("test.", false), names.Add(
		fmt.Sprintf("%s 60 A %s", demoBob, w.bob.Addr4()),
		fmt.Sprintf("%s 60 AAAA %s", demoBob, w.bob.Addr6()),
		fmt.Sprintf("%s 60 IPSECKEY %s", demoBob, record),
		fmt.Sprintf("%s 60 A %s", demoPlain, w.plain.Addr4()),
		fmt.Sprintf("%s 60 AAAA %s", demoPlain, w.plain.Addr6()),
	)); err != nil {
		return "", err
	}
	_, err = w.ns.StartDNS(ctx, names, w.keep, netip.AddrPortFrom(w.ns.Addr4(), 53).String())
	return names.TrustAnchor(), err
}

// startDaemon writes a configuration as an administrator would and runs `tacit run` with it.
func (w *demoWorld) startDaemon(ctx context.Context, h *lab.Host, anchor, name, class string) error {
	var conf strings.Builder
	if name != "" {
		fmt.Fprintf(&conf, "name = %q\nidentity = \"/run/identity.pem\"\n", name)
	}
	fmt.Fprintf(&conf, `dataplane = "tun"
socket = "/run/tacit.sock"

[dns]
listen = ["127.0.0.1:53"]
upstream = [%q]
trust-anchors = "/run/root.key"
`, w.ns.Addr4())
	if class != "private-or-clear" {
		fmt.Fprintf(&conf, "\n[[policy]]\nmatch = [\"0.0.0.0/0\", \"::/0\"]\nclass = %q\n", class)
	}
	if err := errors.Join(h.SetFile("/run/tacit.toml", conf.String()), h.SetFile("/run/root.key", anchor),
		h.SetFile("/etc/resolv.conf", "nameserver 127.0.0.1\n")); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.Create(h.File("/run/tacit.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	c := h.Command(context.WithoutCancel(ctx), exe, "run", "--config", "/run/tacit.toml")
	c.Stdout, c.Stderr, c.Survive = log, log, w.keep
	if err := c.Start(); err != nil {
		return err
	}
	w.daemons[h.Name] = c
	return h.AwaitTCP(ctx, c, "127.0.0.1:53")
}

// explain adds what the daemons said last to the reader's view of a failure.
func (w *demoWorld) explain(err error, errOut io.Writer) error {
	for _, h := range []*lab.Host{w.alice, w.bob} {
		if h == nil {
			continue
		}
		text, _ := os.ReadFile(h.File("/run/tacit.log"))
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		for _, line := range lines[max(0, len(lines)-8):] {
			if line != "" {
				fmt.Fprintf(errOut, "%s: %s\n", h.Name, line)
			}
		}
	}
	return err
}

// ask is an ordinary resolver client on Alice: it asks the name server of her resolv.conf.
func (w *demoWorld) ask(ctx context.Context, name string, kind uint16) (answer string, took time.Duration, err error) {
	conn, err := w.alice.Dial(ctx, "udp", "127.0.0.1:53")
	if err != nil {
		return "", 0, err
	}
	defer conn.Close()
	q := new(dns.Msg).SetQuestion(name, kind)
	c := dns.Client{Timeout: 5 * time.Second}
	r, took, err := c.ExchangeWithConnContext(ctx, q, &dns.Conn{Conn: conn})
	if err != nil {
		return "", took, fmt.Errorf("alice asks for %s %s: %w", name, dns.TypeToString[kind], err)
	}
	for _, rr := range r.Answer {
		switch a := rr.(type) {
		case *dns.A:
			return a.A.String(), took, nil
		case *dns.AAAA:
			return a.AAAA.String(), took, nil
		}
	}
	return "", took, fmt.Errorf("alice asks for %s %s: %s without an address", name, dns.TypeToString[kind], dns.RcodeToString[r.Rcode])
}

// howToEnter says how to get into the hosts that stay.
func (w *demoWorld) howToEnter() *demoKept {
	k := &demoKept{Enter: map[string]string{}, Remove: "tacit demo --remove " + w.lab.Name()}
	for _, h := range w.lab.Hosts() {
		k.Enter[h.Name] = "ip netns exec " + h.Namespace() + " sh"
	}
	for name, c := range w.daemons {
		k.Enter[name] = fmt.Sprintf("nsenter --net --mount --target %d sh", c.Process.Pid)
	}
	if exe, err := os.Executable(); err == nil && !strings.Contains(exe, "go-build") {
		k.Remove = exe + " demo --remove " + w.lab.Name()
	} else {
		k.Remove = "go run ./cmd/tacit demo --remove " + w.lab.Name()
	}
	return k
}

// removeDemo removes a lab that was kept.
func removeDemo(name string) error { return lab.Remove(name) }
