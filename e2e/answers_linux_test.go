package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// What programs get of the answers of a tacit that is the host's only nameserver.

// judge is a resolver as programs have it: it returns the addresses of a name.
type judge func(name string) ([]string, error)

// judges are getaddrinfo of glibc and of musl, and Go's own resolver.
func judges(t *testing.T, h *lab.Host) map[string]judge {
	t.Helper()
	dir := t.TempDir()
	libc := func(program string) judge {
		return func(name string) ([]string, error) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			out, err := h.Command(ctx, program, name).Output()
			return strings.Fields(string(out)), err
		}
	}
	glibc, musl := filepath.Join(dir, "glibc"), filepath.Join(dir, "musl")
	tool(t, ".", "gcc", "-O2", "-o", glibc, "testdata/getaddrinfo.c")
	tool(t, ".", "musl-gcc", "-static", "-O2", "-o", musl, "testdata/getaddrinfo.c")
	return map[string]judge{"glibc": libc(glibc), "musl": libc(musl), "Go": func(name string) ([]string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		return h.Resolver("127.0.0.1:53").LookupHost(ctx, name+".")
	}}
}

// TestSomeAddressesFail: a name with several addresses, of which some prove the name's key and others do not. Programs get those that do, whatever
// they are made with, and soon; none is made to take the other family, or none, by a failure that they take for final.
//
//tacit:attack A-45 the family that is dropped is left out, without an error where the other one is there; what is answered is protected, nothing leaves in clear
func TestSomeAddressesFail(t *testing.T) {
	needE2E(t, "gcc", "musl-gcc")
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		var r []string
		for name, list := range map[string][]netip.Addr{
			"both": both(w.bob), "four": {w.bob.Addr4()}, "six": {w.bob.Addr6()}, "nofour": {w.plain.Addr4(), w.bob.Addr6()}, "nosix": {w.bob.Addr4(), w.plain.Addr6()},
			"mixed4": {w.bob.Addr4(), w.plain.Addr4(), w.bob.Addr6()}, "mixed": append(both(w.bob), both(w.plain)...), "fails": both(w.plain), "fails4": {w.plain.Addr4()},
			"cross": {w.plain.Addr4(), w.mallory.Addr4(), w.bob.Addr6(), w.plain.Addr6()},
		} {
			r = append(r, name+".example. 60 IN "+w.bobKey.typ45)
			for _, a := range list {
				r = append(r, fmt.Sprintf("%s.example. 60 IN %s %s", name, map[bool]string{false: "A", true: "AAAA"}[a.Is6()], a))
			}
		}
		r = append(r, hostRecords("keyless.example.", w.plain, nil)...)
		r = append(r, hostRecords("dropped.example.", w.mallory, &w.malKey)...)
		return []zoneFile{{"example.", bindNSEC, append(r, "www.example. 60 IN CNAME nosix.example.")}}
	})
	w.run("")
	startTacit(t, w.mallory, w.anchor, options{name: "dropped.example", identity: w.malKey.pem, upstream: w.upstreamOfTheHost})
	for _, c := range []string{"add table inet cut", "add chain inet cut in { type filter hook input priority -500 ; }", "add rule inet cut in meta nfproto ipv6 udp dport { 500, 4500 } drop"} {
		output(t, w.mallory, "nft", c)
	}
	b4, b6, p4, p6, m4 := w.bob.Addr4().String(), w.bob.Addr6().String(), w.plain.Addr4().String(), w.plain.Addr6().String(), w.mallory.Addr4().String()
	want := map[string][]string{
		"both": {b4, b6}, "four": {b4}, "six": {b6}, "nofour": {b6}, "nosix": {b4}, "mixed4": {b4, b6}, "mixed": {b4, b6}, "fails": nil, "fails4": nil, "cross": {b6},
		"keyless": {p4, p6}, "dropped": {m4}, "www": {b4}, "nxdomain": nil,
	}
	js := judges(t, w.alice)
	for _, when := range []string{"first", "later"} { // at first what fails takes the hold, later it is known
		var wg sync.WaitGroup
		for name, addrs := range want {
			for who, look := range js {
				if when == "later" && who == "musl" && addrs == nil {
					continue // five seconds once are enough
				}
				wg.Go(func() {
					began := time.Now()
					got, err := look(name + ".example")
					took := time.Since(began)
					slices.Sort(got)
					slices.Sort(addrs)
					if !slices.Equal(slices.Compact(got), addrs) || (err != nil) != (addrs == nil) {
						t.Errorf("%s, %s: %s: got %v (%v) after %v, want %v", when, who, name, got, err, took, addrs)
					}
					limit := hold + slack
					if addrs == nil {
						limit = 6 * time.Second // musl asks again for five when it is told of a failure
					}
					if took > limit {
						t.Errorf("%s, %s: %s took %v", when, who, name, took)
					}
					var e *net.DNSError
					if who == "Go" && errors.As(err, &e) && name == "fails" && e.IsNotFound {
						t.Errorf("%s: what failed is not there: %v", when, e)
					}
				})
			}
		}
		wg.Wait()
	}
	w.partly()
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 1000)
	}
	transfer(t, w.alice, w.mallory, w.mallory.Addr4(), 1000)
	w.onlyProtected(w.alice, w.bob)
	w.onlyProtected(w.alice, w.mallory)
	w.sentNothing(w.plain)
}

