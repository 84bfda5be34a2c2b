package dnssec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"tacit/lab"
)

// fault is one of the ways in which a zone, or what is said of it, is broken.
type fault struct {
	name string
	zone func(z *testZone)                         // before it is signed and linked
	link func(z, up *testZone)                     // after: DS records
	say  func(z *testZone, q question, m *dns.Msg) // each answer about its names
}

// each calls f for every record of a section that is one of type t, or a signature over it.
func each(m *dns.Msg, t uint16, f func(dns.RR)) {
	for _, sec := range [][]dns.RR{m.Answer, m.Ns} {
		for _, r := range sec {
			if isType(t)(r) || t == 0 {
				f(r)
			}
		}
	}
}

// sigs calls f for every signature that is not over DNSKEY.
func sigs(f func(s *dns.RRSIG)) func(*testZone, question, *dns.Msg) {
	return func(_ *testZone, _ question, m *dns.Msg) {
		each(m, 0, func(r dns.RR) {
			if s, ok := r.(*dns.RRSIG); ok && s.TypeCovered != dns.TypeDNSKEY {
				f(s)
			}
		})
	}
}

func keys(f func(m *dns.Msg)) func(*testZone, question, *dns.Msg) {
	return func(_ *testZone, q question, m *dns.Msg) {
		if q.rrtype == dns.TypeDNSKEY {
			f(m)
		}
	}
}

// others are all answers but those to DNSKEY questions.
func others(f func(m *dns.Msg)) func(*testZone, question, *dns.Msg) {
	return func(_ *testZone, q question, m *dns.Msg) {
		if q.rrtype != dns.TypeDNSKEY {
			f(m)
		}
	}
}

// onDS changes the DS records of a zone, in its parent, before that is signed.
func onDS(f func(z *testZone, ds *dns.DS) []dns.RR) func(z, up *testZone) {
	return func(z, up *testZone) {
		if z.mode == plain || len(up.node[z.name][dns.TypeDS]) == 0 {
			return
		}
		if rrs := f(z, up.node[z.name][dns.TypeDS][0].(*dns.DS)); len(rrs) > 0 {
			up.node[z.name][dns.TypeDS] = rrs
		} else {
			delete(up.node[z.name], dns.TypeDS)
		}
	}
}

// spoil changes one bit of a signature.
func spoil(text string) string {
	if text[8] == 'A' {
		return text[:8] + "B" + text[9:]
	}
	return text[:8] + "A" + text[9:]
}

const revokedKeyFault = "key is revoked"

