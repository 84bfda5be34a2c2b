package daemon

import (
	"errors"
	"net/netip"

	"tacit/ike"
	"tacit/ipsec"
	"tacit/pad"
)

var errNoRoute = errors.New("there is no route to the gateway")

// viaGateway has the address's gateway asked in its place: the SA is a tunnel to it for what the address and we send each other. It reports whether there is
// a way to the gateway. What the gateway cannot be (TRUST.md R6) was sorted out when its claim was made.
func (l *loop) viaGateway(p *peer, c pad.Claim, to *ike.Peer) bool {
	local, err := source(c.Gateway)
	if err != nil {
		return false
	}
	to.Local, to.Remote = netip.AddrPortFrom(local, ikePort), netip.AddrPortFrom(c.Gateway, ikePort)
	to.Auth.Mode, to.Auth.Selector = ipsec.Tunnel, ipsec.Host(p.local, p.remote)
	return true
}
