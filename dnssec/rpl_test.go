//go:debug rsa1024min=0
package dnssec

import (
	"bufio"
	"context"
	"crypto"
	//lint:ignore SA1019 the scenarios were signed with it
	"crypto/dsa"
	"crypto/sha1"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// The scenarios are made for an iterating resolver. Here the validator stands behind a forwarder that is fed from the canned answers of all servers; these
// are left out, because what they are about has no counterpart.
var rplSkip = map[string]string{
	"val_anchor_nx":             "two servers contradict each other, and only iterating tells which one is asked",
	"val_anchor_nx_nosig":       "two servers contradict each other, and only iterating tells which one is asked",
	"val_cnametooptout":         "servers are told apart by address",
	"val_dsnsec":                "servers are told apart by address",
	"val_cnameqtype":            "answers come out of a cache",
	"val_cnameqtype_qmin":       "answers come out of a cache",
	"val_dnameqtype":            "answers come out of a cache",
	"val_dnameqtype_qmin":       "answers come out of a cache",
	"val_dname_twice":           "answers come out of a cache",
	"val_dnametopos":            "answers come out of a cache",
	"val_negcache_nodata":       "answers are made from cached NSEC (RFC 8198)",
	"val_negcache_nxdomain":     "answers are made from cached NSEC (RFC 8198)",
	"val_negcache_ttl":          "answers are made from cached NSEC (RFC 8198)",
	"val_negcache_ttl_prefetch": "answers are made from cached NSEC (RFC 8198)",
	"val_negcache_nta":          "needs a negative trust anchor",
	"val_refer_unsignadd":       "a cached referral",
	"val_referd":                "a cached referral",
	"val_referglue":             "a cached referral",
	"val_faildnskey_ok":         "val-permissive-mode",
	"val_noadwhennodo":          "about the AD bit of the reply",
	"val_rrsig":                 "a question for RRSIG is not validated",
	"val_scrub_rr_length":       "RDATA whose length is wrong does not get through our parser",
	"val_ta_algo_missing":       "harden-algo-downgrade; RFC 6840, 5.11 says that one algorithm is enough",
}

// entry is one ENTRY of a scenario.
type entry struct {
	match, reply string
	q            dns.Question
	msg          *dns.Msg
	from, to     int // the steps for which it stands
	check        bool
	step         int
}

// scenario is one file.
type scenario struct {
	anchors []string
	now     time.Time
	canned  []entry
	steps   []entry
}

// reader is the state of reading one file.
type reader struct {
	s        *scenario
	e        *entry    // the one that is open
	sec      *[]dns.RR // the section that is open; nil in the question
	from, to int
	step     int
	check    bool
	inRange  bool
	config   bool
}

func readScenario(path string) (*scenario, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := &reader{s: &scenario{}, config: true}
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), ";")
		w := strings.Fields(line)
		switch {
		case len(w) == 0:
		case w[0] == "CONFIG_END":
			r.config = false
		case r.config:
			err = r.option(w, sc.Text())
		case r.e == nil:
			r.outside(w)
		default:
			err = r.inside(w, line, sc.Text())
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", sc.Text(), err)
		}
	}
	return r.s, sc.Err()
}

// option reads a line of the configuration.
func (r *reader) option(w []string, raw string) (err error) {
	switch w[0] {
	case "trust-anchor:":
		r.s.anchors = append(r.s.anchors, strings.Trim(strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(raw), w[0])), "\""))
	case "val-override-date:":
		if date := strings.Trim(w[1], "\""); date != "-1" { // that is no check of times
			r.s.now, err = time.Parse("20060102150405", date)
		}
	}
	return err
}

// outside reads a line between entries.
func (r *reader) outside(w []string) {
	switch w[0] {
	case "RANGE_BEGIN":
		r.inRange = true
		r.from, _ = strconv.Atoi(w[1])
		r.to, _ = strconv.Atoi(w[2])
	case "RANGE_END":
		r.inRange = false
	case "STEP":
		r.step, _ = strconv.Atoi(w[1])
		r.check = w[2] == "CHECK_ANSWER"
	case "ENTRY_BEGIN":
		r.e = &entry{msg: new(dns.Msg), from: r.from, to: r.to, check: r.check, step: r.step}
	}
}

// inside reads a line of an entry.
func (r *reader) inside(w []string, line, raw string) error {
	e := r.e
	switch {
	case w[0] == "MATCH":
		e.match = line
	case w[0] == "REPLY":
		e.reply = " " + strings.Join(w[1:], " ") + " "
		for _, f := range w[1:] {
			if rc, ok := dns.StringToRcode[f]; ok {
				e.msg.Rcode = rc
			}
		}
	case w[0] == "SECTION":
		r.sec = map[string]*[]dns.RR{"ANSWER": &e.msg.Answer, "AUTHORITY": &e.msg.Ns, "ADDITIONAL": &e.msg.Extra}[w[1]]
	case w[0] == "ENTRY_END":
		r.end()
	case w[0] == "ADJUST":
	case r.sec == nil:
		e.q = dns.Question{Name: dns.CanonicalName(w[0]), Qtype: dns.StringToType[w[len(w)-1]], Qclass: dns.ClassINET}
	default:
		rr, err := dns.NewRR(raw)
		if err != nil || rr == nil {
			return err
		}
		switch n := rr.(type) { // the text lists types in any order, the wire does not
		case *dns.NSEC:
			slices.Sort(n.TypeBitMap)
		case *dns.NSEC3:
			slices.Sort(n.TypeBitMap)
		}
		*r.sec = append(*r.sec, rr)
	}
	return nil
}

