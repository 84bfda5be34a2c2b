package dnssec

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// entry is one ENTRY of a scenario: a canned answer, a question of the client, or the answer that it must get.
type entry struct {
	match  map[string]bool   // MATCH: what must fit, lower case
	with   map[string]string // MATCH: what has a value, as ede=6
	adjust map[string]bool
	reply  map[string]bool // REPLY: flags and the rcode
	q      dns.Question
	msg    *dns.Msg
	broken bool // a record that has no wire form
}

// serving is a RANGE: what the servers at some addresses say during some steps.
type serving struct {
	from, to int
	addrs    []string
	entries  []*entry
}

// act is a STEP.
type act struct {
	n    int
	verb string
	args []string
	e    *entry
	file []string // of CHECK_AUTOTRUST
}

// stub says who answers for a zone: a stub-zone or a forward-zone.
type stub struct {
	name    string
	addrs   []string
	forward bool
}

// scenario is one file, of unbound's dialect or deckard's.
type scenario struct {
	options   map[string][]string // by name without the colon, what is not below
	anchors   []string
	unsigned  []string
	autotrust map[string][]string // by zone: the lines of its state file
	stubs     []stub
	now       time.Time // zero: the real time; see anytime
	anytime   bool      // no check of times
	foreign   string    // a directive that is none of ours
	ranges    []*serving
	steps     []*act
}

// reader is the state of reading one file: at most one of the pointers is the place that lines go to.
type reader struct {
	s      *scenario
	config bool
	ranged *serving
	step   *act
	e      *entry
	sec    *[]dns.RR // the section that is open; nil in the question
	trust  string    // the zone of the state file that is being read
	file   bool
}

func readScenario(text []byte) (*scenario, error) {
	r := &reader{s: &scenario{options: map[string][]string{}, autotrust: map[string][]string{}}, config: true}
	for i, raw := range strings.Split(string(text), "\n") {
		line, _, _ := strings.Cut(raw, ";")
		w := strings.Fields(line)
		var err error
		switch {
		case r.trust != "" && (len(w) == 0 || w[0] != "AUTOTRUST_END"):
			r.s.autotrust[r.trust] = append(r.s.autotrust[r.trust], raw)
		case r.file && (len(w) == 0 || w[0] != "FILE_END"):
			r.step.file = append(r.step.file, raw)
		case len(w) == 0 || strings.HasPrefix(w[0], "#"):
		case r.e != nil:
			err = r.inside(w, raw)
		case r.config:
			err = r.option(w, raw)
		default:
			err = r.outside(w)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %.60q: %w", i+1, strings.TrimSpace(raw), err)
		}
	}
	if r.config || r.e != nil {
		return nil, fmt.Errorf("the file ends within its configuration or an entry")
	}
	return r.s, nil
}

// option reads a line of the configuration.
func (r *reader) option(w []string, raw string) (err error) {
	value := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(raw), w[0]))
	if !strings.HasPrefix(value, "\"") && !strings.HasPrefix(value, "'") {
		value, _, _ = strings.Cut(value, "#")
	} else if end := strings.IndexByte(value[1:], value[0]); end >= 0 {
		value = value[1 : 1+end]
	}
	value = strings.TrimSpace(value)
	switch w[0] {
	case "CONFIG_END":
		r.config = false
	case "AUTOTRUST_FILE":
		if len(w) < 2 {
			return fmt.Errorf("no zone")
		}
		r.trust = dns.CanonicalName(w[1])
	case "AUTOTRUST_END":
		r.trust = ""
	case "trust-anchor:":
		r.s.anchors = append(r.s.anchors, value)
	case "domain-insecure:":
		r.s.unsigned = append(r.s.unsigned, value)
	case "val-override-date:":
		if r.s.anytime = value == "-1"; !r.s.anytime && value != "" && value != "0" {
			r.s.now, err = time.Parse("20060102150405", value)
		}
	case "val-override-timestamp:":
		var at int64
		at, err = strconv.ParseInt(value, 10, 64)
		r.s.now = time.Unix(at, 0)
	case "stub-zone:", "forward-zone:":
		r.s.stubs = append(r.s.stubs, stub{name: ".", forward: w[0] == "forward-zone:"})
	case "name:":
		if n := len(r.s.stubs); n > 0 {
			r.s.stubs[n-1].name = dns.CanonicalName(value)
		}
	case "stub-addr:", "forward-addr:": // deckard's stub-addr has no stub-zone: it is the root's
		if len(r.s.stubs) == 0 {
			r.s.stubs = append(r.s.stubs, stub{name: "."})
		}
		last := &r.s.stubs[len(r.s.stubs)-1]
		last.addrs = append(last.addrs, canonicalAddr(value))
	default:
		name := strings.TrimSuffix(w[0], ":")
		r.s.options[name] = append(r.s.options[name], value)
	}
	return err
}

