package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// authority is a name server with a zone for each of its keys.
type authority struct {
	name   string
	host   *lab.Host
	serves func(t *testing.T, h *lab.Host, zones []authorityZone) // nil: NSD on the root's server
	zones  []authorityZone
}

// authorityZone is a signed zone, and what its denials look like.
type authorityZone struct {
	apex      string
	algorithm string // mnemonic, as tacit lookup has it
	signer    signer // NSD's
	denial    string // NSEC or NSEC3
	online    bool   // signed as it is asked: a wildcard's answers look like any other, and there is no NXDOMAIN (RFC 9824)
}

// records are the names of the zone: whatever a validator has to tell apart.
func (z authorityZone) records(w *world, key *identity, server netip.Addr) []string {
	at := func(label string) string { return label + "." + z.apex }
	r := append(hostRecords(at("bob"), w.bob, key), hostRecords(at("keyless"), w.plain, nil)...)
	r = append(r, hostRecords(at("*.wild"), w.bob, key)...)
	r = append(r, hostRecords(at("host.sub"), w.bob, key)...)
	r = append(r, at("deep.ent")+" 60 IN TXT deep", at("alias")+" 60 IN CNAME "+at("bob"), at("dn")+" 60 IN DNAME "+at("sub"))
	for _, child := range []string{"plain", "broken"} {
		r = append(r, at(child)+" 60 IN NS "+at("ns"), at("ns."+child)+" 60 IN A "+server.String())
	}
	return append(r, at("broken")+" 60 IN DS 4711 13 2 "+strings.Repeat("ab", 32))
}

// children are the zones below: one without DS and one whose DS fits no key.
func (z authorityZone) children(w *world) []zoneFile {
	var zones []zoneFile
	for _, child := range []string{"plain.", "broken."} {
		zones = append(zones, zoneFile{child + z.apex, unsigned, hostRecords("host."+child+z.apex, w.plain, nil)})
	}
	return zones
}

// newAuthorities makes the servers, the root above all their zones and a recursor that asks them.
func newAuthorities(t *testing.T, w *world, key *identity) []authority {
	t.Helper()
	all := []authority{
		{name: "nsd", host: w.ns, zones: []authorityZone{{"nsd-p256.", "ECDSAP256SHA256", bindNSEC, "NSEC", false},
			{"nsd-ed25519.", "ED25519", bindNSEC3, "NSEC3", false}, {"nsd-rsa.", "RSASHA256", bindRSA, "opt-out", false}}},
		{name: "knot", serves: startKnot},
		{name: "bind", serves: startBIND},
	}
	var zones []zoneFile
	var below []zoneFile // zones that the root does not delegate
	for i := range all {
		a := &all[i]
		if a.serves == nil {
			for _, z := range a.zones {
				zones = append(zones, zoneFile{z.apex, z.signer, z.records(w, key, a.host.Addr4())})
				below = append(below, z.children(w)...)
			}
			continue
		}
		for alg, mnemonic := range map[string]string{"ed25519": "ED25519", "p256": "ECDSAP256SHA256", "rsa": "RSASHA256"} {
			z := authorityZone{apex: a.name + "-" + alg + ".", algorithm: mnemonic, signer: elsewhere, denial: "NSEC3"}
			if a.name == "knot" {
				z.denial, z.online = "NSEC", true
			}
			a.zones = append(a.zones, z)
		}
		slices.SortFunc(a.zones, func(x, y authorityZone) int { return strings.Compare(x.apex, y.apex) })
		var err error
		if a.host, err = w.lab.Host(a.name, lab.Prefixes(fmt.Sprintf("192.0.2.%d/24", 56+i))...); err != nil {
			t.Fatal(err)
		}
		for _, z := range a.zones {
			own := append([]zoneFile{{z.apex, unsigned, z.records(w, key, a.host.Addr4())}}, z.children(w)...)
			for _, f := range own {
				put(t, a.host, "/run/zones/"+zoneName(f.apex), f.text(a.host.Addr4().String()))
			}
		}
		a.serves(t, a.host, a.zones)
		for _, z := range a.zones {
			ds := servedKey(t, a.host, z.apex).ToDS(dns.SHA256)
			zones = append(zones, zoneFile{z.apex, elsewhere, []string{z.apex + " 3600 IN NS ns." + z.apex,
				"ns." + z.apex + " 3600 IN A " + a.host.Addr4().String(), ds.String()}})
		}
	}
	dir, anchor := signZones(t, zones...)
	for _, z := range below {
		signZone(t, dir, z)
	}
	w.anchor = anchor
	startNSD(t, w.ns, dir)
	startRecursor(t, w.up, w.ns.Addr4().String(), "")
	return all
}