// end closes an entry.
func (r *reader) end() {
	for _, rr := range r.e.msg.Extra { // unbound takes a signature from whichever section it is in
		if rr.Header().Rrtype == dns.TypeRRSIG && r.inRange {
			r.e.msg.Answer = append(r.e.msg.Answer, rr)
		}
	}
	if r.inRange {
		r.s.canned = append(r.s.canned, *r.e)
	} else {
		r.s.steps = append(r.s.steps, *r.e)
	}
	r.e, r.sec = nil, nil
}

// inception is the time when the last signature begins.
func (s *scenario) inception() time.Time {
	var last uint32
	for _, e := range s.canned {
		for _, rr := range slices.Concat(e.msg.Answer, e.msg.Ns) {
			if sig, ok := rr.(*dns.RRSIG); ok {
				last = max(last, sig.Inception)
			}
		}
	}
	return time.Unix(int64(last), 0)
}

// rank says how well a canned answer fits a question; 0 is not at all.
func (e *entry) rank(q dns.Question, step int) int {
	if step < e.from || step > e.to || !strings.Contains(e.match, "qname") && !strings.Contains(e.match, "subdomain") {
		return 0
	}
	if e.q.Name != dns.CanonicalName(q.Name) || e.q.Qtype != q.Qtype && strings.Contains(e.match, "qtype") {
		return 0
	}
	answer, ns := group(e.msg.Answer), group(e.msg.Ns)
	switch {
	case answer.find(e.q.Name, q.Qtype) != nil:
		return 6
	case len(answer) > 0 && len(answer[0].rrs) > 0:
		return 5
	case e.msg.Rcode == dns.RcodeNameError || e.msg.Rcode == dns.RcodeYXDomain:
		return 4
	case e.msg.Rcode != 0:
		return 2
	}
	for _, set := range ns {
		if set.rrtype == dns.TypeSOA {
			return 4
		}
	}
	if ns.find(e.q.Name, dns.TypeNSEC) != nil || len(ns) == 0 || ns[0].rrtype != dns.TypeNS {
		return 3
	}
	return 1
}

// Exchange answers from the scenario as a recursive server would that iterated through it.
type rplServer struct {
	s    *scenario
	step *atomic.Int64
}

func (r rplServer) Exchange(_ context.Context, q *dns.Msg) (*dns.Msg, error) {
	var best *entry
	rank := 1
	qu := q.Question[0]
	for i := range r.s.canned {
		if n := r.s.canned[i].rank(qu, int(r.step.Load())); n > rank {
			best, rank = &r.s.canned[i], n
		}
	}
	m := new(dns.Msg)
	m.SetReply(q)
	if best != nil {
		m.Answer, m.Ns, m.Rcode = best.msg.Copy().Answer, best.msg.Copy().Ns, best.msg.Rcode
		return m, nil
	}
	if qu.Qtype == dns.TypeDS {
		name := dns.CanonicalName(qu.Name)
		for _, e := range r.s.canned { // from a referral
			ns := group(e.msg.Ns)
			if proves(ns, name) {
				m.Ns = e.msg.Copy().Ns
				return m, nil
			}
			if set := ns.find(name, dns.TypeNS); set == nil || name == "." {
				continue
			}
			if ds := ns.find(name, dns.TypeDS); ds != nil {
				m.Answer = append(m.Answer, ds.rrs...)
				for _, sig := range ds.sigs {
					m.Answer = append(m.Answer, sig)
				}
				return m, nil
			}
			for _, set := range ns {
				if set.rrtype == dns.TypeNSEC || set.rrtype == dns.TypeNSEC3 {
					m.Ns = e.msg.Copy().Ns
					return m, nil
				}
			}
		}
	}
	m.Rcode = dns.RcodeServerFailure
	return m, nil
}

// proves says whether there is the NSEC or NSEC3 of exactly name.
func proves(ns rrsets, name string) bool {
	if ns.find(name, dns.TypeNSEC) != nil {
		return true
	}
	for _, set := range ns {
		if len(set.rrs) == 0 {
			continue
		}
		if n, ok := set.rrs[0].(*dns.NSEC3); ok && strings.HasPrefix(strings.ToUpper(set.name), dns.HashName(name, n.Hash, n.Iterations, n.Salt)+".") {
			return true
		}
	}
	return false
}

