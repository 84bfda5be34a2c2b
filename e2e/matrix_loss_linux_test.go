package e2e

import (
	"fmt"
	"net/netip"
	"regexp"
	"sync"
	"testing"
	"time"

	"tacit/lab"
)

// What a ping without a reply is, by the tap: tacit's fault, or what the peer has lost.

const (
	flowSlice = 20 // pings in a row; then those that have no reply are waited for
	flowStep  = 32 // octets by which each is longer than the one before: a multiple of every cipher's block
)

// flow pings both families for a time, and for as long as something happens, and wants every reply but those that the tap shows to
// be lost by the peer.
func (r *matrixRun) flow(t *testing.T, d time.Duration, during func()) {
	t.Helper()
	began := time.Now()
	done := make(chan struct{})
	var lost [2][]lostPing
	var wg sync.WaitGroup
	defer func() {
		close(done)
		wg.Wait()
		r.sync()
		for family, list := range lost {
			r.judge(t, family, began, list)
		}
	}()
	for i, addr := range both(r.bob) {
		wg.Go(func() {
			for over := false; !over; {
				select {
				case <-done:
					over = true // after one slice more
				default:
				}
				p, err := growingPing(r.alice, both(r.alice)[i], addr, flowSlice, slower(15*time.Millisecond), flowStep)
				if err != nil {
					t.Errorf("ping %v: %v", addr, err)
				}
				for _, seq := range p.lost {
					lost[i] = append(lost[i], lostPing{seq, p.at[seq]})
				}
			}
		})
	}
	time.Sleep(d / 3)
	if during != nil {
		during()
	}
	time.Sleep(d - d/3)
}

// lostPing is a ping that had no reply: its number in a slice, and when it was sent.
type lostPing struct {
	seq int
	at  time.Time
}

// judge finds for each lost ping whose loss it is.
func (r *matrixRun) judge(t *testing.T, family int, began time.Time, lost []lostPing) {
	t.Helper()
	if len(lost) == 0 {
		return
	}
	e := evidence{alice: both(r.alice)[family], bob: both(r.bob)[family], began: began, sas: r.installed(family)}
	e.packets = r.tap.Select(func(p lab.Packet) bool {
		return p.Src == e.alice && p.Dst == e.bob || p.Src == e.bob && p.Dst == e.alice
	})
	ours, text := 0, ""
	for _, p := range lost {
		why, theirs := e.fate(p)
		if !theirs {
			ours++
		}
		text += fmt.Sprintf("ping %d of %s: %s\n", p.seq, p.at.Format(clock), why)
	}
	text += r.timeline(family)
	if ours > 0 {
		t.Errorf("%v: of %d lost pings %d by tacit\n%s", e.bob, len(lost), ours, text)
	} else {
		t.Logf("%v: %d pings lost by the peer\n%s", e.bob, len(lost), text)
	}
}

// installedSA is a pair of SAs, by tacit's log, which knows which SPI belongs to which: the tap does not.
type installedSA struct {
	in, out string
	at      time.Time
}

var installedLine = regexp.MustCompile(`msg=sa-installed peer=(\S+) .*in=([0-9a-f]+) out=([0-9a-f]+) .* t=(\S+)`)

// installed are the pairs that tacit has had in a family, in order.
func (r *matrixRun) installed(family int) (list []installedSA) {
	for _, m := range installedLine.FindAllStringSubmatch(r.log(), -1) {
		if at, err := time.Parse(time.RFC3339Nano, m[4]); err == nil && m[1] == both(r.bob)[family].String() {
			list = append(list, installedSA{m[2], m[3], at})
		}
	}
	return list
}

// evidence is what was on the cable between tacit's address and the peer's, and the SAs that tacit had.
type evidence struct {
	alice, bob netip.Addr
	began      time.Time // of the pings
	packets    []lab.Packet
	sas        []installedSA
}

func (r *matrixRun) evidence(family int) *evidence {
	e := &evidence{alice: both(r.alice)[family], bob: both(r.bob)[family], sas: r.installed(family)}
	e.packets = r.tap.Select(func(p lab.Packet) bool {
		return p.Src == e.alice && p.Dst == e.bob || p.Src == e.bob && p.Dst == e.alice
	})
	return e
}

const (
	onTheWay = 2 * time.Millisecond   // to the cable; doubled under a slow kernel
	aMoment  = 100 * time.Millisecond // the most that tacit may take from an answer until it has installed what that gives; doubled too
	aWhile   = time.Second            // the most that the peer takes for that; doubled too
)

