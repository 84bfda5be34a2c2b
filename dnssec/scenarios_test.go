//go:debug rsa1024min=0
package dnssec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// errDirective is why a scenario is left out: a directive for which a validator behind a forwarder has no use.
type errDirective string

func (e errDirective) Error() string { return string(e) }

// unused are the options that make a scenario one about something else than validation behind a forwarder.
var unused = map[string]map[string]string{
	"harden-dnssec-stripped": {"no": "a validator that believes what was stripped of its signatures"},
	"harden-algo-downgrade":  {"yes": "RFC 6840, 5.11: one algorithm is enough; a validator must not insist on all"},
}

// differs are the elements of answers, by scenario and step, that are other than unbound's, and why. What is wrong there is logged.
var differs = map[string]map[string]string{
	"val_cnameqtype":      {"130 rcode": nameOfChain, "190 rcode": nameOfChain, "150 authority": moreProofs},
	"val_cnameqtype_qmin": {"130 rcode": nameOfChain, "190 rcode": nameOfChain, "150 authority": moreProofs},
	"val_dname_bogus":     {"221202 rcode": contradicted, "221214 rcode": contradicted, "900302 rcode": contradicted},
	"val_deleg_nons":      {"12 rcode": "RFC 8198, 5.2: what the question for DS brought proves that there is no such name"},

	"val_dnameqtype":            {"150 authority": moreProofs, "170 authority": moreProofs},
	"val_dnameqtype_qmin":       {"150 authority": moreProofs, "170 authority": moreProofs},
	"val_cnametocloser":         {"10 authority": noProofs},
	"val_cnametooptout":         {"10 authority": noProofs},
	"val_negcache_ds":           {"30 authority": "the referral that answers for DS here has no SOA, and none is added"},
	"val_negcache_ttl":          {"12 authority": negativeProofs, "21 authority": negativeProofs, "80 authority": negativeProofs},
	"val_negcache_ttl_prefetch": {"12 authority": negativeProofs, "21 authority": negativeProofs, "80 authority": negativeProofs},

	"val_cnametoposnowc":                {"10 EDE": missing, "12 EDE": missing},
	"val_ds_cname":                      {"10 EDE": missing, "12 EDE": missing},
	"val_nsec3_b1_nameerror_nowc":       {"10 EDE": missing, "12 EDE": missing},
	"val_nsec3_entnodata_optout_badopt": {"10 EDE": missing, "12 EDE": missing},
	"val_nx_overreach":                  {"10 EDE": missing, "12 EDE": missing},
	"val_faildnskey":                    {"10 EDE": unreached, "12 EDE": unreached},
	"val_failure_dnskey":                {"10 EDE": unreached, "30 EDE": unreached, "50 EDE": unreached},
	"autotrust_init_fail":               {"20 EDE": unreached, "22 EDE": unreached},
	"autotrust_probefail":               {"30 EDE": unreached, "50 EDE": unreached},
	"val_scrub_rr_length":               {"10 EDE": unreached},
	"autotrust_probefailsig":            {"30 EDE": noKey, "50 EDE": noKey},
}

const (
	contradicted   = "a CNAME that contradicts its DNAME is Bogus, whatever was asked and is cached (RFC 6672, 5.3.1)"
	nameOfChain    = "RFC 6604, 2: the rcode is that of the last name of the chain, and a question for the CNAME ends at the CNAME"
	moreProofs     = "RFC 4035, 3.1.3: what the upstream sent and is proven is passed on, be it needed or not"
	noProofs       = "proofs about zone cuts on the way to the answer are no part of it (RFC 4035, 3.1.3)"
	negativeProofs = "RFC 9077, 3: the TTL of NSEC is at most the negative one of the SOA"
	missing        = "12 instead of 6: RFC 8914, 4.13, the covering NSEC is missing, which says more than that the answer is bogus"
	unreached      = "22 instead of 9, 23 and 0: RFC 8914, 4.23, no authority has answered; whether the key is there, nobody said"
	noKey          = "9 instead of 6: RFC 8914, 4.10, no DNSKEY matches what is trusted"
)

