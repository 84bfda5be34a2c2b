package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"tacit/lab"
)

// startLocalUnbound runs unbound at 127.0.0.1:5335 of a host, which asks the server and validates, or does not.
func (w *attackWorld) startLocalUnbound(h *lab.Host, server string, validates bool) {
	w.t.Helper()
	modules := map[bool]string{true: "validator iterator", false: "iterator"}[validates]
	put(w.t, h, "/run/root.key", w.anchor)
	put(w.t, h, "/run/local.conf", fmt.Sprintf(`server:
	interface: 127.0.0.1@5335
	username: ""
	chroot: ""
	directory: "/run"
	pidfile: "/run/local.pid"
	use-syslog: no
	num-threads: 1
	module-config: %q
	trust-anchor-file: "/run/root.key"
	ede: yes
	val-bogus-ttl: 1
	cache-max-negative-ttl: 1
	do-not-query-localhost: no
	local-zone: "test." nodefault
remote-control:
	control-enable: no
forward-zone:
	name: "."
	forward-addr: %s
`, modules, server))
	c := start(w.t, h, "unbound", "-d", "-c", "/run/local.conf")
	if err := h.AwaitTCP(w.t.Context(), c, "127.0.0.1:5335"); err != nil {
		w.t.Fatal(err)
	}
}

// TestTrustAD: with dns.trust-ad a validating unbound on the same host judges, and tacit says so; the main job is done by its word, and what it refuses is
// refused. Nobody else's AD bit counts, with the opt-in or without.
func TestTrustAD(t *testing.T) {
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		r := append(hostRecords("bob.example.", w.bob, &w.bobKey), hostRecords("keyless.example.", w.plain, nil)...)
		r = append(append(r, hostRecords("moved.example.", w.bob, &w.bobKey)...), hostRecords("stripped.example.", w.bob, &w.bobKey)...)
		r = append(r, "alias.example. 60 IN CNAME bob.three.", "text.example. 60 IN TXT true")
		return []zoneFile{{"example.", bindNSEC, r}, {"three.", bindNSEC3, hostRecords("bob.three.", w.bob, &w.bobKey)}, {"plain.", unsigned, hostRecords("host.plain.", w.plain, nil)}}
	})
	w.startLocalUnbound(w.alice, w.upstreamOfTheHost, true)
	w.bobTac = startTacit(t, w.bob, w.anchor, options{name: "bob.example", identity: w.bobKey.pem, upstream: w.upstreamOfTheHost})
	w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: "127.0.0.1:5335", dns: "trust-ad = true"})
	w.liar.tell(func(q dns.Question, a *dns.Msg) *dns.Msg {
		a.AuthenticatedData = true // his own, which counts for unbound as little as for us
		for _, rr := range a.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				if strings.EqualFold(q.Name, "moved.example.") {
					rr.A = w.mallory.Addr4().AsSlice()
				}
			case *dns.TXT:
				rr.Txt[0] = "lie"
			}
		}
		if strings.EqualFold(q.Name, "stripped.example.") && q.Qtype == typeKey {
			a.Answer = nil
		}
		return a
	})

	mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	mustAnswer(t, w.alice, "alias.example", both(w.bob)...)
	for _, addr := range both(w.bob) {
		transfer(t, w.alice, w.bob, addr, 100_000)
	}
	w.onlyProtected(w.alice, w.bob)
	mustAnswer(t, w.alice, "keyless.example", both(w.plain)...)
	mustAnswer(t, w.alice, "host.plain", both(w.plain)...)
	if r := ask(t, w.alice, "none.example", dns.TypeA); r.Rcode != dns.RcodeNameError || !r.AuthenticatedData {
		t.Errorf("none.example: %v", r.Msg)
	}
	mustWithhold(t, w.alice, "stripped.example")
	bogus := ask(t, w.alice, "moved.example", dns.TypeA)
	if code, text := bogus.ede(); bogus.Rcode != dns.RcodeServerFailure || code < dns.ExtendedErrorCodeDNSBogus || code > dns.ExtendedErrorCodeNSECMissing || !strings.Contains(text, "refuses it") {
		t.Errorf("moved.example: EDE %d %q\n%v", code, text, bogus.Msg)
	}
	// CD: what is bogus is shown to those who want it, but no address of a proven key.
	cd := func(q *dns.Msg) { q.CheckingDisabled = true }
	if r, err := query(t.Context(), w.alice, "text.example", dns.TypeTXT, cd); err != nil || len(r.Answer) != 1 || r.AuthenticatedData {
		t.Errorf("text.example, with CD: %v, %v", r.Msg, err)
	}
	if r, err := query(t.Context(), w.alice, "moved.example", dns.TypeA, cd); err != nil || len(r.addrs()) > 0 {
		t.Errorf("moved.example, with CD: %v, %v", r.Msg, err)
	}
	w.reportsDelegation()

	// The liar himself as the upstream, without the opt-in: his AD bit is nothing. With it: refused, with the place.
	w.aliceTac.stop()
	w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: w.upstreamOfTheHost})
	mustWithhold(t, w.alice, "stripped.example")
	if r := ask(t, w.alice, "host.plain", dns.TypeA); r.AuthenticatedData {
		t.Errorf("host.plain: %v", r.Msg)
	}
	w.aliceTac.stop()
	put(t, w.alice, "/run/tacit.toml", fmt.Sprintf("[dns]\nupstream = [%q]\ntrust-ad = true\n", w.upstreamOfTheHost))
	if out, err := w.aliceTac.run("check-config"); err == nil || !strings.Contains(err.Error(), "/run/tacit.toml:3:1: dns.trust-ad: ") {
		t.Errorf("check-config: %v\n%s", err, out)
	}
}

