package daemon

import (
	"net/netip"
	"testing"
	"time"

	"tacit/ipsec/ipsectest"
	"tacit/pad"
	"tacit/policy"
)

// Where the NAT's address is closed nobody comes in, whatever name he tells: that name has a rule of its own is no word for the address, for
// nobody has proven it.
func TestClosedNATStaysClosed(t *testing.T) {
	t.Parallel()
	for _, class := range []policy.Class{policy.Block, policy.Clear} {
		m := newLodging(t, 0)
		c := newEnd(t, "10.0.0.1", "alice.example")
		c.l.d.cfg.File.Identify = "all"
		c.l.d.published.Store(&published{c.addr})
		close(c.gate)
		m.clients = append(m.clients, c)
		c.OnSend(func(d ipsectest.Datagram) {
			d.Remote = netip.AddrPortFrom(theNAT, d.Remote.Port()+10_000)
			m.bob.Deliver(d)
		})
		m.bob.do(t, func(time.Time) {
			r, named := policy.Default(), policy.Default()
			r.Prefixes, r.Class = []netip.Prefix{netip.PrefixFrom(theNAT, 32)}, class
			named.Names = []string{"alice.example."}
			d := m.bob.l.d
			d.cfg.File.Policy = append([]policy.Rule{named, r}, d.cfg.File.Policy...)
			if err := d.obey(d.cfg.File); err != nil {
				t.Fatal(err)
			}
		})
		m.bob.l.d.find = func(string, netip.Addr) (pad.Claim, string) { return pad.Claim{}, "nothing is proven" }
		if o := outcomeOf(t, c.lookup(m.bob)); o.ok {
			t.Errorf("%v: let in", class)
		}
		if n := len(m.rows()); n > 0 {
			t.Errorf("%v: %d clients", class, n)
		}
	}
}
