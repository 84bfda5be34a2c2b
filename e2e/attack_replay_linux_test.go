package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// recorded is a zone as it was once: what somebody on the path has recorded, and plays again.
type recorded struct {
	rrs   []dns.RR
	until time.Time // the end of its signatures
}

// record signs other records with the keys that signZones has left in dir. What is signed is good for as long as valid.
func (z zoneFile) record(t *testing.T, dir string, valid time.Duration) recorded {
	t.Helper()
	in, out := filepath.Join(dir, zoneName(z.apex)+".old.in"), filepath.Join(dir, zoneName(z.apex)+".old")
	if err := os.WriteFile(in, []byte(z.text("192.0.2.53")), 0o644); err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(valid)
	tool(t, dir, "dnssec-signzone", "-q", "-S", "-z", "-O", "full", "-K", dir, "-d", t.TempDir(), "-e", until.UTC().Format("20060102150405"), "-o", z.apex, "-f", out, in)
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	r := recorded{until: until}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, ";") {
			r.rrs = append(r.rrs, record(t, strings.TrimSpace(line)))
		}
	}
	return r
}

// set is an RRset with its signatures, with the TTL that a cache that serves what has expired would give it (RFC 8767, 4).
func (r recorded) set(name string, kind uint16) (set []dns.RR) {
	for _, rr := range r.rrs {
		t := rr.Header().Rrtype
		if sig, ok := rr.(*dns.RRSIG); ok {
			t = sig.TypeCovered
		}
		if t == kind && strings.EqualFold(rr.Header().Name, name) {
			c := dns.Copy(rr)
			c.Header().Ttl = 30
			set = append(set, c)
		}
	}
	return set
}

// answer plays what is recorded: the set, or its denial.
func (r recorded) answer(a *dns.Msg, apex, name string, kind uint16) *dns.Msg {
	a.Answer, a.Ns, a.Rcode = r.set(name, kind), nil, dns.RcodeSuccess
	if len(a.Answer) > 0 {
		return a
	}
	a.Ns = r.set(apex, dns.TypeSOA)
	if proof, there := r.nsec(apex, name); there {
		a.Ns = append(a.Ns, proof...)
	} else {
		wild, _ := r.nsec(apex, "*."+strings.TrimPrefix(apex, "."))
		a.Ns, a.Rcode = append(append(a.Ns, proof...), wild...), dns.RcodeNameError
	}
	return a
}

// nsec is the record that matches the name, or covers it. The zone's names must be one label below the apex.
func (r recorded) nsec(apex, name string) (proof []dns.RR, match bool) {
	for _, rr := range r.rrs {
		n, ok := rr.(*dns.NSEC)
		if !ok {
			continue
		}
		owner, next := strings.TrimSuffix(n.Hdr.Name, apex), strings.TrimSuffix(n.NextDomain, apex)
		label := strings.TrimSuffix(name, apex)
		if owner == label || owner < label && (label < next || next == "") {
			return r.set(n.Hdr.Name, dns.TypeNSEC), owner == label
		}
	}
	return nil, false
}

// shortLived are records with a TTL of a second.
func shortLived(records []string) []string {
	out := make([]string, len(records))
	for i, r := range records {
		out[i] = strings.Replace(r, " 60 IN ", " 1 IN ", 1)
	}
	return out
}

// forgetAnswer waits until an answer with a TTL of a second has ended.
func forgetAnswer() { time.Sleep(1100 * time.Millisecond) }

// mustExpire fails the test unless the name is withheld with EDE 7, and was not before its signatures ended.
func mustExpire(t *testing.T, h *lab.Host, name string) {
	t.Helper()
	if code, text := mustWithhold(t, h, name).ede(); code != dns.ExtendedErrorCodeSignatureExpired {
		t.Errorf("%s: EDE %d %q, want 7", name, code, text)
	}
}