// servedKey is the key that a server which makes its own has made for a zone.
func servedKey(t *testing.T, h *lab.Host, apex string) (key *dns.DNSKEY) {
	t.Helper()
	eventually(t, 30*time.Second, h.Name+" has a key for "+apex, func() bool {
		q := new(dns.Msg)
		q.SetQuestion(apex, dns.TypeDNSKEY)
		q.SetEdns0(4096, true)
		c, err := h.Dial(t.Context(), "tcp", h.Addr4().String()+":53")
		if err != nil {
			return false
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		conn := &dns.Conn{Conn: c}
		if conn.WriteMsg(q) != nil {
			return false
		}
		r, err := conn.ReadMsg()
		if err != nil {
			return false
		}
		signed := false
		for _, rr := range r.Answer {
			switch rr := rr.(type) {
			case *dns.DNSKEY:
				if rr.Flags&dns.SEP != 0 || key == nil {
					key = rr
				}
			case *dns.RRSIG:
				signed = true
			}
		}
		return key != nil && signed
	})
	return key
}

// found is what `tacit lookup --json` says.
type found struct {
	Owner   string `json:"owner"`
	Queries []struct {
		Name, Type, Status, Rcode, Why string
		Via, Detour                    string
		Denied                         bool
		Links                          []struct {
			Of, Status, Zone, Algorithm, Proof string
		}
	} `json:"queries"`
	Ways []struct {
		Name, Why string
		OK        bool
	}
	Trust []struct {
		Of, Algorithm, Proof string
	} `json:"trust"`
	Addresses []struct {
		Address    netip.Addr
		Decision   string
		ReportedAs string `json:"reported_as"`
		Why        string
		EDE        *int
	} `json:"addresses"`
}

// lookup runs `tacit lookup --json` on the daemon's host.
func (d *tacit) lookup(name string) (f found) {
	d.t.Helper()
	out, err := d.run("lookup", "--json", name)
	if err != nil {
		d.t.Fatalf("lookup %s: %v\n%s", name, err, out)
	}
	if err := json.Unmarshal([]byte(out), &f); err != nil {
		d.t.Fatalf("lookup %s: %v\n%s", name, err, out)
	}
	return f
}

// TestAuthorities: what NSD, Knot (signing online) and BIND (inline, NSEC3) serve, with keys of each algorithm that matters, is judged as it should be:
// each kind of answer by `tacit lookup`, and then by the main job.
func TestAuthorities(t *testing.T) {
	needE2E(t, "nsd", "knotd", "named", "unbound", "dnssec-signzone", "getent")
	w := newWorld(t)
	key := newIdentity(t)
	all := newAuthorities(t, w, &key)
	up := w.up.Addr4().String()
	startTacit(t, w.bob, w.anchor, options{name: "bob.nsd-p256", identity: key.pem, upstream: up})
	alice := startTacit(t, w.alice, w.anchor, options{upstream: up})
	for _, a := range all {
		for _, z := range a.zones {
			t.Run(strings.TrimSuffix(z.apex, "."), func(t *testing.T) {
				for _, r := range z.rows() {
					r.judge(t, alice.lookup(r.label+"."+z.apex), z)
				}
				z.mainJob(t, w)
			})
		}
	}
	for i, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 100_000)
		transfer(t, w.alice, w.plain, both(w.plain)[i], 10_000)
	}
	w.onlyProtected(w.alice, w.bob)
	if c := w.tap.BetweenHosts(w.alice, w.plain); c.Clear() == 0 || c.ESP() != 0 {
		t.Errorf("with the plain host: got %v, want clear packets only", c)
	}
}

// judgement is what a lookup of a name must say.
type judgement struct {
	label    string
	addr     string // status of A
	key      string // status of IPSECKEY
	rcode    string // of A
	proof    string // of the last link of A
	decision string // for each address; empty: there is none
	report   string // as whom
}

