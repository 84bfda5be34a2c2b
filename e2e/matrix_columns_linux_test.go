package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"tacit/ike"
	"tacit/lab"
)

// matrixColumn is something that two hosts do. It finds the SAs of both families up, and leaves them so.
type matrixColumn struct {
	name string
	from depth // of a row, for which it is in a short run
	run  func(*matrixRun, *testing.T)
}

// matrixGroup is what one start of tacit serves.
type matrixGroup struct {
	name    string
	by      string // only in rows where this end initiates; "": both
	top     string // tacit's configuration; the durations are doubled under a slow kernel
	before  func(*matrixRun, *testing.T)
	raw     bool // the SAs are not made before
	columns []matrixColumn
}

var matrixGroups = []matrixGroup{
	{name: "plain", columns: []matrixColumn{
		{"traffic", brief, (*matrixRun).traffic},
		{"child rekey by peer", brief, (*matrixRun).childRekeyByPeer},
		{"IKE rekey by peer", usual, (*matrixRun).ikeRekeyByPeer},
		{"liveness by peer", usual, (*matrixRun).livenessByPeer},
		{"delete by peer", usual, (*matrixRun).deleteByPeer},
		{"delete by tacit", brief, (*matrixRun).deleteByTacit},
	}},
	{name: "short lives", top: "child-lifetime = \"2s\"\nike-lifetime = \"7s\"", columns: []matrixColumn{
		{"child rekey by tacit", full, (*matrixRun).childRekeyByTacit},
		{"IKE rekey by tacit", full, (*matrixRun).ikeRekeyByTacit},
	}},
	{name: "narrow", top: "linger = \"3s\"", before: (*matrixRun).narrow, columns: []matrixColumn{
		{"fragments of peer", full, func(r *matrixRun, t *testing.T) { r.fragments(t, r.bob) }},
		{"fragments of tacit", full, func(r *matrixRun, t *testing.T) { r.fragments(t, r.alice) }},
		{"liveness by tacit", full, (*matrixRun).livenessByTacit},
	}},
	{name: "busy peer", by: "tacit", raw: true, columns: []matrixColumn{{"cookie of peer", full, (*matrixRun).cookieOfPeer}}},
	{name: "busy tacit", by: "peer", raw: true, columns: []matrixColumn{{"cookie of tacit", full, (*matrixRun).cookieOfTacit}}},
	{name: "crossing", by: "tacit", raw: true, columns: []matrixColumn{{"both at once", usual, (*matrixRun).bothAtOnce}}},
}

// matrixColumns are the names of all columns, in order.
func matrixColumns() (names []string) {
	for _, g := range matrixGroups {
		for _, c := range g.columns {
			names = append(names, c.name)
		}
	}
	return names
}

// matrixRun is a row with a tacit that runs.
type matrixRun struct {
	*matrix
	matrixRow
	tacit *tacit
	began int  // length of tacit's log
	over  bool // tacit has ended, or nothing was protected

	cannot string // why the peer cannot do what a column wants, which the tap has shown
}

// slower is a duration, doubled under a slow kernel.
func slower(d time.Duration) time.Duration {
	if os.Getenv("TACIT_ESP") == "1" {
		return 2 * d
	}
	return d
}

// start starts tacit for a group of columns, and lets the row's initiator make the SAs.
func (m *matrix) start(t *testing.T, row matrixRow, g matrixGroup) *matrixRun {
	r := &matrixRun{matrix: m, matrixRow: row}
	m.peer.begin(t, r)
	m.tap.Reset()
	if g.before != nil {
		g.before(r, t)
	}
	r.began = m.logged
	top := g.top
	if slower(1) > 1 {
		top = strings.NewReplacer("2s", "4s", "3s", "6s", "7s", "14s").Replace(top)
	}
	o := options{upstream: m.upstream, top: top, dns: "hold = \"8s\"", dataplane: m.plane}
	if row.ours != null {
		o.name, o.identity = row.endName("alice"), m.keys[[2]string{"alice", row.ours}].pem
		o.top += "\nidentify = \"all\""
	}
	if row.theirs == null && row.by == "tacit" {
		o.policy = fmt.Sprintf("[[policy]]\nmatch = [\"%v\", \"%v\"]\nclass = \"private\"\nanonymous = true\npackets = true\n", m.bob.Addr4(), m.bob.Addr6())
	}
	r.tacit = startTacit(t, m.alice, m.anchor, o)
	t.Cleanup(func() { m.logged = len(r.tacit.log()) })
	if !g.raw {
		r.establish(t)
	}
	return r
}