var faults = []fault{
	{name: "none"}, {name: "none"}, {name: "none"}, {name: "none"},
	{name: "answer without signatures", say: others(func(m *dns.Msg) { m.Answer = without(m.Answer, dns.TypeRRSIG) })},
	{name: "authority without signatures", say: others(func(m *dns.Msg) { m.Ns = without(m.Ns, dns.TypeRRSIG) })},
	{name: "signatures spoiled", say: sigs(func(s *dns.RRSIG) { s.Signature = spoil(s.Signature) })},
	{name: "an address spoiled", say: func(_ *testZone, _ question, m *dns.Msg) {
		each(m, dns.TypeA, func(r dns.RR) {
			if a, ok := r.(*dns.A); ok {
				a.A = net.IPv4(203, 0, 113, 1)
			}
		})
	}},
	{name: "expired", zone: func(z *testZone) { z.to = time.Now().Add(-4 * time.Hour); z.from = z.to.Add(-24 * time.Hour) }},
	{name: "not yet valid", zone: func(z *testZone) { z.from = time.Now().Add(72 * time.Hour); z.to = z.from.Add(24 * time.Hour) }},
	{name: "DS digest wrong", link: onDS(func(_ *testZone, ds *dns.DS) []dns.RR {
		ds.Digest = strings.Repeat("00", len(ds.Digest)/2)
		return []dns.RR{ds}
	})},
	{name: "DS key tag wrong", link: onDS(func(_ *testZone, ds *dns.DS) []dns.RR { ds.KeyTag++; return []dns.RR{ds} })},
	{name: "DS algorithm wrong", link: onDS(func(_ *testZone, ds *dns.DS) []dns.RR {
		ds.Algorithm = map[bool]uint8{true: 13, false: 15}[ds.Algorithm == 15]
		return []dns.RR{ds}
	})},
	{name: "DS algorithm unknown", link: onDS(func(_ *testZone, ds *dns.DS) []dns.RR { ds.Algorithm = 200; return []dns.RR{ds} })},
	{name: "DS digest type unknown", link: onDS(func(_ *testZone, ds *dns.DS) []dns.RR { ds.DigestType = 200; return []dns.RR{ds} })},
	{name: "DS of SHA-384", link: onDS(func(z *testZone, _ *dns.DS) []dns.RR { return []dns.RR{withTTL(z.key.ToDS(dns.SHA384))} })},
	{name: "DS of SHA-1 and SHA-256", link: onDS(func(z *testZone, ds *dns.DS) []dns.RR { return []dns.RR{ds, withTTL(z.key.ToDS(dns.SHA1))} })},
	{name: "DS of another key, too", link: onDS(func(_ *testZone, ds *dns.DS) []dns.RR {
		other := dns.Copy(ds).(*dns.DS)
		other.KeyTag, other.Digest = 1, strings.Repeat("11", 32)
		return []dns.RR{other, ds}
	})},
	{name: "DS of an unknown algorithm, too", link: onDS(func(_ *testZone, ds *dns.DS) []dns.RR {
		other := dns.Copy(ds).(*dns.DS)
		other.Algorithm = 200
		return []dns.RR{other, ds}
	})},
	{name: "no DS: an island", link: onDS(func(*testZone, *dns.DS) []dns.RR { return nil })},
	{name: "no DNSKEY", say: keys(func(m *dns.Msg) { m.Answer = nil })},
	{name: "DNSKEY unsigned", say: keys(func(m *dns.Msg) { m.Answer = without(m.Answer, dns.TypeRRSIG) })},
	{name: "DNSKEY's signature spoiled", say: keys(func(m *dns.Msg) {
		each(m, dns.TypeDNSKEY, func(r dns.RR) {
			if s, ok := r.(*dns.RRSIG); ok {
				s.Signature = spoil(s.Signature)
			}
		})
	})},
	{name: "key is no zone key", zone: func(z *testZone) { z.key.Flags &^= dns.ZONE }},
	{name: revokedKeyFault, zone: func(z *testZone) { z.key.Flags |= dns.REVOKE }},
	{name: "key of another protocol", zone: func(z *testZone) { z.key.Protocol = 2 }},
	{name: "key without SEP", zone: func(z *testZone) { z.key.Flags &^= dns.SEP }},
	{name: "labels raised", say: sigs(func(s *dns.RRSIG) { s.Labels++ })},
	{name: "labels lowered", say: sigs(func(s *dns.RRSIG) { s.Labels-- })},
	{name: "signer is the parent", say: sigs(func(s *dns.RRSIG) { s.SignerName = parent(s.SignerName) })},
	{name: "signer is below", say: sigs(func(s *dns.RRSIG) { s.SignerName = "x." + s.SignerName })},
	{name: "signer in capitals", say: sigs(func(s *dns.RRSIG) { s.SignerName = strings.ToUpper(s.SignerName) })},
	{name: "key tag raised", say: sigs(func(s *dns.RRSIG) { s.KeyTag++ })},
	{name: "original TTL raised", say: sigs(func(s *dns.RRSIG) { s.OrigTtl++ })},
	{name: "algorithm changed", say: sigs(func(s *dns.RRSIG) { s.Algorithm ^= 2 })},
	{name: "no NSEC", say: func(_ *testZone, _ question, m *dns.Msg) {
		drop(m, isType(dns.TypeNSEC))
		drop(m, isType(dns.TypeNSEC3))
	}},
	{name: "no authority section", say: others(func(m *dns.Msg) {
		if len(m.Answer) > 0 {
			m.Ns = nil
		}
	})},
	{name: "bitmaps emptied", say: func(_ *testZone, _ question, m *dns.Msg) {
		each(m, 0, func(r dns.RR) {
			switch r := r.(type) {
			case *dns.NSEC:
				r.TypeBitMap = nil
			case *dns.NSEC3:
				r.TypeBitMap = nil
			}
		})
	}},
	{name: "an unsigned address beside", say: func(_ *testZone, q question, m *dns.Msg) {
		for _, r := range m.Answer { // to the set; what is beside the chain we leave out, and the oracles refuse
			if r.Header().Rrtype == dns.TypeA && q.rrtype == dns.TypeA {
				m.Answer = append(m.Answer, rr(r.Header().Name+" 600 IN A 203.0.113.2"))
				return
			}
		}
	}},
	{name: "a record twice", say: func(_ *testZone, _ question, m *dns.Msg) {
		if len(m.Answer) > 0 && m.Answer[0].Header().Rrtype != dns.TypeDNAME { // unbound refuses two
			m.Answer = append(m.Answer, dns.Copy(m.Answer[0]))
		}
	}},
	{name: "owners in capitals", say: func(_ *testZone, _ question, m *dns.Msg) {
		each(m, 0, func(r dns.RR) { r.Header().Name = strings.ToUpper(r.Header().Name) })
	}},
	{name: "TTLs raised", say: func(_ *testZone, _ question, m *dns.Msg) { each(m, 0, func(r dns.RR) { r.Header().Ttl += 1000 }) }},
	// Behind the good one: that any one is enough (RFC 6840, 5.4) delv does not hold to where the first is bad.
	{name: "a signature spoiled behind the good one", say: func(_ *testZone, _ question, m *dns.Msg) {
		for _, sec := range []*[]dns.RR{&m.Answer, &m.Ns} {
			for _, r := range *sec {
				if s, ok := r.(*dns.RRSIG); ok {
					bad := dns.Copy(s).(*dns.RRSIG)
					bad.Signature = spoil(bad.Signature)
					*sec = append(*sec, bad)
				}
			}
		}
	}},
	{name: "NSEC3 iterations beyond the limit", zone: func(z *testZone) { z.iter = 200 }},
	{name: "NSEC3 iterations within the limit", zone: func(z *testZone) { z.iter = 50 }},
	{name: "opt-out said of what is not", say: func(_ *testZone, _ question, m *dns.Msg) {
		each(m, dns.TypeNSEC3, func(r dns.RR) {
			if n, ok := r.(*dns.NSEC3); ok {
				n.Flags ^= 1
			}
		})
	}},
}

