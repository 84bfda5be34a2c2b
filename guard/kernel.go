package guard

import (
	"errors"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

/* Where the kernel does ESP, its policies protect what goes out, and the table sees to the rest:

	out   own . peer in divert -> exempt? marked as ours, so that no policy takes it; already on its way into an SA? passes;
	      else it waits in the queue
	leak  own . peer in divert -> into an SA, or exempt, or dropped: nothing leaves in clear between the verdict on a packet that
	      waited and the policy
	in    came out of an SA -> passes; if own . peer is in latch, by the queue (the first packet of an SA arms it)
	      else as with a device
	fwd   out of an SA, and on to a guest that hides behind our address -> TCP's segments are made to fit, see guestSegment

Whoever reads the queue lets a packet go with a changed mark: then the kernel routes it anew and finds the policy. Nobody reads:
the packet is dropped, or passes if it is only watched. */

// Keys that the library has no names for (linux/netfilter/nf_tables.h).
const (
	rtXFRM      expr.RtKey   = 4  // does the route lead into an SA
	metaSecpath expr.MetaKey = 25 // did the packet come out of one
)

// guestSegment is the longest TCP segment, in octets, that a masqueraded guest's peer may ask for. What the guest sends goes into our SA after
// its address was changed; if ESP then makes it too long for the cable, nobody tells the guest. It is 1,500 less the headers of IPv6, TCP,
// UDP and ESP with any algorithm, and what a cable may lack.
const guestSegment = 1300

func (g *Guard) kernel() bool { return g.cfg.Queue != 0 }

// intoSA ends the rule unless the packet's route leads into an SA.
func intoSA() []expr.Any {
	return []expr.Any{&expr.Rt{Register: regFirst, Key: rtXFRM}, compare(1)}
}

// fromSA ends the rule unless the packet came out of an SA.
func fromSA() []expr.Any {
	return []expr.Any{&expr.Meta{Register: regFirst, Key: metaSecpath}, compare(1)}
}

// outward are the chains whose accept means: in clear, whatever the policies.
var outward = []string{"out_exempt", "leak_exempt", "out_dns_query", "leak_dns_query", "out_dns_reply", "out_port_query", "leak_port_query", "out_port_reply"}

// kernelChains are the chains where there is no device.
func kernelChains(s sets, number uint16) []chain {
	accept, queue := verdict(expr.VerdictAccept), &expr.Queue{Num: number}
	passing := &expr.Queue{Num: number, Flag: expr.QueueFlagBypass}
	first := chain{name: "in_ipsec"}
	for i, set := range s.latch {
		first.add(concat(loadKey(i, true), lookup(set), []expr.Any{queue}))
	}
	first.add([]expr.Any{accept})
	// What is exempt is taken out of the hands of the policies: with our own mark the kernel routes it anew.
	clear := chain{name: "out_clear", rules: [][]expr.Any{concat(intoSA(), setMark(MarkOwn)), {accept}}}
	list := []chain{first, clear}
	for _, c := range chains(s, "") {
		switch {
		case slices.Contains(outward, c.name):
			c.rules = replaceVerdict(c.rules, jumpTo(clear.name))
		case c.name == "out_divert":
			c.rules = [][]expr.Any{{jump("out_exempt")}, concat(intoSA(), []expr.Any{accept}), {queue}}
		case c.name == "rule_watch":
			c.rules = watchRules(s, concat(intoSA(), []expr.Any{accept}), []expr.Any{passing})
		case c.name == "input":
			c.rules[deviceRule] = concat(fromSA(), []expr.Any{accept})
		case c.name == "in":
			c.rules[deviceRule] = concat(fromSA(), []expr.Any{jumpTo(first.name)})
		case c.name == "leak":
			c.rules[deviceRule] = concat(intoSA(), []expr.Any{accept})
		}
		list = append(list, c)
	}
	fwd := chain{name: "fwd", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward}
	fwd.add(concat(fromSA(), l4proto(unix.IPPROTO_TCP), payload(expr.PayloadBaseTransportHeader, tcpFlags, 1), maskNotZero(tcpSYN), setMSS(guestSegment)))
	return append(list, fwd)
}

// TCP's flags and its option of the maximum segment size (RFC 9293, 3.1 and 3.2).
const (
	tcpFlags = 13 // octets into the header
	tcpSYN   = 0x02
	tcpMSS   = 2
)

// setMSS lowers what a SYN says; the kernel never raises it.
func setMSS(octets uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: regFirst, Data: binaryutil.BigEndian.PutUint16(octets)},
		&expr.Exthdr{SourceRegister: regFirst, Type: tcpMSS, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	}
}