// TestReplay is for what is served though it has expired: who plays old answers with good signatures wins nothing that the zone's owner did
// not sign, for no longer than he signed it, and takes no proof of the address away.
//
//tacit:attack A-12 what has expired is refused; a proof within linger wins over an old denial
func TestReplay(t *testing.T) {
	const valid = 9 * time.Second // of the old signatures
	var old recorded
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		r := append(hostRecords("bob.example.", w.bob, &w.bobKey), hostRecords("roll.example.", w.bob, &w.bobKey)...)
		r = append(append(r, hostRecords("new.example.", w.bob, &w.bobKey)...), hostRecords("www.example.", w.plain, nil)...)
		return []zoneFile{{"example.", bindNSEC, shortLived(r)}}
	})
	w.run("")
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 100_000)
	}
	before := append(hostRecords("bob.example.", w.bob, nil), hostRecords("roll.example.", w.bob, &w.malKey)...)
	before = append(append(before, hostRecords("new.example.", w.bob, nil)...), hostRecords("www.example.", w.mallory, nil)...)
	old = zoneFile{"example.", bindNSEC, shortLived(before)}.record(t, w.zones, valid)
	names := []string{"bob.example.", "roll.example.", "www.example."}
	w.liar.tell(func(q dns.Question, a *dns.Msg) *dns.Msg {
		for _, name := range names {
			if strings.EqualFold(q.Name, name) {
				return old.answer(a, "example.", name, q.Qtype)
			}
		}
		return a
	})
	forgetAnswer()

	// The old denial of Bob's key: the name is worth no more than it was then, but the address has proved a key since, and stays held.
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 100_000)
	}
	// The old key: Bob does not prove it. His live SA is not touched.
	mustWithhold(t, w.alice, "roll.example")
	mustAnswer(t, w.alice, "new.example", both(w.bob)...)
	// The old address is what the owner signed, and nothing is claimed for it.
	mustAnswer(t, w.alice, "www.example", both(w.mallory)...)
	w.neverAuthenticated(w.mallory)
	if time.Now().After(old.until) {
		t.Fatal("the old signatures have ended before their time was tried")
	}
	// Until its signature ends, no longer: neither the answers that are handed out, nor what is kept here.
	for _, kind := range []uint16{dns.TypeA, typeKey, dns.TypeMX} {
		a := ask(t, w.alice, "bob.example", kind)
		for _, rr := range append(a.Answer, a.Ns...) {
			if end := time.Now().Add(time.Duration(rr.Header().Ttl) * time.Second); end.After(old.until.Add(time.Second)) {
				t.Errorf("%v outlives its signature, which ends at %v", rr, old.until)
			}
		}
	}
	time.Sleep(time.Until(old.until.Add(1100 * time.Millisecond)))
	for _, name := range names {
		mustExpire(t, w.alice, strings.TrimSuffix(name, "."))
	}
	for _, addr := range both(w.bob) { // the held address is as it was
		transfer(t, w.alice, w.bob, addr, 100_000)
	}
	w.liar.tell(nil)
	forgetFailure()
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	mustAnswer(t, w.alice, "roll.example", both(w.bob)...)
	w.onlyProtected(w.alice, w.bob)
}

// TestNothingStale is A-34: when the upstream falls silent, what is known ends with its TTL; when the parent takes a zone back, its own servers do not keep
// it alive by renewing themselves.
//
//tacit:attack A-34 what is known ends with its TTL; what the parent took back stays so
func TestNothingStale(t *testing.T) {
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		ghost := zoneFile{"ghost.", bindNSEC, shortLived(hostRecords("bob.ghost.", w.bob, &w.bobKey))}
		return []zoneFile{{"example.", bindNSEC, shortLived(append(hostRecords("bob.example.", w.bob, &w.bobKey), hostRecords("keyless.example.", w.plain, nil)...))}, ghost}
	})
	// What the root says of ghost. ends in two seconds; afterwards it has taken ghost. back.
	text, err := os.ReadFile(filepath.Join(w.zones, "root.in"))
	if err != nil {
		t.Fatal(err)
	}
	root := zoneFile{apex: "."}
	for line := range strings.Lines(string(text)) {
		if !strings.Contains(line, "ghost.") && !strings.Contains(line, " SOA ") && !strings.HasPrefix(line, "ns. ") && !strings.HasPrefix(line, ". ") {
			root.records = append(root.records, strings.TrimSpace(line))
		}
	}
	without := root.record(t, w.zones, time.Hour)
	brief := func(a *dns.Msg) *dns.Msg {
		for _, rr := range append(append(a.Answer, a.Ns...), a.Extra...) {
			if rr.Header().Rrtype != dns.TypeOPT {
				rr.Header().Ttl = min(rr.Header().Ttl, 2)
			}
		}
		return a
	}
	w.liar.tell(func(_ dns.Question, a *dns.Msg) *dns.Msg { return brief(a) })
	w.run("")
	mustAnswer(t, w.alice, "bob.ghost", both(w.bob)...)
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	mustAnswer(t, w.alice, "keyless.example", both(w.plain)...)
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 100_000)
	}
	w.liar.tell(func(q dns.Question, a *dns.Msg) *dns.Msg {
		if strings.EqualFold(q.Name, "ghost.") && q.Qtype == dns.TypeDS {
			a = without.answer(a, ".", "ghost.", dns.TypeDS)
		}
		return brief(a)
	})
	time.Sleep(3 * time.Second)
	mustWithhold(t, w.alice, "bob.ghost")
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	// Silence.
	w.liar.tell(func(dns.Question, *dns.Msg) *dns.Msg { return nil })
	time.Sleep(3 * time.Second)
	var wg sync.WaitGroup
	for _, name := range []string{"bob.example", "keyless.example"} {
		wg.Go(func() { mustWithhold(t, w.alice, name) })
	}
	wg.Go(func() {
		if addrs, err := getaddrinfo(t, w.alice, "ahosts", "bob.example"); err == nil {
			t.Errorf("getaddrinfo has %v, after all that was known has ended", addrs)
		}
	})
	wg.Wait()
	for _, addr := range both(w.bob) { // the address proved its key: it is held for linger all the same
		transfer(t, w.alice, w.bob, addr, 100_000)
	}
	w.onlyProtected(w.alice, w.bob)
	w.liar.tell(nil)
	forgetFailure()
	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	mustAnswer(t, w.alice, "keyless.example", both(w.plain)...)
}