// outside reads a line between entries.
func (r *reader) outside(w []string) (err error) {
	switch w[0] {
	case "RANGE_BEGIN":
		if len(w) < 3 {
			return fmt.Errorf("no steps")
		}
		r.ranged = &serving{}
		if r.ranged.from, err = strconv.Atoi(w[1]); err == nil {
			r.ranged.to, err = strconv.Atoi(w[2])
		}
		r.s.ranges = append(r.s.ranges, r.ranged)
	case "ADDRESS":
		if r.ranged == nil || len(w) < 2 {
			return fmt.Errorf("an address without a range")
		}
		r.ranged.addrs = append(r.ranged.addrs, canonicalAddr(w[1]))
	case "RANGE_END":
		r.ranged = nil
	case "STEP":
		if len(w) < 3 {
			return fmt.Errorf("no verb")
		}
		r.step = &act{verb: w[2], args: w[3:]}
		r.step.n, err = strconv.Atoi(w[1])
		r.s.steps = append(r.s.steps, r.step)
	case "ENTRY_BEGIN":
		r.e = &entry{match: map[string]bool{}, with: map[string]string{}, adjust: map[string]bool{}, reply: map[string]bool{}, msg: new(dns.Msg)}
	case "FILE_BEGIN":
		if r.step == nil {
			return fmt.Errorf("a file without a step")
		}
		r.file = true
	case "FILE_END":
		r.file = false
	case "SCENARIO_BEGIN", "SCENARIO_END":
	default:
		return fmt.Errorf("what is this?")
	}
	return err
}

// inside reads a line of an entry.
func (r *reader) inside(w []string, raw string) error {
	e := r.e
	switch w[0] {
	case "MATCH":
		for _, word := range w[1:] {
			name, value, valued := strings.Cut(strings.ToLower(word), "=")
			e.match[name] = true
			if valued {
				e.with[name] = value
			}
		}
	case "ADJUST":
		for _, word := range w[1:] {
			e.adjust[strings.ToLower(word)] = true
		}
	case "REPLY":
		for _, word := range w[1:] {
			e.reply[strings.ToUpper(word)] = true
			if rc, ok := dns.StringToRcode[strings.ToUpper(word)]; ok {
				e.msg.Rcode = rc
			}
		}
	case "SECTION":
		return r.section(w)
	case "MANDATORY": // deckard: the question must come
	case "RAW", "FLAGS", "HEX_ANSWER_BEGIN", "HEX_EDNSDATA_BEGIN":
		r.s.foreign = w[0]
	case "ENTRY_END":
		r.end()
	default:
		return r.record(w, raw)
	}
	return nil
}

func (r *reader) section(w []string) error {
	if len(w) < 2 {
		return fmt.Errorf("no section")
	}
	e := r.e
	switch w[1] {
	case "QUESTION":
		r.sec = nil
	case "ANSWER":
		r.sec = &e.msg.Answer
	case "AUTHORITY":
		r.sec = &e.msg.Ns
	case "ADDITIONAL":
		r.sec = &e.msg.Extra
	default:
		return fmt.Errorf("no such section")
	}
	return nil
}