// capture is a signer that keeps what it is asked to sign.
type capture struct{ data []byte }

func (c *capture) Public() crypto.PublicKey { return nil }
func (c *capture) Sign(_ io.Reader, data []byte, _ crypto.SignerOpts) ([]byte, error) {
	c.data = append([]byte{}, data...)
	return make([]byte, 64), nil
}

// verifyDSA is RFC 2536 for tests.
func verifyDSA(sig *dns.RRSIG, k *dns.DNSKEY, rrs []dns.RR) error {
	own := make([]dns.RR, len(rrs))
	for i, rr := range rrs {
		own[i] = dns.Copy(rr)
		if n := dns.CountLabel(rr.Header().Name); n > int(sig.Labels) && !isWildcard(rr.Header().Name) {
			own[i].Header().Name = wildcardOf(ancestor(dns.CanonicalName(rr.Header().Name), int(sig.Labels)))
		}
	}
	c := new(capture)
	s := &dns.RRSIG{Hdr: sig.Hdr, Algorithm: dns.ED25519, OrigTtl: sig.OrigTtl, Expiration: sig.Expiration, Inception: sig.Inception, KeyTag: sig.KeyTag, SignerName: dns.CanonicalName(sig.SignerName)}
	if err := s.Sign(c, own); err != nil {
		return err
	}
	if s.Labels != sig.Labels {
		return errors.New("labels")
	}
	c.data[2] = sig.Algorithm
	b, err := base64.StdEncoding.DecodeString(k.PublicKey)
	if err != nil || len(b) < 21 || len(b) != 21+3*(64+8*int(b[0])) {
		return errors.New("dsa key")
	}
	n := 64 + 8*int(b[0])
	at := func(from, n int) *big.Int { return new(big.Int).SetBytes(b[from : from+n]) }
	pub := dsa.PublicKey{Parameters: dsa.Parameters{Q: at(1, 20), P: at(21, n), G: at(21+n, n)}, Y: at(21+2*n, n)}
	raw, err := base64.StdEncoding.DecodeString(sig.Signature)
	if err != nil {
		return err
	}
	var rs struct{ R, S *big.Int }
	if len(raw) == 41 {
		rs.R, rs.S = new(big.Int).SetBytes(raw[1:21]), new(big.Int).SetBytes(raw[21:])
	} else if _, err := asn1.Unmarshal(raw, &rs); err != nil {
		return err
	}
	h := sha1.Sum(c.data)
	if !dsa.Verify(&pub, h[:], rs.R, rs.S) {
		return errors.New("dsa")
	}
	return nil
}

// The scenarios of unbound's test-suite, where they are at hand.
func TestScenarios(t *testing.T) {
	dir := os.Getenv("RPL_DIR")
	if dir == "" {
		dir = filepath.Join("..", "..", "shared", "rpl")
	}
	files, err := filepath.Glob(filepath.Join(dir, "val_*.rpl"))
	if err != nil || len(files) == 0 {
		if os.Getenv("CI") == "true" && os.Getenv("RPL_DIR") != "" {
			t.Fatalf("no scenarios in %s", dir)
		}
		t.Skipf("no scenarios in %s (RPL_DIR)", dir)
	}
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".rpl")
		t.Run(name, func(t *testing.T) {
			if why := rplSkip[name]; why != "" {
				t.Skip(why)
			}
			playScenario(t, path)
		})
	}
}

func playScenario(t *testing.T, path string) {
	s, err := readScenario(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.anchors) == 0 {
		t.Skip("no trust anchor")
	}
	anchors, err := ParseAnchors([]byte(strings.Join(s.anchors, "\n")), path)
	if err != nil {
		t.Skip(err)
	}
	var step atomic.Int64
	v := New(rplServer{s, &step}, anchors, WithClock(func() time.Time { return s.now }), WithSHA1())
	v.rules.legacy, v.rules.iterations = verifyDSA, 2500
	if s.now.IsZero() {
		s.now = s.inception()
	}
	var got Answer
	for _, e := range s.steps {
		step.Store(int64(e.step))
		if !e.check {
			if got, err = v.Lookup(context.Background(), e.q.Name, e.q.Qtype); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want := Insecure
		switch {
		case e.msg.Rcode == dns.RcodeServerFailure:
			want = Bogus
		case strings.Contains(e.reply, " AD "):
			want = Secure
		}
		if want == Insecure && got.Status == Indeterminate && got.EDE == dns.ExtendedErrorCodeDNSSECIndeterminate {
			continue // no anchor: unbound shows it as it shows insecure
		}
		if got.Status != want && !(want == Bogus && got.Status == Indeterminate) || want > Bogus && got.Rcode != e.msg.Rcode {
			t.Errorf("%s step %d, %s %s: got %v %s (%s), want %v %s", filepath.Base(path), e.step, got.Name, typeName(got.Type), got.Status, dns.RcodeToString[got.Rcode], got.Why, want, e.reply)
		}
	}
}
