package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tacit/lab"
)

// liar is an upstream that stands between tacit and the truth: it forwards every query and may change, drop or delay what
// comes back.
type liar struct {
	host  *lab.Host
	truth string // address and port

	mu  sync.Mutex // queries are answered by goroutines of their own while the test changes the lie
	lie func(q dns.Question, a *dns.Msg) *dns.Msg

	cookies bool // gives DNS cookies back, with a half of its own
}

// speakCookies has the liar answer with DNS cookies (RFC 7873, 5.2.3) from now on.
func (l *liar) speakCookies() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cookies = true
}

// cookie puts both halves into an answer to q.
func cookie(q, a *dns.Msg) {
	asked := q.IsEdns0()
	if asked == nil {
		return
	}
	for _, o := range asked.Option {
		if c, ok := o.(*dns.EDNS0_COOKIE); ok && len(c.Cookie) >= 16 {
			if a.IsEdns0() == nil {
				a.SetEdns0(1232, asked.Do())
			}
			a.IsEdns0().Option = append(a.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: c.Cookie[:16] + "0123456789abcdef"})
		}
	}
}

// startLiar serves at the host's IPv4 address, port 53.
func startLiar(t *testing.T, h *lab.Host, truth string) *liar {
	t.Helper()
	l := &liar{host: h, truth: truth}
	stop, err := h.ServeDNS(l, netip.AddrPortFrom(h.Addr4(), 53).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return l
}

// tell sets the lie: it gets the true answer and returns what leaves; nil is silence. No lie is the truth.
func (l *liar) tell(lie func(q dns.Question, a *dns.Msg) *dns.Msg) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lie = lie
}

// about makes a lie that concerns one name and type only.
func about(name string, kind uint16, lie func(a *dns.Msg) *dns.Msg) func(dns.Question, *dns.Msg) *dns.Msg {
	return func(q dns.Question, a *dns.Msg) *dns.Msg {
		if dns.CanonicalName(q.Name) != dns.CanonicalName(name) || q.Qtype != kind {
			return a
		}
		return lie(a)
	}
}

// ServeDNS answers one query. It asks the truth over TCP, so that nothing is truncated on that side.
func (l *liar) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := l.host.Dial(ctx, "tcp", l.truth)
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	conn := &dns.Conn{Conn: c}
	if err := conn.WriteMsg(q); err != nil {
		return
	}
	a, err := conn.ReadMsg()
	if err != nil {
		return
	}
	l.mu.Lock()
	lie, cookies := l.lie, l.cookies
	l.mu.Unlock()
	if lie != nil {
		if a = lie(q.Question[0], a); a == nil {
			return
		}
	}
	if cookies {
		cookie(q, a)
	}
	if w.RemoteAddr().Network() == "udp" {
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
		a.Truncate(size)
	}
	_ = w.WriteMsg(a)
}

// without removes the records of these types, and the signatures over them.
func without(rrs []dns.RR, kinds ...uint16) (left []dns.RR) {
	for _, rr := range rrs {
		kind := rr.Header().Rrtype
		if sig, ok := rr.(*dns.RRSIG); ok {
			kind = sig.TypeCovered
		}
		gone := false
		for _, k := range kinds {
			gone = gone || k == kind
		}
		if !gone {
			left = append(left, rr)
		}
	}
	return left
}

// record parses a record in zone-file form.
func record(t *testing.T, text string) dns.RR {
	t.Helper()
	rr, err := dns.NewRR(text)
	if err != nil || rr == nil {
		t.Fatalf("record %q: %v", text, err)
	}
	return rr
}

// reply is what a stub on a host got.
type reply struct {
	*dns.Msg
	took time.Duration
}

// ask asks the tacit on the host as a stub with EDNS and AD would. No answer within five seconds fails the test.
func ask(t *testing.T, h *lab.Host, name string, kind uint16) reply {
	t.Helper()
	r, err := query(t.Context(), h, name, kind)
	if err != nil {
		t.Fatalf("%s asks for %s %s: %v", h.Name, name, dns.Type(kind), err)
	}
	return r
}

// query is ask with an error, and with other flags where edit sets them.
func query(ctx context.Context, h *lab.Host, name string, kind uint16, edit ...func(*dns.Msg)) (reply, error) {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), kind)
	q.SetEdns0(1232, false)
	q.AuthenticatedData = true
	for _, e := range edit {
		e(q)
	}
	network := "udp"
	began := time.Now()
	for {
		c, err := h.Dial(ctx, network, "127.0.0.1:53")
		if err != nil {
			return reply{}, err
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		conn := &dns.Conn{Conn: c, UDPSize: 4096}
		err = conn.WriteMsg(q)
		var a *dns.Msg
		if err == nil {
			a, err = conn.ReadMsg()
		}
		c.Close()
		if err != nil {
			return reply{}, err
		}
		if a.Truncated && network == "udp" {
			network = "tcp"
			continue
		}
		return reply{a, time.Since(began)}, nil
	}
}

// ede is the first extended error; text is empty without one.
func (r reply) ede() (code uint16, text string) {
	if opt := r.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				return e.InfoCode, e.ExtraText
			}
		}
	}
	return 0, ""
}

// addrs are the addresses in the answer.
func (r reply) addrs() (as []netip.Addr) {
	for _, rr := range r.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			a, _ := netip.AddrFromSlice(rr.A.To4())
			as = append(as, a)
		case *dns.AAAA:
			a, _ := netip.AddrFromSlice(rr.AAAA)
			as = append(as, a)
		}
	}
	return as
}

// hold is the default of dns.hold, and slack what a busy machine may add to it.
const (
	hold  = 2 * time.Second
	slack = time.Second
)