// record reads a question or a record.
func (r *reader) record(w []string, raw string) error {
	e := r.e
	if r.s.foreign != "" {
		return nil
	}
	if r.sec == nil {
		name, err := canonical(w[0])
		if err != nil {
			return err
		}
		t, ok := dns.StringToType[strings.ToUpper(w[len(w)-1])]
		if n, err := strconv.ParseUint(strings.TrimPrefix(strings.ToUpper(w[len(w)-1]), "TYPE"), 10, 16); !ok && err == nil {
			t, ok = uint16(n), true
		}
		if !ok || len(w) < 2 {
			return fmt.Errorf("no type")
		}
		e.q = dns.Question{Name: name, Qtype: t, Qclass: dns.ClassINET}
		return nil
	}
	rr, err := dns.NewRR(strings.TrimSpace(raw))
	if i := slices.Index(w, "\\#"); i > 0 && i+1 < len(w) { // RDATA that may be none of its type
		var data []byte
		if err == nil {
			data, err = RDATA(rr)
		}
		if err != nil || strconv.Itoa(len(data)) != w[i+1] {
			e.broken = true
			return nil
		}
	}
	if err != nil || rr == nil {
		return err
	}
	switch n := rr.(type) { // the text lists types in any order, the wire does not
	case *dns.NSEC:
		slices.Sort(n.TypeBitMap)
	case *dns.NSEC3:
		slices.Sort(n.TypeBitMap)
	case *dns.DNSKEY:
		n.PublicKey = decodable(n.PublicKey)
	case *dns.RRSIG:
		n.Signature = decodable(n.Signature)
	}
	*r.sec = append(*r.sec, rr)
	return nil
}

// decodable is base64 without what is too much of its padding.
func decodable(text string) string {
	for strings.HasSuffix(text, "=") && len(text)%4 != 0 {
		text = text[:len(text)-1]
	}
	return text
}

// end closes an entry.
func (r *reader) end() {
	switch {
	case r.ranged != nil:
		r.ranged.entries = append(r.ranged.entries, r.e)
	case r.step != nil:
		r.step.e = r.e
	}
	r.e, r.sec = nil, nil
}

// inception is the time when the last signature begins.
func (s *scenario) inception() time.Time {
	var last uint32
	for _, r := range s.ranges {
		for _, e := range r.entries {
			for _, rr := range slices.Concat(e.msg.Answer, e.msg.Ns) {
				if sig, ok := rr.(*dns.RRSIG); ok {
					last = max(last, sig.Inception)
				}
			}
		}
	}
	return time.Unix(int64(last), 0)
}

// Whatever the text, reading ends and nothing that is read is half there.
func FuzzReadScenario(f *testing.F) {
	files, _ := filepath.Glob(filepath.Join("testdata", "scenarios", "*.rpl"))
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte("trust-anchor: \"test. IN DS 1 8 2 00\"\nAUTOTRUST_FILE test\nx\nAUTOTRUST_END\nCONFIG_END\nRANGE_BEGIN 0 1\nADDRESS 1.2.3.4\nENTRY_BEGIN\n" +
		"MATCH opcode ede=6\nREPLY QR\nSECTION QUESTION\na. IN A\nSECTION ANSWER\na. IN A 192.0.2.1\nENTRY_END\nRANGE_END\nSTEP 1 CHECK_AUTOTRUST test\nFILE_BEGIN\nx\nFILE_END\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := readScenario(text)
		if (s == nil) != (err != nil) {
			t.Fatalf("got %v, %v", s, err)
		}
		if err != nil {
			return
		}
		for _, r := range s.ranges {
			for _, e := range r.entries {
				if e.msg == nil || e.match == nil {
					t.Errorf("half an entry: %+v", e)
				}
			}
		}
		s.inception()
	})
}