// sentNothing fails the test if Alice sent the host anything but IKE; what she gets for that may be in clear, like ICMP.
func (w *attackWorld) sentNothing(to *lab.Host) {
	w.t.Helper()
	w.sync()
	for _, p := range w.tap.Select(func(p lab.Packet) bool { return has(w.alice, p.Src) && has(to, p.Dst) }) {
		if p.Class != lab.ClassIKE && p.Class != lab.ClassNeighbor {
			w.t.Errorf("%v to %v: protocol %d, %d bytes", p.Class, p.Dst, p.Proto, p.Length)
		}
	}
}

// partly looks at answers of which a part is withheld: one that wants proofs gets all or nothing (DO), and CD releases no address that failed.
func (w *attackWorld) partly() {
	w.t.Helper()
	for _, tt := range []struct {
		what, name string
		kind       uint16
		edit       func(*dns.Msg)
		rcode      int
		addrs      int
	}{
		{"some", "mixed4", dns.TypeA, func(*dns.Msg) {}, dns.RcodeSuccess, 1},
		{"some, CD", "mixed4", dns.TypeA, func(q *dns.Msg) { q.CheckingDisabled = true }, dns.RcodeSuccess, 1},
		{"some, DO", "mixed4", dns.TypeA, func(q *dns.Msg) { q.IsEdns0().SetDo() }, dns.RcodeServerFailure, 0},
		{"the other family has some", "nosix", dns.TypeAAAA, func(*dns.Msg) {}, dns.RcodeSuccess, 0},
		{"the other family has some, DO", "nosix", dns.TypeAAAA, func(q *dns.Msg) { q.IsEdns0().SetDo() }, dns.RcodeServerFailure, 0},
		{"none", "fails", dns.TypeA, func(*dns.Msg) {}, dns.RcodeServerFailure, 0},
		{"none, CD", "fails", dns.TypeAAAA, func(q *dns.Msg) { q.CheckingDisabled = true }, dns.RcodeServerFailure, 0},
		{"all, DO", "both", dns.TypeAAAA, func(q *dns.Msg) { q.IsEdns0().SetDo() }, dns.RcodeSuccess, 1},
	} {
		a, err := query(w.t.Context(), w.alice, tt.name+".example", tt.kind, tt.edit)
		if err != nil {
			w.t.Fatal(err)
		}
		_, why := a.ede()
		whole := tt.what == "all, DO"
		if a.Rcode != tt.rcode || len(a.addrs()) != tt.addrs || a.AuthenticatedData != whole || (why == "") != whole {
			w.t.Errorf("%s: got\n%v", tt.what, a.Msg)
		}
	}
}