// mustWithhold fails the test unless the name is answered SERVFAIL with an extended error, within the hold, without any
// address, in both families.
func mustWithhold(t *testing.T, h *lab.Host, name string) (a reply) {
	t.Helper()
	for _, kind := range []uint16{dns.TypeAAAA, dns.TypeA} {
		a = ask(t, h, name, kind)
		code, text := a.ede()
		t.Logf("%s %s: %s in %v, EDE %d %q", name, dns.Type(kind), dns.RcodeToString[a.Rcode], a.took.Round(time.Millisecond), code, text)
		if a.Rcode != dns.RcodeServerFailure || len(a.addrs()) > 0 || a.AuthenticatedData {
			t.Errorf("%s %s: got\n%v\nwant SERVFAIL", name, dns.Type(kind), a.Msg)
		}
		if text == "" {
			t.Errorf("%s %s: no extended error says why", name, dns.Type(kind))
		}
		if a.took > hold+slack {
			t.Errorf("%s %s: answered after %v, want within %v", name, dns.Type(kind), a.took, hold)
		}
	}
	return a
}

// mustAnswer fails the test unless the name is answered with these addresses.
func mustAnswer(t *testing.T, h *lab.Host, name string, want ...netip.Addr) (a reply) {
	t.Helper()
	for _, w := range want {
		kind := dns.TypeA
		if w.Is6() {
			kind = dns.TypeAAAA
		}
		a = ask(t, h, name, kind)
		if got := a.addrs(); a.Rcode != dns.RcodeSuccess || len(got) != 1 || got[0] != w {
			t.Fatalf("%s %s: got\n%v\nwant %v", name, dns.Type(kind), a.Msg, w)
		}
	}
	return a
}

// elements are what stands in the sets of our table that carry addresses: verdicts, and the counters of dropped packets.
func elements(t *testing.T, h *lab.Host) (list []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out, err := h.Command(ctx, "nft", "-j", "list", "table", "inet", "tacit").Output()
	if err != nil {
		if strings.Contains(err.Error(), "No such file") {
			return nil
		}
		t.Fatal(err)
	}
	var doc struct {
		Nftables []struct {
			Set *struct {
				Name string            `json:"name"`
				Elem []json.RawMessage `json:"elem"`
			} `json:"set"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		t.Fatal(err)
	}
	for _, o := range doc.Nftables {
		if o.Set == nil || !strings.HasSuffix(o.Set.Name, "4") && !strings.HasSuffix(o.Set.Name, "6") {
			continue // the constant ones: ports
		}
		for _, e := range o.Set.Elem {
			list = append(list, o.Set.Name+" "+string(e))
		}
	}
	return list
}

// wantNoElements fails the test if anything of ours stands on an address.
func wantNoElements(t *testing.T, hosts ...*lab.Host) {
	t.Helper()
	for _, h := range hosts {
		if list := elements(t, h); len(list) > 0 {
			t.Errorf("on %s stand %v", h.Name, list)
		}
	}
}

// watchElements records every element that is added to a set on the host from now on, however short it stands; the
// function returns what was added so far.
func watchElements(t *testing.T, h *lab.Host) (added func() []string) {
	t.Helper()
	start(t, h, "nft", "monitor", "new", "elements")
	return func() (list []string) {
		for line := range strings.Lines(logOf(t, h, "nft")) {
			constant := strings.Contains(line, "exempt_") || strings.Contains(line, "clear_ports")
			latch := strings.Contains(line, "tacit latch") // steers what comes out of an SA, and so enforces nothing
			if strings.HasPrefix(line, "add element") && !constant && !latch {
				list = append(list, strings.TrimSpace(line))
			}
		}
		return list
	}
}

// peerStatus is a line of `tacit status --json`.
type peerStatus struct {
	Address   netip.Addr     `json:"address"`
	Outer     netip.AddrPort `json:"outer"`
	Names     []string       `json:"names"`
	State     string         `json:"state"`
	Assurance string         `json:"assurance"`
	KeyID     string         `json:"key_id"`
	BytesIn   uint64         `json:"bytes_in"`
	BytesOut  uint64         `json:"bytes_out"`
	Why       string         `json:"why"`
}

// statusPeers asks the daemon for its peers.
func (d *tacit) statusPeers() []peerStatus {
	d.t.Helper()
	out, err := d.run("status", "--json")
	if err != nil {
		d.t.Fatalf("status on %s: %v", d.host.Name, err)
	}
	var s struct {
		Peers []peerStatus `json:"peers"`
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		d.t.Fatal(err)
	}
	return s.Peers
}

// peers are those at an address of the host.
func (d *tacit) peers(at *lab.Host) (found []peerStatus) {
	d.t.Helper()
	for _, p := range d.statusPeers() {
		for _, a := range at.Addrs() {
			if a.Addr() == p.Address {
				found = append(found, p)
			}
		}
	}
	return found
}

// withGateway is the IPSECKEY data of the identity with a gateway (RFC 4025, 2.3, type 1).
func (id identity) withGateway(gw netip.Addr) string {
	f := strings.Fields(id.typ45) // TYPE45 \# 35 0a0004...
	raw := f[3]
	a := gw.As4()
	raw = raw[:2] + "01" + raw[4:6] + fmt.Sprintf("%x", a[:]) + raw[6:]
	return fmt.Sprintf(`TYPE45 \# %d %s`, len(raw)/2, raw)
}

// containsNoPeer reports whether a status in JSON has no peers.
func containsNoPeer(status string) bool {
	var s struct {
		Peers []peerStatus `json:"peers"`
	}
	return json.Unmarshal([]byte(status), &s) == nil && len(s.Peers) == 0
}