func without(rrs []dns.RR, t uint16) (out []dns.RR) {
	for _, r := range rrs {
		if r.Header().Rrtype != t {
			out = append(out, r)
		}
	}
	return out
}

func withTTL(ds *dns.DS) *dns.DS {
	ds.Hdr.Ttl = 3600
	return ds
}

// judged is one question about one generated zone.
type judged struct {
	zone  *testZone
	fault fault
	ask   question
}

// generate makes n zones below test., each with one fault, and one question about each.
func generate(t *testing.T, n int, seed uint64) (*world, *Anchors, []judged) {
	r := rand.New(rand.NewPCG(seed, 1))
	root, up := newZone(t, ".", nsec, dns.ED25519, ""), newZone(t, "test.", nsec3, dns.ECDSAP256SHA256, "")
	zones := []*testZone{root, up}
	var all []judged
	algs := []uint8{dns.RSASHA256, dns.RSASHA512, dns.ECDSAP256SHA256, dns.ECDSAP384SHA384, dns.ED25519}
	for i := range n {
		name := fmt.Sprintf("z%d.test.", i)
		mode := []int{nsec, nsec, nsec3, nsec3, optout, plain}[r.IntN(6)]
		f := faults[r.IntN(len(faults))]
		if i >= 200 { // what the oracles differ in among themselves has been asked often enough, see explain
			if mode == optout {
				mode = nsec3
			}
			if f.name == revokedKeyFault {
				f = faults[0]
			}
		}
		z := newZone(t, name, mode, algs[r.IntN(len(algs))], strings.ReplaceAll(`
			www.@ 600 IN A 192.0.2.1
			alias.@ 600 IN CNAME www.@
			*.wild.@ 600 IN A 192.0.2.2
			*.walias.@ 600 IN CNAME www.@
			deep.ent.@ 600 IN A 192.0.2.3
			old.@ 600 IN DNAME wild.@
			sub.@ 600 IN NS ns.example.`, "@", name))
		if f.zone != nil && z.mode != plain {
			f.zone(z)
		}
		zones = append(zones, z)
		q := []question{{"www.", dns.TypeA}, {"www.", dns.TypeIPSECKEY}, {"none.", dns.TypeA}, {"alias.", dns.TypeA}, {"any.wild.", dns.TypeA}, {"any.wild.", dns.TypeMX},
			{"any.walias.", dns.TypeA}, {"ent.", dns.TypeA}, {"x.old.", dns.TypeA}, {"", dns.TypeSOA}, {"", dns.TypeMX}, {"a.b.none.", dns.TypeTXT}, {"sub.", dns.TypeDS}}[r.IntN(13)]
		all = append(all, judged{z, f, question{q.name + name, q.rrtype}})
	}
	for _, z := range zones {
		if z.to.Equal(testNow.Add(24 * time.Hour)) {
			z.from, z.to = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
		}
	}
	w, a := newWorld(t, zones...)
	for _, j := range all {
		if j.fault.link != nil {
			j.fault.link(j.zone, up)
		}
	}
	up.denial = map[string]dns.RR{}
	up.finish()
	byZone := map[string]judged{}
	for _, j := range all {
		byZone[j.zone.name] = j
	}
	w.set(func(qu dns.Question, m *dns.Msg) {
		q := question{dns.CanonicalName(qu.Name), qu.Qtype}
		name := locus(q.name, q.rrtype)
		if dns.CountLabel(name) < 2 {
			return
		}
		if j, ok := byZone[ancestor(name, 2)]; ok && j.fault.say != nil && j.zone.mode != plain {
			j.fault.say(j.zone, q, m)
		}
	})
	return w, a, all
}