// replaceVerdict puts another expression in the place of accept.
func replaceVerdict(rules [][]expr.Any, by expr.Any) (out [][]expr.Any) {
	for _, r := range rules {
		r = slices.Clone(r)
		for i, e := range r {
			if v, ok := e.(*expr.Verdict); ok && v.Kind == expr.VerdictAccept {
				r[i] = by
			}
		}
		out = append(out, r)
	}
	return out
}

// Latch makes packets that come out of an SA between the two addresses pass by the queue, for the given time unless it is renewed.
func (g *Guard) Latch(k Key, timeout time.Duration) error {
	if err := k.check(); err != nil || g.latch[k] {
		return err
	}
	if err := g.fault("latch"); err != nil {
		return err
	}
	el := []nftables.SetElement{{Key: encodeKey(k), Timeout: max(timeout, time.Millisecond)}}
	err := g.conn.SetAddElements(g.sets.latch[family(k.Own)], el)
	if err == nil {
		err = g.flush(true)
	}
	if err != nil {
		return hint("latch", errors.Join(err, g.resync()))
	}
	g.latch[k] = true
	return nil
}

// RenewLatches gives every latch that stands another such time, or anew if it has timed out.
func (g *Guard) RenewLatches(timeout time.Duration) error {
	if len(g.latch) == 0 {
		return nil
	}
	if err := g.fault("renew latches"); err != nil {
		return err
	}
	had := g.latch
	err := g.relatch(had, timeout)
	if err == nil {
		return nil
	}
	if e := g.resync(); e != nil {
		return hint("renew latches", errors.Join(err, e))
	}
	if had, err = g.latches(); err == nil { // one that has timed out cannot be deleted
		err = g.relatch(had, timeout)
	}
	if err != nil {
		return hint("renew latches", err)
	}
	return nil
}

// relatch deletes those that there are and adds all in one batch; see transact.
func (g *Guard) relatch(had map[Key]bool, timeout time.Duration) error {
	del, add := make(elementLists), make(elementLists)
	for k := range g.latch {
		set := g.sets.latch[family(k.Own)]
		if had[k] {
			del.append(set, nftables.SetElement{Key: encodeKey(k)})
		}
		add.append(set, nftables.SetElement{Key: encodeKey(k), Timeout: max(timeout, time.Millisecond)})
	}
	if err := errors.Join(del.each(g.conn.SetDeleteElements), add.each(g.conn.SetAddElements)); err != nil {
		return err
	}
	return g.flush(true)
}

// latches are those that the kernel has.
func (g *Guard) latches() (map[Key]bool, error) {
	have := make(map[Key]bool)
	for _, set := range g.sets.latch {
		elements, err := g.conn.GetSetElements(set)
		if err != nil {
			return nil, err
		}
		for _, e := range elements {
			k, err := DecodeKey(e.Key)
			if err != nil {
				return nil, err
			}
			have[k] = true
		}
	}
	return have, nil
}

// Unlatch ends it. It is no error if nothing is there, or not any more.
func (g *Guard) Unlatch(k Key) error {
	if !g.latch[k] {
		return nil
	}
	if err := g.fault("unlatch"); err != nil {
		return err
	}
	delete(g.latch, k)
	err := g.conn.SetDeleteElements(g.sets.latch[family(k.Own)], []nftables.SetElement{{Key: encodeKey(k)}})
	if err == nil {
		err = g.conn.Flush()
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT):
		return g.resync() // it had timed out; the socket may hold replies of the failed batch
	}
	return hint("unlatch", errors.Join(err, g.resync()))
}