// establish has the row's initiator make the SAs of both families. A peer that has a name proves it also as the initiator: the address has
// proved its key before, so nobody else is let in from there.
func (r *matrixRun) establish(t *testing.T) {
	t.Helper()
	if r.by == "tacit" || !r.stranger {
		mustResolve(t, r.alice, r.endName("bob"), r.bob.Addr4().String(), r.bob.Addr6().String())
		r.counts(t, 2, 2)
	}
	if r.by == "peer" {
		if !r.stranger {
			r.peer.terminate(t, r)
			r.counts(t, 0, 0)
		}
		r.initiate(t)
	}
	r.proven(t)
}

// initiate has the peer initiate, and send first: a responder enforces nothing before the first ESP.
func (r *matrixRun) initiate(t *testing.T) {
	t.Helper()
	if err := r.peer.initiate(t, r); err != nil {
		t.Fatal(err)
	}
	for _, addr := range both(r.alice) {
		datagrams(t, r.bob, r.alice, addr, 1, 1)
	}
	r.counts(t, 2, 2)
	if r.stranger {
		return
	}
	for _, line := range strings.Split(r.log(), "\n") {
		if strings.Contains(line, "msg=ike-established") && strings.Contains(line, "initiator=false") && strings.Contains(line, "key=none") {
			t.Errorf("the peer proved no key as the initiator: %s", line)
		}
	}
}

// log is what the row's tacit has written.
func (r *matrixRun) log() string { return r.tacit.log()[r.began:] }

// await is eventually, but shows what the peer has when it does not come.
func (r *matrixRun) await(t *testing.T, most time.Duration, what string, cond func() bool) {
	t.Helper()
	pause := slower(50 * time.Millisecond) // longer and longer: all packets are listed, or the peer is asked
	for end := time.Now().Add(most); !cond(); time.Sleep(pause) {
		pause = min(pause+pause/4, slower(500*time.Millisecond))
		if time.Now().After(end) {
			i, c := r.peer.sas(t, r)
			t.Fatalf("not within %v: %s; the peer has %d IKE SAs and %d Child SAs", most, what, i, c)
		}
	}
}

// counts waits until the peer has so many IKE SAs and Child SAs.
func (r *matrixRun) counts(t *testing.T, ike, child int) {
	t.Helper()
	r.await(t, slower(10*time.Second), fmt.Sprintf("%d IKE SAs and %d Child SAs", ike, child), func() bool {
		i, c := r.peer.sas(t, r)
		return i == ike && c == child
	})
}

// protected is onlyProtected for a subtest, but for what a peer answers in clear that has the SA and not yet its policy.
func (r *matrixRun) protected(t *testing.T) {
	t.Helper()
	r.sync()
	known := 0
	for family := range both(r.bob) {
		e := r.evidence(family)
		for _, p := range e.packets {
			if p.Class != lab.ClassClear || p.Src != e.bob {
				continue
			}
			if why, ok := e.unguarded(p.Time); ok {
				t.Logf("%v -> %v in clear at %s: %s", p.Src, p.Dst, p.Time.Format(clock), why)
				known++
			}
		}
	}
	w := *r.world
	w.t = t
	w.protectedBut(known, r.alice, r.bob)
	r.inMode(t)
}

// spiCounts are the numbers of SPIs on the cable, each family each way.
func (r *matrixRun) spiCounts() (n [4]int) {
	for i := range both(r.alice) {
		n[2*i], n[2*i+1] = len(r.spis(both(r.alice)[i], both(r.bob)[i])), len(r.spis(both(r.bob)[i], both(r.alice)[i]))
	}
	return n
}

// ikeMessage is an IKE message on the cable.
type ikeMessage struct {
	lab.IKEHeader
	src  netip.Addr
	next byte // the first payload
	data []byte
}

// of reports whether a host sent it.
func (m ikeMessage) of(h *lab.Host) bool { return m.src == h.Addr4() || m.src == h.Addr6() }

// messages are the IKE messages between alice and bob since the row's tacit was started.
func (r *matrixRun) messages() (list []ikeMessage) {
	for _, p := range r.tap.Packets() {
		h, ok := p.IKEHeader()
		m := ikeMessage{IKEHeader: h, src: p.Src, data: p.Payload}
		to := ikeMessage{src: p.Dst}
		if ok && (m.of(r.alice) && to.of(r.bob) || m.of(r.bob) && to.of(r.alice)) {
			m.next = p.Payload[16]
			list = append(list, m)
		}
	}
	return list
}