// fate tells what became of a lost ping. The peer may have lost it in four ways, and else it is tacit's loss: see early, unready,
// closing and deleted.
func (e *evidence) fate(p lostPing) (why string, theirs bool) {
	request := e.find(e.alice, p, p.at)
	if request == nil {
		return "the request was never on the cable", false
	}
	if reply := e.find(e.bob, p, request.Time); reply != nil {
		return e.early(*reply)
	}
	why = fmt.Sprintf("the request was on the cable, ESP %s at %s, ", spiOf(*request), request.Time.Format(clock))
	for i, sa := range e.sas {
		if sa.out != spiOf(*request) {
			continue
		}
		if reason, ok := e.unready(sa, request.Time); ok {
			return why + reason, true
		}
		if reason, ok := e.deleted(sa, request.Time); ok {
			return why + reason, true
		}
		if i+1 < len(e.sas) {
			if reason, ok := e.closing(e.sas[i+1], request.Time); ok {
				return why + reason, true
			}
		}
	}
	return why + "and no reply", false
}

// find is the packet of a ping, by its length: no later packet has it until the slice has been waited for.
func (e *evidence) find(from netip.Addr, p lostPing, since time.Time) *lab.Packet {
	shortest := 0
	for _, q := range e.packets {
		if isESP(q) && q.Src == e.alice && !q.Time.Before(e.began) && (shortest == 0 || q.Length < shortest) {
			shortest = q.Length
		}
	}
	for i, q := range e.packets {
		if isESP(q) && q.Src == from && q.Length == shortest+p.seq*flowStep && !q.Time.Before(since) && q.Time.Before(p.at.Add(slower(3*time.Second))) {
			return &e.packets[i]
		}
	}
	return nil
}

// early: the peer sends the reply on a new SA before its answer to CREATE_CHILD_SA, or in the moment after it. An initiator has no keys
// before that.
func (e *evidence) early(reply lab.Packet) (why string, is bool) {
	why = fmt.Sprintf("the reply was on the cable, ESP %s at %s", spiOf(reply), reply.Time.Format(clock))
	for _, sa := range e.sas {
		if sa.in != spiOf(reply) {
			continue
		}
		why += fmt.Sprintf(", tacit had the keys at %s", sa.at.Format(clock))
		answer, ok := e.answer(sa)
		if !ok || sa.at.Sub(answer) > slower(aMoment) {
			return why, false
		}
		return why + fmt.Sprintf(" by the answer of %s", answer.Format(clock)), reply.Time.Before(sa.at.Add(slower(onTheWay)))
	}
	return why, false
}

// answer is when the answer of the peer, as the responder, was on the cable that made an SA; false: tacit was the responder.
func (e *evidence) answer(sa installedSA) (at time.Time, ok bool) {
	for _, q := range e.packets {
		h, is := q.IKEHeader()
		if !is || q.Time.After(sa.at) || h.Exchange != createChildSA && h.Exchange != ikeAuth {
			continue
		}
		switch byPeer := q.Src == e.bob; {
		case byPeer && h.Response:
			at, ok = q.Time, true
		case byPeer: // what it asks itself is answered when the SA is installed
			ok = false
		}
	}
	return at, ok
}

// unready: the peer has announced the SA, as the responder by its answer and as the initiator by its DELETE of the one before, and
// cannot read it yet: it has sent nothing on it itself.
func (e *evidence) unready(sa installedSA, at time.Time) (why string, is bool) {
	announced, ok := e.answer(sa)
	for _, q := range e.packets {
		h, is := q.IKEHeader()
		if !ok && is && q.Src == e.bob && !h.Response && h.Exchange == informational && q.Time.After(sa.at) {
			announced, ok = q.Time, true
		}
		if isESP(q) && q.Src == e.bob && spiOf(q) == sa.in && !q.Time.After(at) {
			return "", false
		}
	}
	return fmt.Sprintf("the peer announced that SA at %s and was not on it yet", announced.Format(clock)),
		ok && !at.Before(announced) && at.Sub(announced) < slower(aWhile)
}

// unguarded: the peer has announced an SA not long ago, and has sent nothing on it: what it reads there it may answer in clear, since it
// has no policy yet.
func (e *evidence) unguarded(at time.Time) (why string, is bool) {
	var announced time.Time
	for _, q := range e.packets {
		h, ok := q.IKEHeader()
		switch {
		case q.Src != e.bob || !q.Time.Before(at):
		case ok && h.Response && (h.Exchange == createChildSA || h.Exchange == ikeAuth):
			announced = q.Time
		case isESP(q):
			announced = time.Time{}
		}
	}
	return fmt.Sprintf("the peer announced an SA at %s and was not on it yet", announced.Format(clock)), !announced.IsZero() && at.Sub(announced) < slower(aWhile)
}

