package guard

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

/* The kernel enters a chain of a hook for each packet, also for one from this host to itself. That costs as much as a tenth of a cached answer of DNS, whatever
the chain says of it. So the table sleeps, without its hooks, unless something stands: an element, a latch, or rules of prefixes. What brings the
first of them wakes the table before: then its rules are in force, and find nothing; whoever hears that the element stands knows that each packet is judged
by it. */

// restAfter is for how long nothing must have stood before the hooks go: what waits in a queue is dropped with them, and what comes again soon finds them there.
const restAfter = time.Minute

// presence says whether the hooks are there.
type presence uint8

const (
	unsure  presence = iota // what would have said so has failed
	awake                   // so is the routing of what is marked
	resting                 // so is that
)

// setHooks wakes the table, or puts it to sleep. It is a transaction of its own. A table that is gone is made, empty.
func (g *Guard) setHooks(there bool) error {
	flags := uint32(unix.NFT_TABLE_F_DORMANT)
	if there {
		flags = 0
	}
	attributes, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(TableName + "\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, flags)},
	})
	if err != nil {
		return err
	}
	message := func(kind netlink.HeaderType, flags netlink.HeaderFlags, family byte, of uint16, body []byte) netlink.Message {
		head := binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, of)
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request | flags}, Data: append(head, body...)}
	}
	if _, err := g.socket.SendMessages([]netlink.Message{
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil),
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, netlink.Acknowledge, unix.NFPROTO_INET, 0, attributes),
		message(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil),
	}); err != nil {
		return err
	}
	_, err = g.socket.Receive()
	return err
}

// flush makes the transaction that was written. If that brings what stands, the hooks come first, and before them the routing of what they mark.
func (g *Guard) flush(stands bool) error {
	if !stands {
		return g.conn.Flush()
	}
	if err := g.Wake(); err != nil {
		return err
	}
	return g.conn.Flush()
}

// Wake has the hooks there before anything stands, for a minute at least: it takes longer than to add what they find.
func (g *Guard) Wake() error {
	g.idle = time.Time{}
	if g.hooks == awake {
		return nil
	}
	g.hooks = unsure
	if err := g.route(true); err != nil {
		return err
	}
	if err := g.setHooks(true); err != nil {
		return err
	}
	g.hooks = awake
	return nil
}

func (g *Guard) route(marked bool) error {
	if g.cfg.Routing == nil {
		return nil
	}
	return g.cfg.Routing(marked)
}

// Rest has the hooks go when nothing has stood for a minute. It is to be called every now and then.
func (g *Guard) Rest(now time.Time) error {
	if g.hooks == resting || g.ruled || len(g.have)+len(g.latch) > 0 {
		g.idle = time.Time{}
		return nil
	}
	if g.idle.IsZero() {
		g.idle = now
	}
	if now.Sub(g.idle) < restAfter {
		return nil
	}
	g.idle = now // after an error, or where something stands of which we do not know, we look again after as long
	if err := g.fault("remove hooks"); err != nil {
		return err
	}
	return g.rest()
}

// rest has the hooks go if nothing stands in the kernel.
func (g *Guard) rest() error {
	stands, err := g.stands()
	if stands {
		return nil
	}
	if err == nil {
		g.hooks = unsure
		err = g.setHooks(false)
	}
	if err != nil {
		return hint("remove hooks", errors.Join(err, g.resync()))
	}
	if err := g.route(false); err != nil {
		return err
	}
	g.hooks = resting
	return nil
}

// stands asks the kernel whether anything does: a dead process may have left rules, and who deletes what has timed out is late.
func (g *Guard) stands() (bool, error) {
	elements, err := g.Elements()
	if err != nil || len(elements) > 0 {
		return len(elements) > 0, err
	}
	for _, set := range []*nftables.Set{g.sets.latch[0], g.sets.latch[1], g.sets.live} {
		if set == nil {
			continue
		}
		listed, err := g.conn.GetSetElements(set)
		if err != nil {
			return false, err
		}
		for _, e := range listed {
			if e.Expires > 0 {
				return true, nil
			}
		}
	}
	return false, nil
}