// Exchange types (RFC 7296, 3.1).
const (
	ikeSAInit     = 34
	ikeAuth       = 35
	createChildSA = 36
	informational = 37
)

// payloadSKF is that of an encrypted fragment (RFC 7383, 2.5).
const payloadSKF = 53

// requests counts the requests of an exchange that a host began since a message, repeats aside.
func (r *matrixRun) requests(h *lab.Host, exchange uint8, since int) int {
	seen := map[string]bool{}
	for _, m := range r.messages()[since:] {
		if m.Exchange == exchange && !m.Response && m.of(h) {
			seen[fmt.Sprint(m.src.Is4(), m.InitiatorSPI, m.ResponderSPI, m.MessageID)] = true
		}
	}
	return len(seen)
}

// heirs counts the IKE SAs in use that no IKE_SA_INIT made.
func (r *matrixRun) heirs() int {
	made, used := map[uint64]bool{}, map[uint64]bool{}
	for _, m := range r.messages() {
		if m.Exchange == ikeSAInit {
			made[m.InitiatorSPI] = true
		} else {
			used[m.InitiatorSPI] = true
		}
	}
	n := 0
	for spi := range used {
		if !made[spi] {
			n++
		}
	}
	return n
}

func (r *matrixRun) traffic(t *testing.T) {
	for i, addr := range both(r.bob) {
		datagrams(t, r.alice, r.bob, addr, 5, 1, 1472)
		transfer(t, r.alice, r.bob, addr, 200_000)
		datagrams(t, r.bob, r.alice, both(r.alice)[i], 5, 1, 1472)
	}
	r.counts(t, 2, 2)
}

// fresh waits until packets of a new SA are on the cable, each family each way.
func (r *matrixRun) fresh(t *testing.T, before [4]int) {
	t.Helper()
	r.await(t, slower(5*time.Second), "a new SPI on the cable, each family each way", func() bool {
		now := r.spiCounts()
		return now[0] > before[0] && now[1] > before[1] && now[2] > before[2] && now[3] > before[3]
	})
}

func (r *matrixRun) childRekeyByPeer(t *testing.T) {
	before, since := r.spiCounts(), len(r.messages())
	r.flow(t, slower(time.Second), func() {
		r.peer.rekeyChild(t, r)
		r.fresh(t, before)
	})
	if n := r.requests(r.bob, createChildSA, since); n < 2 {
		t.Errorf("%d CREATE_CHILD_SA requests of the peer, want one in each family", n)
	}
	r.counts(t, 2, 2)
}

// ikeRekeyByPeer rekeys the IKE SA, and with the new one the Child SA.
func (r *matrixRun) ikeRekeyByPeer(t *testing.T) {
	heirs := r.heirs()
	r.flow(t, slower(time.Second), func() {
		r.peer.rekeyIKE(t, r)
		r.counts(t, 2, 2)
		before := r.spiCounts()
		r.peer.rekeyChild(t, r)
		r.fresh(t, before)
	})
	if n := r.heirs(); n < heirs+2 {
		t.Errorf("%d rekeyed IKE SAs on the cable after %d, want 2 more", n, heirs)
	}
	r.counts(t, 2, 2)
}

// silence sends nothing, and wants a probe of the host answered in each family.
func (r *matrixRun) silence(t *testing.T, h *lab.Host, most time.Duration) {
	t.Helper()
	since := len(r.messages())
	answered := func() int {
		asked := map[string]bool{}
		done := map[string]bool{}
		for _, m := range r.messages()[since:] {
			at := fmt.Sprint(m.src.Is4(), m.InitiatorSPI, m.MessageID)
			switch {
			case m.Exchange != informational:
			case m.of(h) && !m.Response:
				asked[at] = true
			case !m.of(h) && m.Response && asked[at]:
				done[fmt.Sprint(m.src.Is4())] = true
			}
		}
		return len(done)
	}
	r.await(t, most, "an answered probe of "+h.Name+" in each family", func() bool { return answered() == 2 })
	r.flow(t, 200*time.Millisecond, nil)
	r.counts(t, 2, 2)
}

func (r *matrixRun) livenessByPeer(t *testing.T) { r.silence(t, r.bob, slower(10*time.Second)) }

func (r *matrixRun) livenessByTacit(t *testing.T) { r.silence(t, r.alice, slower(6*time.Second)) }

