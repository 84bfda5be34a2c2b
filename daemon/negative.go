package daemon

import (
	"container/list"
	"net/netip"
	"time"
)

// The negative cache of traffic without a lookup: addresses whose reverse zone names no key, or could not be asked. It is bounded, whatever is sent to
// whomever; the oldest goes first.

const (
	maxDenials   = 32768            // of all loops together
	leastDenial  = 30 * time.Second // a denial counts at least so long, whatever its TTL
	mostDenial   = 10 * time.Minute // and at most
	firstShut    = time.Second      // what could not be found out is asked again then, and after longer and longer
	mostShut     = time.Minute
	denialLocals = 8 // of our own addresses, of which an entry knows that they speak to the address
)

// denial is what is known of an address without a key.
type denial struct {
	addr  netip.Addr
	until time.Time
	why   string
	shut  bool // there may be a key, but no proof of it or of the contrary: nothing leaves in clear
	again int  // shut: how often it had been so before
	// locals are our addresses for which the data plane has a policy on the address because of this.
	locals []netip.Addr

	all, net *list.Element // places in the order of all, and of its network
}

// denials are the cache of a loop. No network (IPv4 /24, IPv6 /56) has more than half of it.
type denials struct {
	max      int
	of       map[netip.Addr]*denial
	order    list.List // *denial, the oldest first
	networks map[netip.Prefix]*list.List
}

func newDenials(max int) *denials {
	return &denials{max: max, of: map[netip.Addr]*denial{}, networks: map[netip.Prefix]*list.List{}}
}

// get returns what is known of an address; nil: nothing that still counts.
func (c *denials) get(now time.Time, addr netip.Addr) *denial {
	if d := c.of[addr]; d != nil && now.Before(d.until) {
		return d
	}
	return nil
}

// failed is how long what could not be found out counts, and how often that has been so before.
func (c *denials) failed(addr netip.Addr) (d time.Duration, again int) {
	if old := c.of[addr]; old != nil && old.shut {
		again = old.again + 1
	}
	return min(firstShut<<min(again, 10), mostShut), again
}

// put remembers a denial in the place of what was known of its address, whose policies it takes over. gone is what had to make room for it.
func (c *denials) put(d *denial) (gone *denial) {
	net := network(d.addr)
	if old := c.of[d.addr]; old != nil {
		d.locals = old.locals
		c.drop(old)
	}
	if of := c.networks[net]; of != nil && of.Len() >= max(1, c.max/2) {
		gone = of.Front().Value.(*denial)
	} else if len(c.of) >= c.max {
		gone = c.order.Front().Value.(*denial)
	}
	if gone != nil {
		c.drop(gone)
	}
	of := c.networks[net]
	if of == nil {
		of = list.New()
		c.networks[net] = of
	}
	c.of[d.addr] = d
	d.all, d.net = c.order.PushBack(d), of.PushBack(d)
	return gone
}

// drop forgets a denial.
func (c *denials) drop(d *denial) {
	net := network(d.addr)
	delete(c.of, d.addr)
	c.order.Remove(d.all)
	of := c.networks[net]
	of.Remove(d.net)
	if of.Len() == 0 {
		delete(c.networks, net)
	}
}

// expire forgets what has ended, at most n at once, of those at the head of the order.
func (c *denials) expire(now time.Time, n int) {
	for e := c.order.Front(); e != nil && n > 0; n-- {
		d, next := e.Value.(*denial), e.Next()
		if end := d.until; !now.Before(end) && (!d.shut || now.Sub(end) >= mostShut) { // until then a repeat counts for longer
			c.drop(d)
		}
		e = next
	}
}
