package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"tacit/lab"
)

// signer says who signs a zone.
type signer uint8

const (
	unsigned   signer = iota
	bindNSEC          // dnssec-signzone, ECDSA P-256
	bindNSEC3         // dnssec-signzone, Ed25519, NSEC3 without salt
	ldnsSigned        // ldns-signzone, Ed25519
	bindRSA           // dnssec-signzone, RSA-2048 with SHA-256, NSEC3 with opt-out
	elsewhere         // a server that signs for itself: records are the delegation
)

// zoneFile is a zone to be: records without SOA and NS, which are added.
type zoneFile struct {
	apex    string // with the final dot
	signer  signer
	records []string
}

// text is the zone in zone-file form, with a server at the address.
func (z zoneFile) text(server string) string {
	ns := "ns." + strings.TrimPrefix(z.apex, ".")
	return fmt.Sprintf("%s 3600 IN SOA %s host.%s 1 3600 600 86400 60\n%s 3600 IN NS %s\n%s 3600 IN A %s\n",
		z.apex, ns, strings.TrimPrefix(z.apex, "."), z.apex, ns, ns, server) + strings.Join(z.records, "\n") + "\n"
}

// signZones writes and signs the zones under a root that is signed by BIND's tools. It returns the directory with one
// file "NAME.zone" for each ("root.zone") and the root's DNSKEY.
func signZones(t *testing.T, zones ...zoneFile) (dir, anchor string) {
	t.Helper()
	dir = t.TempDir()
	root := zoneFile{apex: ".", signer: bindNSEC}
	for _, z := range zones {
		if z.signer == elsewhere {
			root.records = append(root.records, z.records...)
			continue
		}
		ds := signZone(t, dir, z)
		root.records = append(root.records, z.apex+" 3600 IN NS ns."+z.apex, "ns."+z.apex+" 3600 IN A 192.0.2.53")
		if ds != "" {
			root.records = append(root.records, ds)
		}
	}
	signZone(t, dir, root)
	key := readKey(t, dir, ".")
	return dir, key.String() + "\n"
}

// zoneName is the file name of a zone.
func zoneName(apex string) string {
	if apex == "." {
		return "root"
	}
	return strings.TrimSuffix(apex, ".")
}

// signZone writes NAME.zone, signed where asked, and returns the DS record.
func signZone(t *testing.T, dir string, z zoneFile) (ds string) {
	t.Helper()
	name := zoneName(z.apex)
	in, out := filepath.Join(dir, name+".in"), filepath.Join(dir, name+".zone")
	if z.signer == unsigned {
		in = out
	}
	if err := os.WriteFile(in, []byte(z.text("192.0.2.53")), 0o644); err != nil {
		t.Fatal(err)
	}
	switch z.signer {
	case unsigned:
		return ""
	case bindNSEC:
		tool(t, dir, "dnssec-keygen", "-q", "-K", dir, "-a", "ECDSAP256SHA256", "-f", "KSK", z.apex)
		tool(t, dir, "dnssec-signzone", "-q", "-S", "-z", "-K", dir, "-d", dir, "-o", z.apex, "-f", out, in)
	case bindNSEC3:
		tool(t, dir, "dnssec-keygen", "-q", "-K", dir, "-a", "ED25519", "-f", "KSK", z.apex)
		tool(t, dir, "dnssec-signzone", "-q", "-S", "-z", "-3", "-", "-H", "0", "-K", dir, "-d", dir, "-o", z.apex, "-f", out, in)
	case bindRSA:
		tool(t, dir, "dnssec-keygen", "-q", "-K", dir, "-a", "RSASHA256", "-b", "2048", "-f", "KSK", z.apex)
		tool(t, dir, "dnssec-signzone", "-q", "-S", "-z", "-3", "-", "-H", "0", "-A", "-K", dir, "-d", dir, "-o", z.apex, "-f", out, in)
	case ldnsSigned:
		base := strings.TrimSpace(tool(t, dir, "ldns-keygen", "-a", "ED25519", "-k", z.apex))
		tool(t, dir, "ldns-signzone", "-o", z.apex, "-f", out, in, base)
	}
	record := readKey(t, dir, z.apex).ToDS(dns.SHA256)
	record.Hdr.Ttl = 3600
	return record.String()
}

// readKey reads the zone's only key, as its signer left it.
func readKey(t *testing.T, dir, apex string) *dns.DNSKEY {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "K"+apex+"+*.key"))
	if apex != "." && err == nil && len(files) == 0 { // ldns writes the name without its dot
		files, err = filepath.Glob(filepath.Join(dir, "K"+strings.TrimSuffix(apex, ".")+"*.key"))
	}
	if err != nil || len(files) != 1 {
		t.Fatalf("keys of %s: %v, %v", apex, files, err)
	}
	f, err := os.Open(files[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := dns.NewZoneParser(f, "", files[0])
	p.SetDefaultTTL(3600)
	rr, _ := p.Next()
	key, ok := rr.(*dns.DNSKEY)
	if !ok {
		t.Fatalf("%s: no DNSKEY: %v", files[0], p.Err())
	}
	return key
}

// tool runs a program on this machine to its end.
func tool(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	c := exec.Command(name, args...)
	c.Dir = dir
	var stderr strings.Builder
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

// startNSD serves all zones of the directory at the host's addresses.
func startNSD(t *testing.T, h *lab.Host, dir string) {
	t.Helper()
	var conf strings.Builder
	fmt.Fprintf(&conf, `server:
	ip-address: %s
	ip-address: %s
	username: ""
	zonesdir: %q
	pidfile: "/run/nsd.pid"
	database: ""
	xfrdfile: "/run/nsd.xfrd"
	zonelistfile: "/run/nsd.list"
	xfrdir: "/run"
	server-count: 1
	rrl-ratelimit: 0
remote-control:
	control-enable: no
`, h.Addr4(), h.Addr6(), dir)
	files, err := filepath.Glob(filepath.Join(dir, "*.zone"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no zones in %s: %v", dir, err)
	}
	for _, f := range files {
		base := filepath.Base(f)
		apex := strings.TrimSuffix(base, ".zone")
		if apex == "root" {
			apex = "."
		}
		fmt.Fprintf(&conf, "zone:\n\tname: %q\n\tzonefile: %q\n", apex, base)
	}
	put(t, h, "/run/nsd.conf", conf.String())
	c := start(t, h, "nsd", "-d", "-c", "/run/nsd.conf")
	if err := h.AwaitTCP(t.Context(), c, h.Addr4().String()+":53"); err != nil {
		t.Fatal(err)
	}
}

// startUnbound runs unbound as a plain forwarder to the server: it validates nothing and passes DNSSEC's records on.
func startUnbound(t *testing.T, h *lab.Host, server string) *lab.Cmd {
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
	local-zone: "test." nodefault
	local-zone: "2.0.192.in-addr.arpa." nodefault
	local-zone: "8.b.d.0.1.0.0.2.ip6.arpa." nodefault
	do-not-query-localhost: no
	minimal-responses: no
	prefetch: no
remote-control:
	control-enable: no
forward-zone:
	name: "."
	forward-addr: %s
`, h.Addr4(), h.Addr6(), server))
	c := start(t, h, "unbound", "-d", "-c", "/run/unbound.conf")
	if err := h.AwaitTCP(t.Context(), c, h.Addr4().String()+":53"); err != nil {
		t.Fatal(err)
	}
	return c
}