// deleteByPeer: what is sent afterwards waits for new SAs, and none of it is lost.
func (r *matrixRun) deleteByPeer(t *testing.T) {
	since := len(r.messages())
	r.peer.terminate(t, r)
	r.counts(t, 0, 0)
	r.sync()
	if n := r.requests(r.bob, informational, since); n < 2 {
		t.Errorf("%d INFORMATIONAL requests of the peer, want one in each family", n)
	}
	if r.stranger { // tacit would speak in clear
		r.initiate(t)
	} else {
		time.Sleep(slower(300 * time.Millisecond))
	}
	r.flow(t, slower(500*time.Millisecond), nil)
	r.counts(t, 2, 2)
}

// deleteByTacit ends the daemon. What the tap has seen is judged before: who then asks port 500 is answered by the host's kernel, in clear.
func (r *matrixRun) deleteByTacit(t *testing.T) {
	r.protected(t)
	r.over = true
	r.tacit.stop()
	r.counts(t, 0, 0)
}

// childRekeyByTacit and the next run with short lifetimes: a rekey may come before anybody looks.
func (r *matrixRun) childRekeyByTacit(t *testing.T) {
	before := r.spiCounts()
	r.flow(t, slower(2*time.Second), func() { r.fresh(t, before) })
	if n := r.requests(r.alice, createChildSA, 0); n < 2 {
		t.Errorf("%d CREATE_CHILD_SA requests of tacit, want one in each family", n)
	}
}

func (r *matrixRun) ikeRekeyByTacit(t *testing.T) {
	r.flow(t, slower(time.Second), func() {
		r.await(t, slower(15*time.Second), "rekeyed IKE SAs of both families on the cable", func() bool { return r.heirs() >= 2 })
	})
	for _, m := range r.messages() {
		if m.Exchange == ikeSAInit && m.of(r.alice) && !m.Response && r.stranger {
			t.Errorf("tacit has begun an IKE SA of its own")
			break
		}
	}
}