// reportsDelegation fails the test unless status and lookup say whose word it is.
func (w *attackWorld) reportsDelegation() {
	w.t.Helper()
	const want = "delegated to 127.0.0.1:5335 (trust-ad)"
	for _, args := range [][]string{{"status"}, {"status", "--json"}, {"lookup", "bob.example"}, {"lookup", "--json", "bob.example"}} {
		if out, err := w.aliceTac.run(args...); err != nil || !strings.Contains(out, want) {
			w.t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	f := w.aliceTac.lookup("alias.example")
	for _, q := range f.Queries {
		if q.Status != "secure" {
			w.t.Errorf("%s %s: %s (%s)", q.Name, q.Type, q.Status, q.Why)
		}
		for _, l := range q.Links {
			if l.Proof != "AD" || l.Algorithm != "" || l.Zone != "" {
				w.t.Errorf("link %+v claims what nobody here has seen", l)
			}
		}
	}
	if len(f.Addresses) != 2 || f.Addresses[0].Decision != "protect" {
		w.t.Errorf("lookup: %+v", f)
	}
}

// TestTrustADInNobody: a resolver on the host that does not validate is found out, and nothing is believed on its word: not that a name has no key, either.
func TestTrustADInNobody(t *testing.T) {
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		return []zoneFile{{"example.", bindNSEC, append(hostRecords("bob.example.", w.bob, &w.bobKey), hostRecords("keyless.example.", w.plain, nil)...)}}
	})
	w.startLocalUnbound(w.alice, w.upstreamOfTheHost, false)
	w.aliceTac = startTacit(t, w.alice, w.anchor, options{upstream: "127.0.0.1:5335", dns: "trust-ad = true"})
	for _, name := range []string{"bob.example", "keyless.example"} {
		if code, text := mustWithhold(t, w.alice, name).ede(); code != dns.ExtendedErrorCodeDNSSECIndeterminate || !strings.Contains(text, "does not validate") {
			t.Errorf("%s: EDE %d %q", name, code, text)
		}
	}
}
