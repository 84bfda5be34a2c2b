package dnssec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// ownScenarios are files of deckard's dialect, kept in testdata: each is written from a world by TACIT_UPDATE=1.
var ownScenarios = []struct {
	file, title string
	clock       string // its line of the configuration
	ask         question
	tell        string // REPLY and MATCH of the wanted answer
	change      func(q question, m *dns.Msg)
}{
	{"val_deckard_secure", "an alias in a signed zone, all elements matched", "val-override-date: \"20261101120000\"", question{"alias.signed.test.", dns.TypeA},
		"MATCH flags rcode question answer authority additional\nREPLY QR RD RA AD DO NOERROR", nil},
	{"val_deckard_nodata", "NODATA of NSEC3, the clock as a timestamp", "val-override-timestamp: \"1793534400\"", question{"host.hashed.test.", dns.TypeIPSECKEY},
		"MATCH opcode qname flags rcode question answer\nREPLY QR RD RA AD DO NOERROR", nil},
	{"val_deckard_insecure", "an unsigned delegation", "val-override-timestamp: 1793534400", question{"www.plain.test.", dns.TypeA},
		"MATCH rcode flags question answer\nREPLY QR RD RA DO NOERROR", nil},
	{"val_deckard_bogus", "an address that is not the signed one", "val-override-date: 20261101120000", question{bob, dns.TypeA},
		"MATCH rcode flags question answer\nREPLY QR RD RA DO SERVFAIL", func(q question, m *dns.Msg) {
			if q == (question{bob, dns.TypeA}) {
				m.Answer[0] = rr(bob + " 600 IN A 203.0.113.1")
			}
		}},
	{"val_deckard_expired", "a clock after all signatures", "val-override-date: \"20271101120000\"", question{bob, dns.TypeA},
		"MATCH all\nREPLY QR RD RA DO SERVFAIL", nil},
}