// closing: the peer has ended the SA before the next one without waiting until its DELETE was answered.
func (e *evidence) closing(next installedSA, at time.Time) (why string, is bool) {
	var from time.Time
	var id uint32
	for _, q := range e.packets {
		h, ok := q.IKEHeader()
		switch {
		case !ok || h.Exchange != informational || q.Time.Before(next.at):
		case from.IsZero() && q.Src == e.bob && !h.Response:
			from, id = q.Time, h.MessageID
		case !from.IsZero() && q.Src == e.alice && h.Response && h.MessageID == id:
			is = at.After(from.Add(-slower(onTheWay))) && at.Before(q.Time.Add(slower(onTheWay)))
			return fmt.Sprintf("the peer's DELETE of that SA at %s, answered at %s", from.Format(clock), q.Time.Format(clock)), is
		}
	}
	return "", false
}

// deleted: the peer has ended the SA with no other in its place, and has forgotten it when it said so (libreswan, when its configuration is read anew). What is
// sent before tacit can know, and in the moment that its data plane takes to hold, is lost.
func (e *evidence) deleted(sa installedSA, at time.Time) (why string, is bool) {
	var from, answered time.Time
	var asked lab.IKEHeader
	for _, q := range e.packets {
		h, ok := q.IKEHeader()
		byPeer := q.Src == e.bob
		switch {
		case ok && h.Exchange == createChildSA && from.IsZero() && q.Time.After(sa.at.Add(-slower(aWhile))):
			return "", false // a rekey: there is one in its place, or this is it
		case q.Time.Before(sa.at):
		case isESP(q) && byPeer && spiOf(q) == sa.in && !from.IsZero():
			return "", false // it stands: it was asked something else
		case !ok || h.Exchange != informational:
		case byPeer && !h.Response && !q.Time.After(at.Add(slower(onTheWay))):
			from, asked = q.Time, h
		case !byPeer && h.Response && !from.IsZero() && answered.IsZero() && h.MessageID == asked.MessageID && h.InitiatorSPI == asked.InitiatorSPI:
			answered = q.Time
		}
	}
	return fmt.Sprintf("the peer's DELETE of that SA at %s, with none in its place, answered at %s", from.Format(clock), answered.Format(clock)),
		!from.IsZero() && !answered.IsZero() && at.Before(answered.Add(slower(aMoment)))
}

func isESP(p lab.Packet) bool {
	return (p.Class == lab.ClassESP || p.Class == lab.ClassESPUDP) && !p.Fragment && len(p.Payload) >= 4
}

// spiOf is the SPI of a packet of ESP as tacit's log has it.
func spiOf(p lab.Packet) string { return fmt.Sprintf("%08x", be32(p.Payload)) }

// clock is how times are printed, here as in tacit's log.
const clock = "15:04:05.000000"

// timeline tells of a family when each SPI was first and last on the cable, and when each IKE message was: by it a loss is somebody's.
func (r *matrixRun) timeline(family int) string {
	type span struct {
		first, last time.Time
		n           int
	}
	var order []string
	spans := map[string]*span{}
	for _, p := range r.tap.Packets() {
		if !(p.Src == both(r.alice)[family] && p.Dst == both(r.bob)[family] || p.Dst == both(r.alice)[family] && p.Src == both(r.bob)[family]) {
			continue
		}
		name := ""
		switch h, ok := p.IKEHeader(); {
		case ok:
			name = fmt.Sprintf("%s %d response %v %016x from %v", lab.ExchangeName(h.Exchange), h.MessageID, h.Response, h.InitiatorSPI, p.Src)
		case isESP(p):
			name = fmt.Sprintf("ESP %s from %v", spiOf(p), p.Src)
		default:
			continue
		}
		if spans[name] == nil {
			spans[name] = &span{first: p.Time}
			order = append(order, name)
		}
		spans[name].last = p.Time
		spans[name].n++
	}
	text := ""
	for _, name := range order[max(0, len(order)-30):] {
		s := spans[name]
		text += fmt.Sprintf("%s to %s, %d packets: %s\n", s.first.Format(clock), s.last.Format(clock), s.n, name)
	}
	return text + tail(r.log(), 10)
}