// scenarioFiles are the scenarios to replay: all of $RPL_DIR, or those about validation of the folder beside the project.
func scenarioFiles(t *testing.T) []string {
	t.Helper()
	dir, patterns := os.Getenv("RPL_DIR"), []string{"*.rpl"}
	if dir == "" {
		dir, patterns = filepath.Join("..", "..", "shared", "rpl"), []string{"val_*.rpl", "black_*.rpl", "autotrust_*.rpl", "rrsig_*.rpl", "trust_*.rpl"}
	}
	if _, err := os.Stat(dir); err != nil && !filepath.IsAbs(dir) {
		dir = filepath.Join("..", dir) // as seen from the project's root
	}
	var files []string
	for _, p := range patterns {
		found, err := filepath.Glob(filepath.Join(dir, p))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	if len(files) == 0 {
		lab.Missing(t, "no scenarios in", dir, "(RPL_DIR)")
	}
	return files
}

// The scenarios of unbound's test-suite and of deckard's, where they are at hand.
func TestScenarios(t *testing.T) {
	for _, path := range scenarioFiles(t) {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".rpl"), func(t *testing.T) {
			defer func() {
				switch {
				case t.Failed():
					failed++
				case t.Skipped():
					skipped++
				default:
					passed++
				}
			}()
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			s, err := readScenario(text)
			if err != nil {
				t.Fatal(err)
			}
			err = playScenario(t, s)
			if why := errDirective(""); errors.As(err, &why) {
				t.Skip(why)
			} else if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// How the scenarios ended; TestMain prints it when there were any.
var passed, failed, skipped int

func TestMain(m *testing.M) {
	code := m.Run()
	if passed+failed+skipped > 0 {
		fmt.Printf("scenarios: %d passed, %d failed, %d skipped\n", passed, failed, skipped)
	}
	os.Exit(code)
}

// player plays one scenario.
type player struct {
	t       *testing.T
	s       *scenario
	up      *recursor
	v       *Validator
	elapsed time.Duration
	start   time.Time // of the clock of signatures
	asked   *entry
	got     Answer
	vars    map[string]int64 // ASSIGN
	roll    *Rollover
	saved   []byte // its state file
}

func playScenario(t *testing.T, s *scenario) error {
	if len(s.anchors) == 0 && len(s.autotrust) == 0 {
		return errDirective("trust-anchor: none, so nothing is validated")
	}
	if why := s.aboutOther(); why != "" {
		return errDirective(why)
	}
	anchors, err := s.trusted()
	if err != nil {
		return err
	}
	p := &player{t: t, s: s, start: s.now, vars: map[string]int64{}}
	if s.anytime {
		p.start = s.inception()
	} else if s.now.IsZero() {
		p.start = time.Now()
	}
	p.up = newRecursor(s, p.now)
	p.v = New(p.up, anchors, WithClock(p.now), WithSHA1(), WithFloor(time.Time{}), WithUnsigned(s.unsigned...))
	p.v.rules.legacy, p.v.rules.iterations, p.v.rules.modulus = verifyDSA, 2500, 0
	if len(s.autotrust) > 0 && s.now.IsZero() {
		p.start = time.Unix(0, 0) // TIME_PASSES brings it to where the signatures are
	}
	for _, lines := range s.autotrust {
		point, err := p.state(lines)
		if err != nil {
			return err
		}
		p.roll = p.v.Follow(point, func(text []byte) error { p.saved = text; return nil })
		p.saved = point.Text()
		p.v.rules.floor = time.Time{}
	}
	p.v.rules.asks = slices.Equal(s.options["aggressive-nsec"], []string{"no"})
	for _, a := range s.steps {
		p.up.at(a.n)
		if err := p.play(a); err != nil {
			return err
		}
	}
	return nil
}

// aboutOther names the directive that makes a scenario one about something else than validation behind a forwarder.
func (s *scenario) aboutOther() string {
	if s.foreign != "" {
		return s.foreign + ": octets that are no DNS message"
	}
	for _, v := range s.options["feature-list"] {
		if strings.HasPrefix(v, "policy") {
			return "feature-list: rules of a resolver, not of a validator"
		}
	}
	for name, values := range unused {
		for _, v := range s.options[name] {
			if why := values[v]; why != "" {
				return name + ": " + v + ": " + why
			}
		}
	}
	for _, r := range s.ranges {
		for _, e := range r.entries {
			if e.q.Qtype != dns.TypeDNSKEY || len(e.msg.Answer) > 0 || !soaOrDenial(e.msg.Ns) {
				continue
			}
			for _, a := range s.anchors {
				if dns.CanonicalName(strings.Fields(a)[0]) == e.q.Name && e.q.Name != "." && !within(e.owner(), e.q.Name) {
					return "trust-anchor: the zone above denies the key that is trusted; RFC 6840, C.1, the closest anchor decides"
				}
			}
		}
	}
	return ""
}

// trusted are the anchors, also those that no configuration of ours could have: digests of the wrong length fit no key.
func (s *scenario) trusted() (*Anchors, error) {
	a := &Anchors{zones: map[string]*anchor{}}
	for _, line := range s.anchors {
		rr, err := dns.NewRR(line)
		if err != nil {
			return nil, err
		}
		if ds, ok := rr.(*dns.DS); ok && a.add(rr) != nil {
			a.zones[dns.CanonicalName(ds.Hdr.Name)] = &anchor{ds: []*dns.DS{ds}}
		} else if !ok {
			if err := a.add(rr); err != nil {
				return nil, err
			}
		}
	}
	return a, nil
}

// owner is the name of the SOA of a denial.
func (e *entry) owner() string {
	for _, rr := range e.msg.Ns {
		if rr.Header().Rrtype == dns.TypeSOA {
			return dns.CanonicalName(rr.Header().Name)
		}
	}
	return e.q.Name
}

// referral says whether a wanted answer is a referral, as a cache gives to those who do not ask for recursion: there are none from a forwarder.
func (p *player) referral(e *entry) bool {
	return !p.asked.reply["RD"] && len(e.msg.Answer) == 0 && len(e.msg.Ns) > 0 && e.msg.Ns[0].Header().Rrtype == dns.TypeNS && !soaOrDenial(e.msg.Ns)
}

func (p *player) now() time.Time { return p.start.Add(p.elapsed) }

// play does one step.
func (p *player) play(a *act) (err error) {
	switch a.verb {
	case "QUERY":
		p.asked = a.e
		p.up.mu.Lock()
		_ = p.up.resolve(new(dns.Msg), question{a.e.q.Name, a.e.q.Qtype}, 0) // in the order of one who asks first and validates then
		p.up.mu.Unlock()
		p.got, err = p.v.Lookup(context.Background(), a.e.q.Name, a.e.q.Qtype)
	case "CHECK_ANSWER":
		p.check(a)
	case "TIME_PASSES":
		return p.timePasses(a)
	case "TRAFFIC", "NOTHING": // a forwarder's answers are there at once
	case "ASSIGN":
		return p.assign(a)
	case "CHECK_AUTOTRUST":
		return p.checkAutotrust(a)
	default:
		return errDirective("STEP " + a.verb + ": about the resolver's own queries")
	}
	return err
}

// check compares an answer with the one that must come.
func (p *player) check(a *act) {
	got, e, want := p.got, a.e, a.e.msg
	cd := p.asked.reply["CD"]
	rcode := got.Rcode
	if got.Status == Bogus && !cd || got.Status == Indeterminate && got.EDE != dns.ExtendedErrorCodeDNSSECIndeterminate && !cd {
		rcode = dns.RcodeServerFailure
	}
	if p.referral(e) {
		p.t.Logf("step %d: a referral out of the cache, left out", a.n)
		return
	}
	wrong := func(what string, got, want any) {
		say := p.t.Errorf
		if why := differs[strings.TrimPrefix(p.t.Name(), "TestScenarios/")][fmt.Sprint(a.n, " ", what)]; why != "" {
			say = func(format string, args ...any) { p.t.Logf("as it should: "+why+": "+format, args...) }
		}
		say("step %d, %s %s: %s %v, want %v: %v (%s)", a.n, p.got.Name, typeName(p.got.Type), what, got, want, p.got.Status, p.got.Why)
	}
	if (e.match["all"] || e.match["rcode"]) && rcode != want.Rcode {
		wrong("rcode", dns.RcodeToString[rcode], dns.RcodeToString[want.Rcode])
		return
	}
	if want := e.with["ede"]; want != "" && !cd {
		if ede := p.ede(); !sameEDE(ede, want) {
			wrong("EDE", ede, want)
		}
	}
	// RFC 6840, 5.8: AD goes to those only who set DO or AD.
	ad := got.Status == Secure && rcode != dns.RcodeServerFailure && (p.asked.reply["DO"] || p.asked.reply["AD"])
	if (e.match["all"] || e.match["flags"]) && ad != e.reply["AD"] && !cd { // what CD makes of AD, RFC 4035, 3.2.2 leaves open
		wrong("AD", ad, e.reply["AD"])
	}
	if (e.match["all"] || e.match["answer"]) && rcode != dns.RcodeServerFailure {
		if g, w := p.data(got.Msg.Answer, e), p.data(want.Answer, e); !slices.Equal(g, w) {
			wrong("answer", only(g, w), only(w, g))
		}
	}
	if (e.match["all"] || e.match["authority"]) && rcode != dns.RcodeServerFailure {
		if g, w := p.data(p.proofs(got.Msg.Ns), e), p.data(p.proofs(want.Ns), e); !slices.Equal(g, w) {
			wrong("authority", only(g, w), only(w, g))
		}
	}
}

// only are the texts of a that are not in b.
func only(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}

// proofs is what the client gets of an authority section: the SOA of a denial and, if it asked for them, the proofs.
func (p *player) proofs(rrs []dns.RR) (out []dns.RR) {
	for _, rr := range rrs {
		t := rr.Header().Rrtype
		if sig, ok := rr.(*dns.RRSIG); ok {
			t = sig.TypeCovered
		}
		if p.asked.reply["DO"] && (t == dns.TypeNSEC || t == dns.TypeNSEC3) || t == dns.TypeSOA {
			out = append(out, rr)
		}
	}
	return out
}

// ede is the extended error of the answer, "none" where it has none.
func (p *player) ede() string {
	if p.got.EDE == NoEDE {
		return "none"
	}
	return strconv.Itoa(int(p.got.EDE))
}

// sameEDE compares an extended error with the one of MATCH ede=: a number, "any" for whatever there is.
func sameEDE(got, want string) bool { return got == want || want == "any" && got != "none" }

// data are records as text in one order, without signatures where nobody asked for them. TTLs are compared where the scenario says so.
func (p *player) data(rrs []dns.RR, e *entry) (out []string) {
	for _, rr := range rrs {
		if rr.Header().Rrtype == dns.TypeRRSIG && !p.asked.reply["DO"] && p.asked.q.Qtype != dns.TypeRRSIG && p.asked.q.Qtype != dns.TypeANY {
			continue
		}
		rr = dns.Copy(rr)
		if !e.match["ttl"] {
			rr.Header().Ttl = 0
		}
		out = append(out, strings.ToLower(rr.String()))
	}
	slices.Sort(out)
	return out
}