// TestRowsAndClasses is the table of TRUST.md 1: what each class makes of an address by what is proven of it and of its key.
func TestRowsAndClasses(t *testing.T) {
	classes := []string{"private-or-clear", "private", "clear-or-private", "clear", "block"}
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		var r, u []string
		for _, c := range classes {
			at := w.bob // who is protected, and who is spoken to in clear
			if strings.HasPrefix(c, "clear") {
				at = w.mallory
			}
			r = append(r, hostRecords("key."+c+".example.", at, &w.bobKey)...)
			r = append(r, hostRecords("none."+c+".example.", w.plain, nil)...)
			r = append(r, hostRecords("strip."+c+".example.", w.plain, &w.bobKey)...)
			r = append(r, hostRecords("bogus."+c+".example.", w.plain, &w.bobKey)...)
			r = append(r, "alias."+c+".example. 60 IN CNAME key."+c+".example.", "out."+c+".example. 60 IN CNAME back."+c+".plain.")
			u = append(u, hostRecords("host."+c+".plain.", w.plain, &w.bobKey)...)
			u = append(u, "back."+c+".plain. 60 IN CNAME host."+c+".plain.")
		}
		return []zoneFile{{"example.", bindNSEC, r}, {"plain.", unsigned, u}}
	})
	w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost})
	var policy strings.Builder
	for _, c := range classes {
		fmt.Fprintf(&policy, "[[policy]]\nmatch = [\"*.%s.example\", \"*.%s.plain\"]\nclass = %q\n", c, c, c)
	}
	w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost, policy: policy.String()})
	w.liar.tell(func(q dns.Question, a *dns.Msg) *dns.Msg {
		switch name := strings.ToLower(q.Name); {
		case strings.HasPrefix(name, "strip.") && q.Qtype == typeKey:
			a.Answer = without(a.Answer, typeKey)
		case strings.HasPrefix(name, "bogus.") && q.Qtype != typeKey:
			spoil(a.Answer, q.Qtype)
		}
		return a
	})
	const yes, no, bogus, refused = "answered", "withheld", "bogus", "refused"
	rows := []struct {
		name string
		want [5]string // by class
	}{
		{"key.%s.example", [5]string{yes, yes, yes, yes, refused}},
		{"alias.%s.example", [5]string{yes, yes, yes, yes, refused}},
		{"none.%s.example", [5]string{yes, no, yes, yes, refused}},
		{"strip.%s.example", [5]string{no, no, yes, yes, refused}},
		{"host.%s.plain", [5]string{yes, no, yes, yes, refused}},
		{"out.%s.example", [5]string{yes, no, yes, yes, refused}},
		{"bogus.%s.example", [5]string{bogus, bogus, bogus, bogus, refused}},
	}
	for _, row := range rows {
		for i, c := range classes {
			a := ask(t, w.alice, fmt.Sprintf(row.name, c), dns.TypeA)
			code, _ := a.ede()
			got := "another rcode: " + dns.RcodeToString[a.Rcode]
			switch {
			case a.Rcode == dns.RcodeSuccess && len(a.addrs()) == 1:
				got = yes
			case a.Rcode == dns.RcodeRefused:
				got = refused
			case a.Rcode == dns.RcodeServerFailure && code == dns.ExtendedErrorCodeDNSBogus && strings.HasPrefix(row.name, "bogus"):
				got = bogus
			case a.Rcode == dns.RcodeServerFailure && len(a.addrs()) == 0:
				got = no
			}
			if got != row.want[i] {
				t.Errorf(row.name+": got %s, want %s\n%v", c, got, row.want[i], a.Msg)
			}
			proven := !strings.HasSuffix(row.name, "plain") && !strings.HasPrefix(row.name, "out") && got == yes
			if a.AuthenticatedData != proven {
				t.Errorf(row.name+": AD %v", c, a.AuthenticatedData)
			}
		}
	}
	transfer(t, w.alice, w.bob, w.bob.Addr4(), 1000)
	transfer(t, w.alice, w.mallory, w.mallory.Addr4(), 1000)
	transfer(t, w.alice, w.plain, w.plain.Addr4(), 1000)
	w.onlyProtected(w.alice, w.bob)
	for _, h := range []*lab.Host{w.mallory, w.plain} {
		if c := w.tap.BetweenHosts(w.alice, h); c[lab.ClassIKE].Packets+c.ESP() > 0 || c.Clear() == 0 {
			t.Errorf("tap between alice and %s: %v", h.Name, c)
		}
	}
}

