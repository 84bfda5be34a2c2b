// Package guard is what both data planes ask of nftables: to divert what must be protected, to drop what comes in clear, and to
// leave alone what is exempt. Every element carries a timeout, so that what a dead process left ends by itself.
//
// All of it is one table of the inet family. Its chains see packets of this host only: OUTPUT is never traversed by what is
// forwarded, and the inbound chain asks for one of our own addresses as the destination. A guest that is masqueraded speaks as our address,
// and is answered at it: what comes for it in clear from a peer in divert or block is dropped.
//
//	out (route, hook output)      own . peer in divert -> exempt? else mark, so that the kernel routes the packet anew
//	                              own . peer in block  -> exempt? else refused at once
//	leak (filter, postrouting)    own . peer in divert, but about to leave by another device: exempt? else dropped. Nothing gets here
//	                              unless somebody else's rule took our mark away.
//	in  (filter, hook prerouting) from the data plane's device -> marked, so that strict rp_filter finds the way back
//	                              own . peer in divert or block -> exempt? else counted and dropped
//
// What our own sockets of IKE and ESP send is let go before out and leak look at its addresses.
//
// These hooks are there while anything stands, and for a minute after: see hooks.go. Without a peer no packet meets us.
//
// What stands on two addresses goes before what stands on a prefix, see prefix.go. DNS is exempt by flow and not by port alone; see dns.go.
// So are ports that a rule leaves in clear; see ports.go.
package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The marks that tacit puts on sockets and packets. Other bits of a mark are left as they are.
const (
	MarkMask   uint32 = 0xff00_0000
	MarkOwn    uint32 = 0x7a00_0000 // SO_MARK of our own sockets: never diverted
	MarkDivert uint32 = 0x7b00_0000 // packets on their way into the data plane
	MarkWatch  uint32 = 0x7c00_0000 // the same, of Rules.Watch: if nobody is there they leave by the way that they would have taken
)

// TableName is the name of our table, in the inet family.
const TableName = "tacit"

// maxSeen bounds the dynamic sets that count clear packets of protected peers, maxStrange those of peers that only rules of prefixes concern:
// anybody can make such up. They are listed often, and listing goes through the room that there is and not only through what is in it. Who finds a set full
// is dropped all the same.
const (
	maxSeen    = 8192
	maxStrange = 1024

	// maxWatched bounds the addresses of a family whose packets go by the data plane because of Rules.Watch, in so long a time: anybody can have us answer
	// thousands. The packets of more leave by their own way, and take no place from what waits.
	maxWatched     = 512
	watchedTimeout = 3 * time.Second
)

// chunk is how many elements travel in one netlink message: its attributes are limited to 64 KiB.
const chunk = 400

// replies is the room for the kernel's replies, in octets: it answers each message of a transaction, and echoes each rule.
const replies = 4 << 20

// requests is the room for a transaction, in octets: the kernel refuses a longer one as a whole, and at first it has room for 4,000 elements only.
const requests = 64 << 20

// Verdict is what becomes of clear packets between two addresses.
type Verdict uint8

const (
	// Pass leaves them alone.
	Pass Verdict = iota
	// Divert sends ours to the data plane and drops theirs.
	Divert
	// Block refuses ours at once and drops theirs.
	Block
	// Clear leaves them alone, and keeps the rules of prefixes off.
	Clear
)

func (v Verdict) String() string { return [...]string{"pass", "divert", "block", "clear"}[v] }

// Key is one of our own addresses and a peer's. Both are of one family.
type Key struct{ Own, Peer netip.Addr }

// Change is one step of [Guard.Apply]: from now on, and for Timeout unless it is renewed, Key has the Verdict.
type Change struct {
	Key     Key
	Verdict Verdict
	Timeout time.Duration // at least a millisecond; of no meaning with Pass
}

// Element is a verdict that stands in the kernel, with what is left of its time.
type Element struct {
	Key     Key
	Verdict Verdict
	Left    time.Duration
}

// Seen counts the clear packets between two addresses that were dropped.
type Seen struct {
	Key     Key
	Packets uint64
}

// Config says where a Guard works. One of Device and Queue is set.
type Config struct {
	Device string // the data plane's device: what comes from it is not clear
	Queue  uint16 // where the kernel does ESP: the queue (nfnetlink_queue) to which packets go that wait; see kernel.go

	// Routing is told before packets are marked, and when none are any more: the routing of marked packets is the data plane's. It may be nil,
	// and may be told the same again. An error of the former is that of the change that asked for it.
	Routing func(marked bool) error

	Fault func(op string) error // tests make a change fail before it reaches the kernel; nil otherwise
}

