package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// certificate is one for a name, with the authority that signed it and the pin of its key.
type certificate struct {
	ca, cert, key string // PEM
	pin           string // as dns.upstream has it
}

func newCertificate(t *testing.T, name string, addr net.IP) certificate {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority of the test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	must(err)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{name}, IPAddresses: []net.IP{addr}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	must(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	must(err)
	digest := sha256.Sum256(spki)
	return certificate{block("CERTIFICATE", caDER), block("CERTIFICATE", der), block("PRIVATE KEY", keyDER),
		"pin-sha256=" + base64.StdEncoding.EncodeToString(digest[:])}
}

// box is what stands between a host and DNSSEC.
type box struct {
	what, why string // why: what a probe says of it
	lie       func(q dns.Question, a *dns.Msg) *dns.Msg
	noTCP     bool
}

// boxes are those that are met in the wild (RFC 8027).
var boxes = []box{
	{"strips RRSIG", "signatures do not pass", func(_ dns.Question, a *dns.Msg) *dns.Msg {
		for _, section := range []*[]dns.RR{&a.Answer, &a.Ns} {
			var left []dns.RR
			for _, rr := range *section {
				if rr.Header().Rrtype != dns.TypeRRSIG {
					left = append(left, rr)
				}
			}
			*section = left
		}
		return a
	}, false},
	{"drops TYPE45", "TYPE45 does not pass: no answer", ofKeys(func(*dns.Msg) *dns.Msg { return nil }), false},
	{"NOTIMP for TYPE45", "TYPE45 does not pass: NOTIMP", ofKeys(func(a *dns.Msg) *dns.Msg {
		a.Rcode, a.Answer, a.Ns = dns.RcodeNotImplemented, nil, nil
		return a
	}), false},
	{"nothing for TYPE45", "TYPE45 does not pass: the answer comes without its proof", ofKeys(func(a *dns.Msg) *dns.Msg { a.Answer, a.Ns = nil, nil; return a }), false},
	{"truncates what is signed, and TCP 53 is filtered", "truncated, and TCP does not pass", func(_ dns.Question, a *dns.Msg) *dns.Msg {
		if a.Len() > 160 {
			a.Answer, a.Ns, a.Truncated = nil, nil, true
		}
		return a
	}, true},
}

func ofKeys(lie func(a *dns.Msg) *dns.Msg) func(dns.Question, *dns.Msg) *dns.Msg {
	return func(q dns.Question, a *dns.Msg) *dns.Msg {
		if q.Qtype == typeKey {
			return lie(a)
		}
		return a
	}
}

// filterTCP has the host's kernel drop what comes to TCP 53, or not.
func filterTCP(t *testing.T, h *lab.Host, on bool) {
	t.Helper()
	output(t, h, "nft", "add table inet box")
	output(t, h, "nft", "delete table inet box")
	if on {
		output(t, h, "nft", "add table inet box; add chain inet box in { type filter hook input priority 0; }; add rule inet box in tcp dport 53 drop")
	}
}

// throughWorld has a box before the recursor, a recursor that is asked over TLS, and the authorities.
type throughWorld struct {
	*world
	box, dot *lab.Host
	liar     *liar
	cert     certificate
	hints    string
	names    []string // with Ed25519 keys, at NSD, Knot and BIND
	key      identity
	logged   int // octets of Alice's log before the last start
}

const dotName = "dns.lab.example"

func newThroughWorld(t *testing.T) *throughWorld {
	t.Helper()
	w := &throughWorld{world: newWorld(t), key: newIdentity(t)}
	for _, a := range newAuthorities(t, w.world, &w.key) {
		w.names = append(w.names, "bob."+a.name+"-ed25519")
	}
	var err error
	for i, h := range []**lab.Host{&w.box, &w.dot} {
		if *h, err = w.lab.Host([]string{"box", "dot"}[i], lab.Prefixes(fmt.Sprintf("192.0.2.%d/24", 70+i), fmt.Sprintf("2001:db8::%d/64", 70+i))...); err != nil {
			t.Fatal(err)
		}
	}
	w.liar = startLiar(t, w.box, w.up.Addr4().String()+":53")
	w.cert = newCertificate(t, dotName, w.dot.Addr4().AsSlice())
	put(t, w.dot, "/run/dot.pem", w.cert.cert)
	put(t, w.dot, "/run/dot.key", w.cert.key)
	startRecursor(t, w.dot, w.ns.Addr4().String(), fmt.Sprintf("\tinterface: %s@853\n\ttls-service-pem: /run/dot.pem\n\ttls-service-key: /run/dot.key\n\ttls-port: 853", w.dot.Addr4()))
	w.hints = fmt.Sprintf(". 3600 NS root.lab.\nroot.lab. 3600 A %s\nroot.lab. 3600 AAAA %s\n", w.ns.Addr4(), w.ns.Addr6())
	startTacit(t, w.bob, w.anchor, options{name: "bob.nsd-ed25519", identity: w.key.pem, upstream: w.up.Addr4().String()})
	put(t, w.alice, "/etc/ssl/certs/ca-certificates.crt", w.cert.ca)
	put(t, w.alice, "/run/named.root", w.hints)
	return w
}

// alice runs tacit on Alice, whose first upstream is the box.
func (w *throughWorld) run(next string, iterate bool) *tacit {
	w.t.Helper()
	old, _ := os.ReadFile(w.alice.File("/run/tacit.log")) // none before the first start
	w.logged = len(old)
	upstreams := []string{w.box.Addr4().String()}
	if next != "" {
		upstreams = append(upstreams, next)
	}
	return startTacit(w.t, w.alice, w.anchor, options{upstreams: upstreams, dns: fmt.Sprintf("iterate = %t\nroot-hints = \"/run/named.root\"", iterate)})
}

// TestGettingDNSSECThrough: whatever stands between, names with Ed25519 keys at NSD, Knot and BIND are proven and protected, by DNS over TLS to a real
// unbound or by our own iteration over the real authorities, and `tacit lookup` says which way was taken and why. Names that no proof is wanted for stay with
// the configured upstream.
func TestGettingDNSSECThrough(t *testing.T) {
	needE2E(t, "nsd", "knotd", "named", "unbound", "dnssec-signzone", "getent", "nft")
	w := newThroughWorld(t)
	for _, b := range boxes {
		w.liar.tell(b.lie)
		filterTCP(t, w.box, b.noTCP)
		for _, way := range []struct {
			what, next, via string
		}{
			{"TLS by name", "tls://" + w.dot.Addr4().String() + "#" + dotName, "tls://" + w.dot.Addr4().String() + ":853#" + dotName},
			{"iteration", "", "iteration from the root"},
		} {
			t.Run(b.what+", "+way.what, func(t *testing.T) {
				d := w.run(way.next, way.next == "")
				defer d.stop()
				w.proven(t, d, way.via, b.why)
			})
		}
	}
}

// proven looks the names up, by the verb and by the running daemon.
func (w *throughWorld) proven(t *testing.T, d *tacit, via, why string) {
	t.Helper()
	for _, name := range w.names {
		f := d.lookup(name)
		for i, q := range f.Queries[:3] {
			if q.Status != "secure" {
				t.Errorf("%s %s: %s: %s", name, q.Type, q.Status, q.Why)
			}
			if q.Via != via && (i == 2 || q.Detour != "" || q.Via != w.box.Addr4().String()+":53") || i == 2 && q.Detour == "" {
				t.Errorf("%s %s came by %q since %q, want %q", name, q.Type, q.Via, q.Detour, via)
			}
		}
		if len(f.Addresses) != 2 || f.Addresses[0].Decision != "protect" {
			t.Errorf("%s: addresses %+v", name, f.Addresses)
		}
		if len(f.Ways) != 2 || f.Ways[0].OK || !strings.Contains(f.Ways[0].Why, why) || !f.Ways[1].OK {
			t.Errorf("%s: ways %+v, want %q of the first", name, f.Ways, why)
		}
		mustAnswer(t, w.alice, name, both(w.bob)...)
	}
	text, err := d.run("lookup", w.names[0])
	if err != nil || !strings.Contains(text, "by "+via) || !strings.Contains(text, "IPSECKEY") || !strings.Contains(text, "not by "+w.box.Addr4().String()) {
		t.Errorf("tacit lookup says\n%s%v", text, err)
	}
	t.Logf("%s", text)
	if f := d.lookup("host.plain.nsd-ed25519"); f.Queries[0].Status != "insecure" || f.Queries[0].Via != w.box.Addr4().String()+":53" {
		t.Errorf("an unsigned name: %s by %q since %q: %s", f.Queries[0].Status, f.Queries[0].Via, f.Queries[0].Detour, f.Queries[0].Why)
	}
	mustAnswer(t, w.alice, "host.plain.nsd-ed25519", both(w.plain)...)
	lines := func() int { return strings.Count(d.log()[w.logged:], "way to the DNS is not good for everything") }
	eventually(t, 10*time.Second, "the log says what does not pass", func() bool { return lines() > 0 })
	if n := lines(); n != 1 {
		t.Errorf("the log says %d times what does not pass", n)
	}
}

// TestTLSUpstreamIsStrict: a server over TLS whose name or key is another is asked nothing, and nothing is answered without its proof.
func TestTLSUpstreamIsStrict(t *testing.T) {
	needE2E(t, "nsd", "knotd", "named", "unbound", "dnssec-signzone", "getent", "nft")
	w := newThroughWorld(t)
	w.liar.tell(boxes[0].lie)
	wrong := "pin-sha256=" + base64.StdEncoding.EncodeToString(make([]byte, sha256.Size))
	dot := "tls://" + w.dot.Addr4().String()
	for _, c := range []struct {
		what, upstream string
		fails          string // what lookup says of it; empty: it is good
	}{
		{"pin", dot + "#" + w.cert.pin, ""},
		{"name and pin", dot + "#" + dotName + "," + w.cert.pin, ""},
		{"address", dot, ""},
		{"wrong name", dot + "#other.lab.example", "other.lab.example"},
		{"wrong pin", dot + "#" + wrong, "pinned"},
		{"name and a wrong pin", dot + "#" + dotName + "," + wrong, "pinned"},
	} {
		t.Run(c.what, func(t *testing.T) {
			d := w.run(c.upstream, false)
			defer d.stop()
			f := d.lookup(w.names[0])
			if c.fails == "" {
				if f.Queries[2].Status != "secure" || !strings.HasPrefix(f.Queries[2].Via, "tls://") {
					t.Errorf("%+v", f.Queries[2])
				}
				mustAnswer(t, w.alice, w.names[0], both(w.bob)...)
				return
			}
			if f.Queries[2].Status == "secure" || len(f.Ways) != 2 || f.Ways[1].OK || !strings.Contains(f.Ways[1].Why, c.fails) {
				t.Errorf("%+v, ways %+v", f.Queries[2], f.Ways)
			}
			mustWithhold(t, w.alice, w.names[0])
		})
	}
}

// TestOneNameTakesAnotherWay: where the proof of one name only does not come, that name goes another way, over IPv6 if need be, and the others stay.
func TestOneNameTakesAnotherWay(t *testing.T) {
	needE2E(t, "nsd", "knotd", "named", "unbound", "dnssec-signzone", "getent", "nft")
	w := newThroughWorld(t)
	strip := boxes[0].lie
	w.liar.tell(func(q dns.Question, a *dns.Msg) *dns.Msg {
		if strings.EqualFold(q.Name, w.names[1]+".") {
			return strip(q, a)
		}
		return a
	})
	put(t, w.alice, "/run/named.root", fmt.Sprintf(". 3600 NS root.lab.\nroot.lab. 3600 AAAA %s\n", w.ns.Addr6()))
	d := w.run("", true)
	for i, name := range w.names {
		f := d.lookup(name)
		want := w.box.Addr4().String() + ":53"
		if i == 1 {
			want = "iteration from the root"
		}
		for _, q := range f.Queries[:3] {
			if q.Status != "secure" || q.Via != want || (q.Detour == "") != (i != 1) {
				t.Errorf("%s %s: %s by %q since %q: %s", name, q.Type, q.Status, q.Via, q.Detour, q.Why)
			}
		}
		if !f.Ways[0].OK {
			t.Errorf("ways %+v", f.Ways)
		}
		for range 2 {
			mustAnswer(t, w.alice, name, both(w.bob)...)
		}
	}
	if n := strings.Count(d.log(), "another way to the DNS"); n != 1 {
		t.Errorf("%d lines of the log about the way", n)
	}
}