// TestServices: addresses that come as hints of service records are judged as addresses are, by the key of their target; ANY brings none.
//
//tacit:attack A-46 a hint is answered once its target has proved its key, and left out where it does not; ANY carries no address; an AAAA that somebody synthesised is no address of the name
func TestServices(t *testing.T) {
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		hint := func(h *lab.Host) string { return fmt.Sprintf("ipv4hint=%s ipv6hint=%s", h.Addr4(), h.Addr6()) }
		r := append(hostRecords("bob.example.", w.bob, &w.bobKey), hostRecords("evil.example.", w.plain, &w.malKey)...)
		r = append(r, "svc.example. 60 IN HTTPS 1 bob.example. "+hint(w.bob), "some.example. 60 IN HTTPS 1 bob.example. "+hint(w.bob),
			"some.example. 60 IN HTTPS 2 evil.example. "+hint(w.plain), "lies.example. 60 IN HTTPS 1 evil.example. "+hint(w.plain),
			"_dns.example. 60 IN SVCB 1 bob.example. "+hint(w.bob), "self.example. 60 IN HTTPS 1 . "+hint(w.bob), "self.example. 60 IN "+w.bobKey.typ45,
			fmt.Sprintf("four.example. 60 IN A %s", w.bob.Addr4()), "four.example. 60 IN "+w.bobKey.typ45)
		return []zoneFile{{"example.", bindNSEC, r}}
	})
	w.run("")
	for _, tt := range []struct {
		name    string
		kind    uint16
		rcode   int
		records int
	}{
		{"svc.example", dns.TypeHTTPS, dns.RcodeSuccess, 1},
		{"self.example", dns.TypeHTTPS, dns.RcodeSuccess, 1},
		{"_dns.example", dns.TypeSVCB, dns.RcodeSuccess, 1},
		{"some.example", dns.TypeHTTPS, dns.RcodeSuccess, 1},
		{"lies.example", dns.TypeHTTPS, dns.RcodeServerFailure, 0},
	} {
		a := ask(t, w.alice, tt.name, tt.kind)
		n := 0
		for _, rr := range a.Answer {
			if rr.Header().Rrtype == tt.kind {
				n++
			}
		}
		if a.Rcode != tt.rcode || n != tt.records || strings.Contains(a.String(), w.plain.Addr4().String()+`"`) {
			t.Errorf("%s: got\n%v", tt.name, a.Msg)
		}
		if tt.records > 0 && w.handshakes() != 2 {
			t.Errorf("%s: after %d handshakes, want one for each family", tt.name, w.handshakes())
		}
	}
	for _, name := range []string{"bob.example", "evil.example"} {
		if a := ask(t, w.alice, name, dns.TypeANY); len(a.addrs()) > 0 {
			t.Errorf("ANY %s: got\n%v", name, a.Msg)
		}
	}
	w.liar.tell(about("four.example", dns.TypeAAAA, func(a *dns.Msg) *dns.Msg {
		a.Answer, a.Ns = []dns.RR{record(t, "four.example. 60 IN AAAA 64:ff9b::192.0.2.2")}, nil
		return a
	}))
	if a := ask(t, w.alice, "four.example", dns.TypeAAAA); len(a.addrs()) > 0 || a.AuthenticatedData {
		t.Errorf("synthesised: got\n%v", a.Msg)
	}
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 1000)
	}
	w.onlyProtected(w.alice, w.bob)
	w.sentNothing(w.plain)
}