// Guard owns the table. It keeps no lock: its methods are called by one owner at a time.
type Guard struct {
	cfg        Config
	netns      *os.File // the namespace of the caller of Open: a broken netlink socket is opened again in it
	conn       *nftables.Conn
	socket     *netlink.Conn // of conn, for what that has no names for
	table      *nftables.Table
	sets       sets
	have       map[Key]Verdict
	latch      map[Key]bool
	generation int  // of rules, in force
	left       bool // the rules of a dead process stand
	ruled      bool // rules of ours stand
	hooks      presence
	idle       time.Time // since when nothing is known to stand; zero: something is

	noRules error // why there are no sets for rules

	last     map[Key]Change // the room of a transaction, for the next one
	del, add elementLists
}

// Open makes the table in the network namespace of the calling thread. Elements that a dead process left are kept, with
// what is left of their time, and returned.
func Open(cfg Config) (*Guard, []Element, error) {
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, nil, fmt.Errorf("guard: open network namespace: %w", err)
	}
	g := &Guard{cfg: cfg, netns: ns, have: make(map[Key]Verdict), latch: make(map[Key]bool), last: make(map[Key]Change), del: make(elementLists), add: make(elementLists)}
	if err := g.dial(); err != nil {
		_ = ns.Close()
		return nil, nil, hint("open nftables", err)
	}
	left, err := g.build()
	if err != nil {
		_ = g.closeSockets()
		return nil, nil, hint("make table inet "+TableName, err)
	}
	_ = g.rest() // no reason not to open: Rest tries again
	return g, left, nil
}

// dial opens the netlink socket in the namespace that Open saw, whatever thread calls.
func (g *Guard) dial() error {
	room := func(c *netlink.Conn) error {
		g.socket = c
		return errors.Join(c.SetReadBuffer(replies), c.SetWriteBuffer(requests))
	}
	conn, err := nftables.New(nftables.WithNetNSFd(int(g.netns.Fd())), nftables.AsLasting(), nftables.WithSockOptions(room))
	if err != nil {
		return err
	}
	g.conn = conn
	return nil
}

// build replaces a table that is there with a new one, in one transaction, and carries its elements over. Where the kernel refuses what the
// rules of prefixes need there are none.
func (g *Guard) build() ([]Element, error) {
	left, rules, lasting, err := g.existing()
	if err != nil {
		return nil, err
	}
	err = g.fill(left, rules, lasting, true)
	if err == nil || len(rules) > 0 { // a kernel that had rules has what they need
		g.left = len(rules) > 0
		return left, err
	}
	if e := errors.Join(g.conn.CloseLasting(), g.dial()); e != nil {
		return nil, errors.Join(err, e)
	}
	g.noRules = err
	return left, g.fill(left, nil, 0, false)
}

// fill makes the table with these elements. It has hooks, even if nothing stands: a kernel that lacks what they need is known from the beginning.
func (g *Guard) fill(left []Element, rules ruleElements, lasting time.Duration, prefixes bool) error {
	g.table = &nftables.Table{Family: nftables.TableFamilyINet, Name: TableName}
	g.sets = sets{}
	g.conn.AddTable(g.table) // so that the deletion finds one
	g.conn.DelTable(g.table)
	g.conn.AddTable(g.table)
	if err := g.addSets(prefixes); err != nil {
		return err
	}
	g.addChains()
	if len(left)+len(rules) > 0 {
		if err := g.route(true); err != nil {
			return err
		}
		g.hooks = awake
	}
	add := make(elementLists)
	for _, e := range left {
		add.append(g.sets.of(e.Key, e.Verdict), nftables.SetElement{Key: encodeKey(e.Key), Timeout: e.Left})
		g.have[e.Key] = e.Verdict
	}
	if err := add.each(g.conn.SetAddElements); err != nil {
		return err
	}
	g.generation = 0
	if len(rules) == 0 {
		return g.conn.Flush()
	}
	if err := errors.Join(g.fillRules(0, rules), g.holdAll(lasting)); err != nil {
		return err
	}
	if err := g.conn.Flush(); err != nil {
		return err
	}
	if err := g.switchRules(0, true, lasting); err != nil {
		return err
	}
	return g.conn.Flush()
}

