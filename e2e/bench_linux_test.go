package e2e

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// benchmarks are the figures that scripts/bench takes from whole daemons (BENCHMARKS.md says what each is).
var benchmarks = []struct {
	name string
	run  func(*testing.T)
}{
	{"first-contact", benchFirstContact},
	{"first-contact-named", benchFirstContactNamed},
	{"cached-lookup", benchCachedLookup},
	{"setup", benchSetup},
	{"peer-memory", benchPeerMemory},
	{"rekey-flood", benchRekeyFlood},
	{"datagram", benchDatagrams},
	{"dns-cached", benchDNSCached},
	{"dns-validated", benchDNSValidated},
	{"dns-trigger", benchDNSTrigger},
	{"dns-memory", benchDNSMemory},
	{"pair-install", benchPairInstall},
	{"hold-release", benchHoldRelease},
	{"throughput-xfrm", benchThroughputXFRM},
}

// TestBench measures; it is no test of the project's, because a time depends on the machine. scripts/bench sets TACIT_BENCH
// to the file that the figures are added to. What is wrong in itself, like a third round trip, does fail.
func TestBench(t *testing.T) {
	if os.Getenv("TACIT_BENCH") == "" {
		t.Skip("a benchmark: scripts/bench runs it")
	}
	for _, b := range benchmarks {
		t.Run(b.name, b.run)
	}
}

// samples are measurements of one thing, in the unit of its figure.
type samples []float64

func (s *samples) add(d, unit time.Duration) { *s = append(*s, float64(d)/float64(unit)) }

// at is a quantile, 0 to 1.
func (s samples) at(q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

func (s samples) median() float64 { return s.at(0.5) }

// spread is what goes to the log beside a median.
func (s samples) spread() string {
	return fmt.Sprintf("n %d min %.3f p25 %.3f median %.3f p75 %.3f max %.3f", len(s), s.at(0), s.at(0.25), s.median(), s.at(0.75), s.at(1))
}

// figure adds one line to the figures: smaller is better, ratio is ours by the peer's.
func figure(t *testing.T, name, unit string, ours samples, peer string, theirs samples) {
	t.Helper()
	t.Logf("%s ours %s: %s", name, unit, ours.spread())
	t.Logf("%s %s %s: %s", name, peer, unit, theirs.spread())
	if os.Getenv("TACIT_BENCH") == "" {
		return // the benchmark was tried
	}
	f, err := os.OpenFile(os.Getenv("TACIT_BENCH"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%s ours %.3g %s, %s %.3g %s, ratio %.3f\n", name, ours.median(), unit, peer, theirs.median(), unit,
		ours.median()/theirs.median()); err != nil {
		t.Fatal(err)
	}
}

// asker is a client of a host's tacit: one UDP socket, one question at a time.
type asker struct {
	t    *testing.T
	conn net.Conn
	id   uint16
	buf  [4096]byte
}

func newAsker(t *testing.T, h *lab.Host) *asker {
	t.Helper()
	c, err := h.Dial(t.Context(), "udp", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &asker{t: t, conn: c}
}

// question is a query for an A record on the wire, as the C library sends it.
func question(t *testing.T, name string) []byte {
	t.Helper()
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), dns.TypeA)
	q.SetEdns0(1232, false)
	b, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ask sends a query and returns when it left, when its answer came, and the answer, which the next call overwrites.
func (a *asker) ask(q []byte) (from, to time.Time, answer []byte) {
	a.id++
	q[0], q[1] = byte(a.id>>8), byte(a.id)
	from = time.Now()
	if err := a.conn.SetDeadline(from.Add(5 * time.Second)); err != nil {
		a.t.Fatal(err)
	}
	if _, err := a.conn.Write(q); err != nil {
		a.t.Fatal(err)
	}
	for {
		n, err := a.conn.Read(a.buf[:])
		if err != nil {
			a.t.Fatal(err)
		}
		if n >= 12 && a.buf[0] == q[0] && a.buf[1] == q[1] {
			return from, time.Now(), a.buf[:n]
		}
	}
}

// address asks for a name and fails unless the answer is this one address.
func (a *asker) address(name, want string) (from, to time.Time) {
	a.t.Helper()
	from, to, b := a.ask(question(a.t, name))
	r := new(dns.Msg)
	if err := r.Unpack(b); err != nil {
		a.t.Fatal(err)
	}
	if len(r.Answer) != 1 || !strings.HasSuffix(r.Answer[0].String(), "\t"+want) {
		a.t.Fatalf("%s: got\n%v\nwant %s", name, r, want)
	}
	return from, to
}