// serveWorld answers on a socket as the forwarder of the oracles.
func serveWorld(t *testing.T, w Exchanger) string {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	h := dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		m, err := w.Exchange(context.Background(), q)
		if err != nil || m == nil {
			m = new(dns.Msg)
			m.SetRcode(q, dns.RcodeServerFailure)
		}
		m.Id, m.RecursionAvailable, m.RecursionDesired = q.Id, true, q.RecursionDesired
		m.SetEdns0(4096, true)
		if _, udp := rw.LocalAddr().(*net.UDPAddr); udp {
			m.Truncate(4096)
		}
		_ = rw.WriteMsg(m)
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
		ready := make(chan struct{})
		s.NotifyStartedFunc = func() { close(ready) }
		go func() { _ = s.ActivateAndServe() }()
		<-ready
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	_, port, _ := net.SplitHostPort(pc.LocalAddr().String())
	return port
}

// startUnbound runs unbound as a validating forwarder and returns its address.
func startUnbound(t *testing.T, dir, port string) string {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := pc.LocalAddr().String()
	_, own, _ := net.SplitHostPort(addr)
	pc.Close()
	conf := fmt.Sprintf("server:\n interface: 127.0.0.1@%s\n access-control: 127.0.0.0/8 allow\n do-daemonize: no\n username: \"\"\n chroot: \"\"\n pidfile: \"\"\n directory: %q\n use-syslog: no\n"+
		" module-config: \"validator iterator\"\n trust-anchor-file: \"anchor\"\n do-not-query-localhost: no\n local-zone: \"test.\" nodefault\n aggressive-nsec: no\n qname-minimisation: no\n"+
		" do-ip6: no\n target-fetch-policy: \"0 0 0 0 0\"\n trust-anchor-signaling: no\n prefetch: no\nremote-control:\n control-enable: no\nforward-zone:\n name: \".\"\n forward-addr: 127.0.0.1@%s\n", own, dir, port)
	if err := os.WriteFile(filepath.Join(dir, "unbound.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unbound", "-d", "-c", filepath.Join(dir, "unbound.conf"))
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for range 100 {
		m := new(dns.Msg)
		m.SetQuestion(".", dns.TypeSOA)
		if _, err := dns.Exchange(m, addr); err == nil {
			return addr
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("unbound does not answer: %s", log.String())
	return ""
}

// unboundSays is unbound's judgement.
func unboundSays(t *testing.T, addr string, q question) Status {
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.rrtype)
	m.SetEdns0(4096, true)
	c := dns.Client{Timeout: 10 * time.Second, UDPSize: 4096}
	r, _, err := c.Exchange(m, addr)
	if err == nil && r.Truncated {
		c.Net = "tcp"
		r, _, err = c.Exchange(m, addr)
	}
	switch {
	case err != nil:
		t.Logf("unbound, %v: %v", q, err)
		return Unchecked
	case r.Rcode == dns.RcodeServerFailure:
		return Bogus
	case r.AuthenticatedData:
		return Secure
	}
	return Insecure
}

// delvSays is delv's judgement.
func delvSays(t *testing.T, dir, port string, q question) Status {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "delv", "@127.0.0.1", "-p", port, "-a", filepath.Join(dir, "bind"), "+root=.", q.name, typeName(q.rrtype)).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Logf("delv, %v: %v", q, err)
		return Unchecked
	}
	switch text := string(out); {
	case strings.Contains(text, "resolution failed") && !strings.Contains(text, "failed: ncache"): // of the end of a chain, after its beginning was validated
		return Bogus
	case strings.Contains(text, "unsigned"):
		return Insecure
	case strings.Contains(text, "fully validated"):
		return Secure
	default:
		t.Logf("delv, %v: %s", q, text)
		return Unchecked
	}
}