// filter has a host lose packets that come in. The function ends that; so does the end of the test.
func (r *matrixRun) filter(t *testing.T, h *lab.Host, rules ...string) (lift func()) {
	t.Helper()
	put(t, h, "/run/lossy.nft", "table inet lossy {\n\tchain c {\n\t\ttype filter hook prerouting priority -300\n\t\t"+
		strings.Join(rules, "\n\t\t")+"\n\t}\n}\n")
	output(t, h, "nft", "-f", "/run/lossy.nft")
	lift = sync.OnceFunc(func() {
		if err := h.Command(context.Background(), "nft", "delete", "table", "inet", "lossy").Run(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(lift)
	return lift
}

// narrow makes bob's cable lose long IKE messages to him over IPv4, but for IKE_SA_INIT, which cannot be cut.
func (r *matrixRun) narrow(t *testing.T) {
	r.filter(t, r.bob, "meta nfproto ipv4 udp dport 500 udp length > 560 @th,208,8 != 34 counter drop",
		"meta nfproto ipv4 udp dport 4500 udp length > 560 @th,64,32 0 counter drop")
}

// What every path takes of an IKE message whole: IP datagrams of 576 octets (RFC 791), and of 1280 (RFC 8200, 5).
const (
	leastIPv4 = 576 - 20 - 8
	leastIPv6 = 1280 - 40 - 8
)

// fragments wants encrypted fragments of a host on the cable (RFC 7383). The SAs that came up need them, or all that it has sent passes every path whole.
func (r *matrixRun) fragments(t *testing.T, h *lab.Host) {
	r.sync()
	longest := map[bool]int{}
	for _, m := range r.messages() {
		switch {
		case !m.of(h) || m.Exchange == ikeSAInit: // which cannot be cut
		case m.next == payloadSKF:
			return
		default:
			longest[m.src.Is4()] = max(longest[m.src.Is4()], len(m.data))
		}
	}
	t.Logf("no fragment of %s on the cable; its longest sealed messages have %d octets over IPv4 and %d over IPv6", h.Name, longest[true], longest[false])
	if len(longest) != 2 || longest[true] > leastIPv4 || longest[false] > leastIPv6 {
		t.Errorf("want none longer than %d and %d", leastIPv4, leastIPv6)
		return
	}
	r.cannot = fmt.Sprintf("All that this end sends with these keys passes every path whole (%d octets over IPv4, %d over IPv6): there is nothing to cut.", leastIPv4, leastIPv6)
}

// halfOpen begins n IKE SAs with each address of a host: as from another host, or, without one, from as many addresses of its network.
func (r *matrixRun) halfOpen(t *testing.T, to, as *lab.Host, n int) {
	t.Helper()
	e := ike.New(ike.Config{})
	for family, addr := range both(to) {
		for i := range n {
			b := addr.AsSlice()
			b[len(b)-1] = byte(100 + i)
			src, _ := netip.AddrFromSlice(b)
			if as != nil {
				src = both(as)[family]
			}
			peer := ike.Peer{Local: netip.AddrPortFrom(src, 500), Remote: netip.AddrPortFrom(addr, 500), LocalID: ike.ID{Kind: ike.IDNull}}
			_, out := e.Initiate(time.Now(), peer)
			for _, d := range out.Send {
				if err := r.plain.Inject(lab.UDPPacket(d.Local, d.Remote, d.Data)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	time.Sleep(slower(300 * time.Millisecond))
}

// cookies counts the families in which a host has demanded a cookie, or brought the one that was demanded of it: N(COOKIE) before all
// else (RFC 7296, 2.6).
func (r *matrixRun) cookies(h *lab.Host, demanded bool) int {
	r.sync()
	in := map[bool]bool{}
	for _, m := range r.messages() {
		const notify, cookie = 41, 16390
		if m.Exchange == ikeSAInit && m.Response == demanded && m.of(h) && m.next == notify && len(m.data) > 36 && int(m.data[34])<<8|int(m.data[35]) == cookie {
			in[m.src.Is4()] = true
		}
	}
	return len(in)
}

func (r *matrixRun) cookieOfPeer(t *testing.T) {
	if r.cannot = r.peer.demandCookies(t, r); r.cannot != "" {
		r.over = true // no SA has been made
		return
	}
	r.establish(t)
	r.flow(t, 200*time.Millisecond, nil)
	if n := r.cookies(r.alice, false); n != 2 {
		t.Errorf("tacit was asked for cookies in %d families, want 2\n%s\n%s", n, r.timeline(0), r.timeline(1))
	}
}

func (r *matrixRun) cookieOfTacit(t *testing.T) {
	r.halfOpen(t, r.alice, nil, 110)
	r.establish(t)
	r.flow(t, 200*time.Millisecond, nil)
	if n := r.cookies(r.bob, false); n != 2 {
		t.Errorf("the peer was asked for cookies in %d families, want 2\n%s\n%s", n, r.timeline(0), r.timeline(1))
	}
}

// bothAtOnce has both ends initiate in the same moment, and wants one clean SA in each family, and no packet lost. The cable loses the
// answers to IKE_SA_INIT until both have begun.
func (r *matrixRun) bothAtOnce(t *testing.T) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s\n%s", r.timeline(0), r.timeline(1))
		}
	})
	lift := r.filter(t, r.alice, "udp dport 500 @th,208,8 34 @th,216,8 & 0x20 == 0x20 counter drop")
	liftBob := r.filter(t, r.bob, "udp dport 500 @th,208,8 34 @th,216,8 & 0x20 == 0x20 counter drop")
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.peer.initiate(t, r); err != nil { // it may be its own that goes
			t.Log(err)
		}
	})
	// openiked does not begin with who has begun with it, and tacit does not repeat its first message for long.
	eventually(t, slower(5*time.Second), "the peer has begun", func() bool { return r.requests(r.bob, ikeSAInit, 0) >= 2 })
	wg.Go(func() {
		if addrs, err := getaddrinfo(t, r.alice, "ahosts", r.endName("bob")); err != nil || len(addrs) != 2 {
			t.Errorf("%s: %v, %v", r.endName("bob"), addrs, err)
		}
	})
	eventually(t, slower(5*time.Second), "both ends have begun", func() bool { return r.crossed() == 2 })
	lift()
	liftBob()
	wg.Wait()
	r.flow(t, slower(500*time.Millisecond), nil)
	if n := r.crossed(); n != 2 {
		t.Errorf("%d of 2 families crossed", n)
	}
	r.await(t, slower(30*time.Second), "one SA in each family", func() bool {
		i, c := r.peer.sas(t, r)
		return i == 2 && c == 2
	})
	r.flow(t, slower(500*time.Millisecond), nil)
}

// crossed counts the families in which both ends began before the other's AUTH was answered.
func (r *matrixRun) crossed() int {
	n := 0
	for _, v4 := range []bool{true, false} {
		begun := map[bool]bool{}
		for _, m := range r.messages() {
			if m.src.Is4() != v4 || m.Response && m.Exchange == ikeSAInit {
				continue
			}
			if m.Response {
				break
			}
			if m.Exchange == ikeSAInit {
				begun[m.of(r.alice)] = true
			}
		}
		if len(begun) == 2 {
			n++
		}
	}
	return n
}
