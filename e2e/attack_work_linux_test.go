package e2e

import (
	"crypto"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// trap is a hostile zone: everything in it has the signatures that it needs to be looked at, and costs as much as one can make it cost.
type trap struct {
	apex string
	key  *dns.DNSKEY
	priv crypto.Signer
	keys []dns.RR // the real one, and others of its tag
	sig  *dns.RRSIG
	many []dns.RR    // a thousand keys of one name, signed
	bad  [100]string // signatures of nothing
}

// newTrap makes the zone: RSA with 3072 bits, since large keys take long to verify.
func newTrap(t *testing.T, apex string) *trap {
	t.Helper()
	z := &trap{apex: apex, key: &dns.DNSKEY{Hdr: dns.RR_Header{Name: apex, Rrtype: dns.TypeDNSKEY, Class: dns.ClassINET, Ttl: 3600}, Flags: 257, Protocol: 3, Algorithm: dns.RSASHA256}}
	private, err := z.key.Generate(3072)
	if err != nil {
		t.Fatal(err)
	}
	z.priv = private.(crypto.Signer)
	z.keys = []dns.RR{z.key}
	for len(z.keys) < 30 {
		z.keys = append(z.keys, z.twin(t))
	}
	z.sig = z.sign(t, z.keys)
	for i := range z.bad {
		b := make([]byte, 384)
		_, _ = rand.Read(b[1:])
		z.bad[i] = base64.StdEncoding.EncodeToString(b)
	}
	for i := range 1000 {
		z.many = append(z.many, record(t, fmt.Sprintf("many.%s 60 IN IPSECKEY 10 0 4 . %s", apex, base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%032d", i)))))
	}
	z.many = append(z.many, z.sign(t, z.many))
	return z
}

// sign is a good signature.
func (z *trap) sign(t *testing.T, set []dns.RR) *dns.RRSIG {
	sig := &dns.RRSIG{Hdr: dns.RR_Header{Ttl: set[0].Header().Ttl}, Algorithm: z.key.Algorithm, KeyTag: z.key.KeyTag(), SignerName: z.apex,
		Inception: uint32(time.Now().Add(-time.Hour).Unix()), Expiration: uint32(time.Now().Add(24 * time.Hour).Unix())}
	if err := sig.Sign(z.priv, set); err != nil {
		t.Error(err)
	}
	return sig
}

// twin is a key that nobody has, of the same size and tag as the real one: the sum that the tag is (RFC 4034, B) is made to come out.
func (z *trap) twin(t *testing.T) *dns.DNSKEY {
	t.Helper()
	k := dns.Copy(z.key).(*dns.DNSKEY)
	b, err := base64.StdEncoding.DecodeString(k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = rand.Read(b[8 : len(b)-1])
	want := z.key.KeyTag()
	for v := range 1 << 16 {
		binary.BigEndian.PutUint16(b[16:], uint16(v))
		var sum uint32
		for i, c := range append([]byte{1, 1, 3, z.key.Algorithm}, b...) {
			sum += uint32(c) << (8 * (1 - i%2))
		}
		if uint16(sum+sum>>16) == want {
			break
		}
	}
	k.PublicKey = base64.StdEncoding.EncodeToString(b)
	if k.KeyTag() != want {
		t.Fatalf("tag %d, want %d", k.KeyTag(), want)
	}
	return k
}

// heap puts a hundred signatures over the records of a set, of which none is good.
func (z *trap) heap(set ...dns.RR) []dns.RR {
	h := set[0].Header()
	for _, bad := range z.bad {
		sig := *z.sig
		sig.Hdr.Name, sig.Hdr.Ttl, sig.TypeCovered, sig.Labels, sig.OrigTtl, sig.Signature = h.Name, h.Ttl, h.Rrtype, uint8(dns.CountLabel(h.Name)), h.Ttl, bad
		set = append(set, &sig)
	}
	return set
}

// answer is what the zone's server says: KeyTrap for addresses, a chain of aliases of which each is one, or a thousand keys.
func (z *trap) answer(t *testing.T, q dns.Question, a *dns.Msg) *dns.Msg {
	a.Answer, a.Ns, a.Rcode = nil, nil, dns.RcodeSuccess
	name := strings.ToLower(q.Name)
	kind, number, _ := strings.Cut(strings.TrimSuffix(name, "."+z.apex), "-")
	switch {
	case name == z.apex && q.Qtype == dns.TypeDNSKEY:
		a.Answer = append(append(a.Answer, z.keys...), z.sig)
	case kind == "alias":
		n, _ := strconv.Atoi(number)
		a.Answer = z.heap(record(t, fmt.Sprintf("%s 60 IN CNAME alias-%d.%s", name, n+1, z.apex)))
	case kind == "many" && q.Qtype == typeKey:
		a.Answer = z.many
	case q.Qtype == dns.TypeA:
		a.Answer = z.heap(record(t, name+" 60 IN A 192.0.2.66"))
	case q.Qtype == dns.TypeDS || q.Qtype == dns.TypeAAAA || q.Qtype == typeKey:
		// Hashes: NSEC3 with as many iterations as are computed, for names of many labels.
		var set []dns.RR
		for i := range 8 {
			n := record(t, fmt.Sprintf("%032d.%s 60 IN NSEC3 1 0 100 %02x %032d A RRSIG", i, z.apex, i, i+1))
			set = append(set, z.heap(n)[:12]...)
		}
		a.Ns = set
	}
	return a
}

// processor is the time that a process has had of the processors.
func processor(t *testing.T, pid int) time.Duration {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|2, &now); err != nil { // as clock_getcpuclockid(3) names the clock
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}

// TestTraps is the outcome of A-31: names that cost all that their owner can make them cost are refused, each with bounded work, and others are served
// meanwhile. (How much slower the others get is measured in dnssec and by scripts/bench.)
//
//tacit:attack A-31 refused, each with bounded work, and others are served meanwhile
func TestTraps(t *testing.T) {
	var z *trap
	w := newAttackWorld(t, func(w *attackWorld) []zoneFile {
		z = newTrap(t, "trap.")
		r := hostRecords("bob.example.", w.bob, &w.bobKey)
		for i := range 60 {
			r = append(r, fmt.Sprintf("n%d.example. 60 IN A 192.0.2.3", i))
		}
		return []zoneFile{{"example.", bindNSEC, r}, {"trap.", elsewhere, []string{"trap. 3600 IN NS ns.trap.", "ns.trap. 3600 IN A 192.0.2.66", z.key.ToDS(dns.SHA256).String()}}}
	})
	w.liar.tell(func(q dns.Question, a *dns.Msg) *dns.Msg {
		if name := strings.ToLower(q.Name); name == "trap." && q.Qtype != dns.TypeDS || strings.HasSuffix(name, ".trap.") {
			return z.answer(t, q, a)
		}
		return a
	})
	w.run("")
	r := ask(t, w.alice, "key-0.trap", dns.TypeA) // the trap is one
	code, text := r.ede()
	t.Logf("key-0.trap: %s in %v, EDE %d %q", dns.RcodeToString[r.Rcode], r.took, code, text)
	if code != dns.ExtendedErrorCodeDNSBogus || !strings.Contains(text, "signature") {
		t.Errorf("key-0.trap: EDE %d %q, want 6 for its signatures", code, text)
	}

	const traps = 4 // at once
	used := processor(t, w.aliceTac.cmd.Process.Pid)
	var asked atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	end := sync.OnceFunc(func() { close(stop); wg.Wait() })
	defer end()
	for worker := range traps {
		wg.Go(func() {
			for i := worker; ; i += traps {
				select {
				case <-stop:
					return
				default:
				}
				name := []string{"key-%d.trap", "alias-%d.trap", strings.Repeat("x.", 100) + "y%d.trap", "many.trap"}[i/traps%4]
				if strings.Contains(name, "%") {
					name = fmt.Sprintf(name, 100*i)
				}
				asked.Add(1)
				r, err := query(t.Context(), w.alice, name, dns.TypeA)
				if err != nil || r.Rcode != dns.RcodeServerFailure || r.took > hold+slack {
					t.Errorf("%.30s: %v after %v, error %v, want SERVFAIL within the hold", name, r.Msg, r.took, err)
				}
			}
		})
	}
	var longest time.Duration
	for i := range 60 {
		a := mustAnswer(t, w.alice, fmt.Sprintf("n%d.example", i), netip.MustParseAddr("192.0.2.3"))
		longest = max(longest, a.took)
	}
	first := mustAnswer(t, w.alice, "bob.example", both(w.bob)...)
	transfer(t, w.alice, w.bob, w.bob.Addr4(), 100_000)
	time.Sleep(time.Second)
	end()
	each := (processor(t, w.aliceTac.cmd.Process.Pid) - used) / time.Duration(asked.Load())
	t.Logf("%d traps, %v of processor each; the longest of 60 other lookups %v; bob.example with its handshake %v", asked.Load(), each.Round(100*time.Microsecond),
		longest.Round(100*time.Microsecond), first.took.Round(100*time.Microsecond))
	if longest > hold/2 || first.took > hold {
		t.Errorf("others waited for the traps: %v, %v", longest, first.took)
	}
	if each > 100*time.Millisecond {
		t.Errorf("a trap costs %v", each)
	}
	w.onlyProtected(w.alice, w.bob)
}
