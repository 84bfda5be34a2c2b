package e2e

import (
	"fmt"
	"strings"
	"testing"

	"tacit/lab"
)

// algorithmOf is a mnemonic as Knot and BIND write it in their configuration.
func algorithmOf(z authorityZone) string { return strings.ToLower(z.algorithm) }

// startKnot serves the zones, whose text lies in /run/zones, at the host's IPv4 address, and signs each answer as it is asked for.
func startKnot(t *testing.T, h *lab.Host, zones []authorityZone) {
	t.Helper()
	var conf, policies, modules, list strings.Builder
	fmt.Fprintf(&conf, `server:
    rundir: "/run"
    user: root:root
    listen: %s@53
log:
  - target: stderr
    any: info
database:
    storage: "/run"
`, h.Addr4())
	for _, z := range zones {
		id := algorithmOf(z)
		fmt.Fprintf(&policies, "  - id: %s\n    algorithm: %s\n", id, id)
		fmt.Fprintf(&modules, "  - id: %s\n    policy: %s\n    nsec-bitmap: [A, AAAA, IPSECKEY]\n", id, id)
		fmt.Fprintf(&list, "  - domain: %s\n    file: /run/zones/%s\n    module: mod-onlinesign/%s\n", z.apex, zoneName(z.apex), id)
		for _, child := range []string{"plain.", "broken."} {
			fmt.Fprintf(&list, "  - domain: %s\n    file: /run/zones/%s\n", child+z.apex, zoneName(child+z.apex))
		}
	}
	fmt.Fprintf(&conf, "policy:\n%smod-onlinesign:\n%szone:\n%s", &policies, &modules, &list)
	put(t, h, "/run/knot.conf", conf.String())
	c := start(t, h, "knotd", "-c", "/run/knot.conf")
	if err := h.AwaitTCP(t.Context(), c, h.Addr4().String()+":53"); err != nil {
		t.Fatal(err)
	}
}

// startBIND serves the zones, whose text lies in /run/zones, at the host's IPv4 address; named makes their keys and signs them inline, with NSEC3.
func startBIND(t *testing.T, h *lab.Host, zones []authorityZone) {
	t.Helper()
	var conf strings.Builder
	fmt.Fprintf(&conf, `options {
	directory "/run/zones";
	listen-on { %s; };
	listen-on-v6 { none; };
	pid-file "/run/named.pid";
	session-keyfile "/run/named.session";
	recursion no;
	dnssec-validation no;
	minimal-responses no;
	notify no;
};
controls { };
`, h.Addr4())
	for _, z := range zones {
		id := algorithmOf(z)
		fmt.Fprintf(&conf, "dnssec-policy %q { keys { csk lifetime unlimited algorithm %s; }; nsec3param iterations 0 optout no salt-length 0; };\n", id, id)
		fmt.Fprintf(&conf, "zone %q { type primary; file %q; dnssec-policy %q; inline-signing yes; };\n", z.apex, zoneName(z.apex), id)
		for _, child := range []string{"plain.", "broken."} {
			fmt.Fprintf(&conf, "zone %q { type primary; file %q; };\n", child+z.apex, zoneName(child+z.apex))
		}
	}
	put(t, h, "/run/named.conf", conf.String())
	c := start(t, h, "named", "-g", "-c", "/run/named.conf")
	if err := h.AwaitTCP(t.Context(), c, h.Addr4().String()+":53"); err != nil {
		t.Fatal(err)
	}
}

// startRecursor runs unbound as a recursor from the root at the server down; it validates nothing. more are lines of its server clause.
func startRecursor(t *testing.T, h *lab.Host, root, more string) *lab.Cmd {
	t.Helper()
	put(t, h, "/run/unbound.conf", fmt.Sprintf(`server:
	interface: %s
	interface: %s
	access-control: 0.0.0.0/0 allow
	access-control: ::/0 allow
	username: ""
	chroot: ""
	directory: "/run"
	pidfile: "/run/unbound.pid"
	use-syslog: no
	verbosity: 1
	num-threads: 1
	module-config: "iterator"
	do-ip6: no
	minimal-responses: no
%s
remote-control:
	control-enable: no
stub-zone:
	name: "."
	stub-addr: %s
`, h.Addr4(), h.Addr6(), more, root))
	c := start(t, h, "unbound", "-d", "-c", "/run/unbound.conf")
	if err := h.AwaitTCP(t.Context(), c, h.Addr4().String()+":53"); err != nil {
		t.Fatal(err)
	}
	return c
}