// existing reads the elements of a table that a dead process left, and its rules, with how long those stand yet. There may be none.
func (g *Guard) existing() (left []Element, rules ruleElements, lasting time.Duration, err error) {
	table, err := g.conn.ListTableOfFamily(TableName, nftables.TableFamilyINet)
	if err != nil || table == nil {
		return nil, nil, 0, nil // no table of ours is the ordinary case
	}
	if err := g.setHooks(true); err != nil { // what replaces the table must not change that too
		return nil, nil, 0, err
	}
	if left, err = g.elements(table); err != nil {
		return nil, nil, 0, err
	}
	rules, lasting = g.existingRules(table)
	return left, rules, lasting, nil
}

// Elements returns what stands in the kernel now.
func (g *Guard) Elements() ([]Element, error) { return g.elements(g.table) }

// Apply makes the changes in one transaction: all or none. A failed transaction is tried once more after the kernel's
// own state was read, since an element that timed out cannot be deleted.
func (g *Guard) Apply(changes []Change) error {
	if len(changes) == 0 {
		return nil
	}
	for _, c := range changes {
		if err := c.Key.check(); err != nil {
			return fmt.Errorf("guard: %w", err)
		}
	}
	if err := g.fault("change elements"); err != nil {
		return err
	}
	err := g.transact(changes)
	if err != nil {
		if e := g.resync(); e != nil {
			return hint("change elements", errors.Join(err, e))
		}
		if err = g.transact(changes); err != nil {
			return hint("change elements", err)
		}
	}
	for _, c := range changes {
		if c.Verdict == Pass {
			delete(g.have, c.Key)
		} else {
			g.have[c.Key] = c.Verdict
		}
	}
	return nil
}

func (g *Guard) fault(op string) error {
	if g.cfg.Fault == nil {
		return nil
	}
	if err := g.cfg.Fault(op); err != nil {
		return hint(op, err)
	}
	return nil
}

// transact deletes and adds in one batch: an element cannot be given another timeout on kernels before 6.12, and to packets the
// change is one step.
func (g *Guard) transact(changes []Change) error {
	if err := g.gather(changes); err != nil {
		return err
	}
	return g.flush(slices.ContainsFunc(changes, func(c Change) bool { return c.Verdict != Pass }))
}

// gather writes the changes for the next flush.
func (g *Guard) gather(changes []Change) error {
	defer func() {
		if len(changes) > 2*chunk {
			g.last = make(map[Key]Change)
		}
		clear(g.last)
		g.del.empty()
		g.add.empty()
	}()
	for _, c := range changes {
		g.last[c.Key] = c // of several changes to a key the last one counts
	}
	for _, c := range g.last {
		el := nftables.SetElement{Key: encodeKey(c.Key)}
		if had := g.have[c.Key]; had != Pass {
			g.del.append(g.sets.of(c.Key, had), el)
		}
		if c.Verdict != Pass {
			el.Timeout = max(c.Timeout, time.Millisecond)
			g.add.append(g.sets.of(c.Key, c.Verdict), el)
		}
	}
	return errors.Join(g.del.each(g.conn.SetDeleteElements), g.add.each(g.conn.SetAddElements))
}

// resync opens a new socket, since replies to a failed batch may be left in the old one, and learns what the kernel has.
func (g *Guard) resync() error {
	_ = g.conn.CloseLasting()
	if err := g.dial(); err != nil {
		return err
	}
	elements, err := g.Elements()
	if err != nil {
		return err
	}
	clear(g.have)
	for _, e := range elements {
		g.have[e.Key] = e.Verdict
	}
	return nil
}

// Close ends everything, or with keep leaves the elements to their timeouts.
func (g *Guard) Close(keep bool) error {
	var err error
	if !keep {
		g.conn.DelTable(g.table)
		if e := g.conn.Flush(); e != nil && !errors.Is(e, unix.ENOENT) {
			err = hint("remove table inet "+TableName, e)
		}
	}
	return errors.Join(err, g.closeSockets())
}

func (g *Guard) closeSockets() error {
	return errors.Join(g.conn.CloseLasting(), g.netns.Close())
}

// Cleanup removes a table that a dead process left in the namespace of the calling thread. It is no error if there is none.
func Cleanup() error {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return hint("open nftables", err)
	}
	defer func() { _ = conn.CloseLasting() }()
	conn.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: TableName})
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return hint("remove table inet "+TableName, err)
	}
	return nil
}

// hint names the operation and what usually helps.
func hint(op string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("guard: %s: %w (needs CAP_NET_ADMIN)", op, err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		return fmt.Errorf("guard: %s: %w (does the kernel have nf_tables with the inet family?)", op, err)
	}
	return fmt.Errorf("guard: %s: %w", op, err)
}