// The files of deckard's dialect of our own, read and played like any other.
func TestOwnScenarios(t *testing.T) {
	dir := filepath.Join("testdata", "scenarios")
	if os.Getenv("TACIT_UPDATE") != "" {
		writeScenarios(t, dir)
	}
	for _, o := range ownScenarios {
		t.Run(o.file, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join(dir, o.file+".rpl"))
			if err != nil {
				t.Fatal(err)
			}
			s, err := readScenario(text)
			if err != nil {
				t.Fatal(err)
			}
			if err := playScenario(t, s); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// The reader refuses what is no scenario, and names the line; a scenario that is about something else says by which directive.
func TestScenarioRefused(t *testing.T) {
	const good = "trust-anchor: \". IN DS 1 8 2 00\"\n"
	for text, want := range map[string]string{
		"":                          "ends within",
		good:                        "ends within",
		good + "CONFIG_END\nSTEP 1": "line 3",
		good + "CONFIG_END\nWHAT":   "line 3",
		good + "CONFIG_END\nENTRY_BEGIN\nSECTION NOWHERE\n":                "line 4",
		good + "CONFIG_END\nENTRY_BEGIN\nSECTION QUESTION\na. IN NOTYPE\n": "line 5",
		good + "CONFIG_END\nENTRY_BEGIN\nSECTION ANSWER\na. IN A 1.2.3\n":  "line 5",
		good + "CONFIG_END\nADDRESS 192.0.2.1\n":                           "line 3",
		good + "val-override-date: soon\nCONFIG_END\n":                     "line 2",
		"AUTOTRUST_FILE\n":                          "line 1",
		good + "CONFIG_END\nFILE_BEGIN\nFILE_END\n": "line 3",
		good + "CONFIG_END\nENTRY_BEGIN\nREPLY QR\nENTRY_END\nRANGE_BEGIN x y\nRANGE_END": "line 6",
	} {
		if _, err := readScenario([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	for text, want := range map[string]string{
		"CONFIG_END\n": "trust-anchor: none",
		good + "harden-dnssec-stripped: no\nCONFIG_END\n":                        "harden-dnssec-stripped",
		good + "harden-algo-downgrade: yes\nCONFIG_END\n":                        "harden-algo-downgrade",
		good + "CONFIG_END\nSTEP 1 CHECK_OUT_QUERY\n":                            "STEP CHECK_OUT_QUERY",
		good + "CONFIG_END\nENTRY_BEGIN\nSECTION ANSWER\nRAW\n00ff\nENTRY_END\n": "RAW",
	} {
		s, err := readScenario([]byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		why := errDirective("")
		if err := playScenario(t, s); !errors.As(err, &why) || !strings.HasPrefix(string(why), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// recorder keeps what the upstream was asked and said, by question.
type recorder struct {
	w      *world
	change func(q question, m *dns.Msg)
	order  []question
	said   map[question]*dns.Msg
}

func (r *recorder) ask(t *testing.T, q question) {
	if r.said[q] != nil {
		return
	}
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.rrtype)
	got, err := r.w.Exchange(context.Background(), m)
	if err != nil {
		t.Fatal(err)
	}
	if r.change != nil {
		r.change(q, got)
	}
	r.order, r.said[q] = append(r.order, q), got
}

func writeScenarios(t *testing.T, dir string) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	w, a := hierarchy(t)
	for _, o := range ownScenarios {
		r := &recorder{w: w, change: o.change, said: map[question]*dns.Msg{}}
		for _, zone := range []string{".", "test.", "signed.test.", "hashed.test.", "plain.test."} {
			r.ask(t, question{zone, dns.TypeDNSKEY})
			r.ask(t, question{zone, dns.TypeDS})
		}
		r.ask(t, question{o.ask.name, dns.TypeDS})
		r.ask(t, o.ask)
		var b strings.Builder
		fmt.Fprintf(&b, "; made by TACIT_UPDATE=1 go test -run TestOwnScenarios\ndo-ip6: no\nstub-name: k.root-servers.net.\nstub-addr: 193.0.14.129\t# of the root\nquery-minimization: off\n%s\ntrust-anchor: \"%s\"\nCONFIG_END\n\nSCENARIO_BEGIN %s\n\nRANGE_BEGIN 0 100\n\tADDRESS 193.0.14.129\n\tADDRESS 2001:7fd::1\n",
			o.clock, a.zones["."].ds[0], o.title)
		for _, q := range r.order {
			m := r.said[q]
			fmt.Fprintf(&b, "\tENTRY_BEGIN\n\tMATCH opcode qtype qname\n\tADJUST copy_id\n\tREPLY QR AA %s\n\tSECTION QUESTION\n\t%s IN %s\n", dns.RcodeToString[m.Rcode], q.name, typeName(q.rrtype))
			section(&b, "ANSWER", m.Answer)
			section(&b, "AUTHORITY", m.Ns)
			b.WriteString("\tENTRY_END\n\n")
		}
		fmt.Fprintf(&b, "RANGE_END\n\nSTEP 1 QUERY\nENTRY_BEGIN\nREPLY RD DO\nSECTION QUESTION\n%s IN %s\nENTRY_END\n\nSTEP 2 CHECK_ANSWER\nENTRY_BEGIN\n%s\nSECTION QUESTION\n%s IN %s\n",
			o.ask.name, typeName(o.ask.rrtype), o.tell, o.ask.name, typeName(o.ask.rrtype))
		if !strings.Contains(o.tell, "SERVFAIL") {
			section(&b, "ANSWER", r.said[o.ask].Answer)
		}
		b.WriteString("ENTRY_END\n\nSCENARIO_END\n")
		if err := os.WriteFile(filepath.Join(dir, o.file+".rpl"), []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func section(b *strings.Builder, name string, rrs []dns.RR) {
	if len(rrs) == 0 {
		return
	}
	fmt.Fprintf(b, "\tSECTION %s\n", name)
	for _, r := range rrs {
		fmt.Fprintf(b, "\t%s\n", r)
	}
}