// unbound and delv judge generated zones as we do: never Secure where one of them does not say so, and at most ten other differences, each with its
// reason. 200 zones with
// TACIT_E2E=1, 2,000 with TACIT_LONG=1 beside it.
func TestDifferential(t *testing.T) {
	if os.Getenv("TACIT_E2E") != "1" {
		t.Skip("needs unbound, delv and a network namespace: TACIT_E2E=1")
	}
	lab.Need(t, "unbound", "delv", "ip")
	if os.Getenv("TACIT_ALONE") == "" { // once more, in a network of its own
		cmd := exec.Command(os.Args[0], "-test.run", "^TestDifferential$", "-test.v", "-test.timeout", "30m")
		cmd.Env = append(os.Environ(), "TACIT_ALONE=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		out, err := cmd.CombinedOutput()
		if t.Logf("%s", out); err != nil {
			t.Fatal(err)
		}
		return
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n := 200
	if os.Getenv("TACIT_LONG") == "1" {
		n = 2000
	}
	w, a, all := generate(t, n, 1)
	said := &liar{w: w, honest: map[question]*dns.Msg{}} // who tells no lies, but remembers what was signed
	port := serveWorld(t, said)
	dir := t.TempDir()
	ds := a.zones["."].ds[0]
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "anchor"), []byte(ds.String()+"\n"), 0o600), os.WriteFile(filepath.Join(dir, "bind"),
		fmt.Appendf(nil, "trust-anchors { \".\" static-ds %d %d %d \"%s\"; };\n", ds.KeyTag, ds.Algorithm, ds.DigestType, ds.Digest), 0o600)); err != nil {
		t.Fatal(err)
	}
	addr := startUnbound(t, dir, port)
	v := New(said, a)
	judgements := make([]struct { // the oracles wait a lot: several questions at once
		got    Answer
		ub, dv Status
	}, len(all))
	var g errgroup.Group
	g.SetLimit(8)
	for i, j := range all {
		g.Go(func() (err error) {
			s := &judgements[i]
			s.got, err = v.Lookup(context.Background(), j.ask.name, j.ask.rrtype)
			s.ub, s.dv = unboundSays(t, addr, j.ask), delvSays(t, dir, port, j.ask)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	count, explained, total := map[Status]int{}, map[string]int{}, 0
	for i, j := range all {
		got, ub, dv := judgements[i].got, judgements[i].ub, judgements[i].dv
		count[got.Status]++
		if got.Status == ub && got.Status == dv {
			continue
		}
		say, why := t.Errorf, explain(j, got, ub, dv)
		if why != "" && got.Status != Secure {
			say = t.Logf
			explained[why]++
			total++
		}
		say("%s %s: %s: we say %v (%s), unbound %v, delv %v: %s", j.ask.name, typeName(j.ask.rrtype), j.fault.name, got.Status, got.Why, ub, dv, why)
	}
	t.Logf("%d zones: %v; explained %v", n, count, explained)
	if total > 10 {
		t.Errorf("%d differences", total)
	}
	if count[Secure] < n/10 || count[Bogus] < n/10 || count[Insecure] < n/20 {
		t.Errorf("a test without teeth: %v", count)
	}
}

// explain is why we judge otherwise than one of the oracles: a rule that it does not keep, while the other one agrees with us. Empty if nothing does.
func explain(j judged, got Answer, ub, dv Status) string {
	switch {
	case got.Status == Insecure && ub == Insecure && dv == Secure && j.zone.mode == optout:
		return "RFC 5155, 9.2: what an opt-out span denies is not secure; delv says it is"
	case got.Status == Bogus && dv == Bogus && ub >= Insecure && j.fault.name == revokedKeyFault:
		return "RFC 5011, 2.1: a revoked key signs nothing but its set; unbound lets it"
	case got.Status == Insecure && ub == Bogus && dv == Bogus && j.zone.mode == optout:
		return "RFC 5155, 6: what lies in an opt-out span may be an unsigned zone, and its signatures anybody's: without them the oracles say so, too"
	}
	return ""
}
