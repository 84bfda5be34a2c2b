package daemon

import (
	"errors"
	"fmt"
	"net/netip"

	"tacit/ike"
	"tacit/ipsec"
	"tacit/pad"
)

// maxAsked bounds the negotiations of a loop with one gateway that are under way: a reverse zone may name it for any number of addresses, and it need not know (TRUST.md A-20).
const maxAsked = 4

var errBusy = errors.New("its gateway is being asked for too many addresses already")

// gateways are those that are being asked.
type gateways struct {
	asked map[ike.SAID]netip.Addr
	under map[netip.Addr]int // how many of them are under way
}

func newGateways() gateways { return gateways{map[ike.SAID]netip.Addr{}, map[netip.Addr]int{}} }

func (g *gateways) begun(id ike.SAID, gateway netip.Addr) {
	g.asked[id] = gateway
	g.under[gateway]++
}

// over ends a negotiation, if it is with a gateway.
func (g *gateways) over(id ike.SAID) {
	gateway, ok := g.asked[id]
	if !ok {
		return
	}
	delete(g.asked, id)
	if g.under[gateway]--; g.under[gateway] == 0 {
		delete(g.under, gateway)
	}
}

// viaGateway has the address's gateway asked in its place: the SA is a tunnel to it for what the address and we send each other. What the gateway cannot be
// (TRUST.md R6) was sorted out when its claim was made.
func (l *loop) viaGateway(p *peer, c pad.Claim, to *ike.Peer) error {
	if l.gateways.under[c.Gateway] >= maxAsked {
		return errBusy
	}
	local, err := source(c.Gateway)
	if err != nil {
		return fmt.Errorf("no route to its gateway: %w", err)
	}
	to.Local, to.Remote = netip.AddrPortFrom(local, ikePort), netip.AddrPortFrom(c.Gateway, ikePort)
	to.Auth.Mode, to.Auth.Selector = ipsec.Tunnel, ipsec.Host(p.local, p.remote)
	return nil
}