// rows are the names of the zone, each with its judgement.
func (z authorityZone) rows() []judgement {
	denial, nxdomain, wild, noName := z.denial, "NXDOMAIN", "wildcard", "secure"
	if z.denial == "opt-out" { // what such a zone says of names that are not there, an unsigned delegation may contradict
		denial, noName = "NSEC3", "insecure"
	}
	if z.online {
		nxdomain, wild = "NOERROR", "signature"
	}
	zone := strings.TrimSuffix(z.apex, ".")
	as := func(label string) string { return "authenticated as " + label + "." + zone }
	rows := []judgement{
		{"bob", "secure", "secure", "NOERROR", "signature", "protect", as("bob")},
		{"keyless", "secure", "secure", "NOERROR", "signature", "answer", "no key, proven"},
		{"none", noName, noName, nxdomain, z.denial, "", ""},
		{"ent", "secure", "secure", "NOERROR", denial, "", ""},
		{"x.wild", "secure", "secure", "NOERROR", wild, "protect", as("x.wild")},
		{"alias", "secure", "secure", "NOERROR", "signature", "protect", as("bob") + " (via alias." + zone + ")"},
		{"host.dn", "secure", "secure", "NOERROR", "signature", "protect", as("host.sub") + " (via host.dn." + zone + ")"},
		{"host.plain", "insecure", "insecure", "NOERROR", "no DS", "answer", "anonymous at best"},
		{"host.broken", "bogus", "bogus", "NOERROR", "", "servfail", "bogus"},
	}
	if z.denial == "opt-out" { // RFC 5155, 9.2: a wildcard's expansion rests on the span that is left open
		rows[4] = judgement{"x.wild", "insecure", "insecure", "NOERROR", wild, "answer", "anonymous at best"}
		rows[7].proof = "opt-out"
	}
	return rows
}

// judge compares.
func (r judgement) judge(t *testing.T, f found, z authorityZone) {
	t.Helper()
	addr, key := f.Queries[0], f.Queries[2]
	if addr.Type != "A" || key.Type != "IPSECKEY" || len(addr.Links) == 0 {
		t.Fatalf("%s: queries %+v", r.label, f.Queries)
	}
	if addr.Status != r.addr || key.Status != r.key || addr.Rcode != r.rcode {
		t.Errorf("%s: A %s %s, IPSECKEY %s, want %s %s, %s: %s; %s", r.label, addr.Status, addr.Rcode, key.Status, r.addr, r.rcode, r.key, addr.Why, key.Why)
	}
	last := addr.Links[len(addr.Links)-1]
	if last.Proof != r.proof || last.Status == "secure" && last.Algorithm != z.algorithm {
		t.Errorf("%s: the last link is %+v, want proof %s and %s", r.label, last, r.proof, z.algorithm)
	}
	if n := len(f.Trust); n < 2 || f.Trust[0].Proof != "trust anchor" || f.Trust[1].Of != z.apex+" DNSKEY" || f.Trust[1].Proof != "DS" || f.Trust[1].Algorithm != z.algorithm {
		t.Errorf("%s: the chain of zones is %+v", r.label, f.Trust)
	}
	if (r.decision == "") != (len(f.Addresses) == 0) || r.decision != "" && len(f.Addresses) != 2 {
		t.Errorf("%s: addresses %+v", r.label, f.Addresses)
	}
	for _, a := range f.Addresses {
		if a.Decision != r.decision || a.ReportedAs != r.report {
			t.Errorf("%s: %v %s, reported as %q, want %s, %q: %s", r.label, a.Address, a.Decision, a.ReportedAs, r.decision, r.report, a.Why)
		}
	}
}

// mainJob asks the running tacit for the zone's names.
func (z authorityZone) mainJob(t *testing.T, w *world) {
	t.Helper()
	for _, name := range []string{"bob.", "x.wild.", "alias.", "host.dn."} {
		mustAnswer(t, w.alice, name+z.apex, both(w.bob)...)
	}
	for _, name := range []string{"keyless.", "host.plain."} {
		mustAnswer(t, w.alice, name+z.apex, both(w.plain)...)
	}
	mustWithhold(t, w.alice, "host.broken."+z.apex)
	want := dns.RcodeNameError
	if z.online {
		want = dns.RcodeSuccess
	}
	for name, rcode := range map[string]int{"none.": want, "ent.": dns.RcodeSuccess} {
		r, err := query(context.Background(), w.alice, name+z.apex, dns.TypeA)
		if err != nil || r.Rcode != rcode || len(r.Answer) > 0 {
			t.Errorf("%s%s: got\n%v\n%v", name, z.apex, r.Msg, err)
		}
	}
}
