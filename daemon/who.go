package daemon

import (
	"net/netip"
	"strconv"
)

// who is the user behind a client of the DNS listeners (TRUST.md A-36): a user of this host, or another host, by its network where it has many addresses.
// Whose socket is gone already shares with all others of whom that is so.
func (d *Daemon) who(tcp bool, client, server netip.AddrPort) string {
	addr := client.Addr()
	if !addr.IsLoopback() && addr != server.Addr() {
		if p, err := addr.Prefix(64); addr.Is6() && err == nil {
			return p.String()
		}
		return addr.String()
	}
	uid, err := d.cfg.Owner(tcp, client, server)
	if err != nil {
		return "unknown"
	}
	return "user " + strconv.FormatUint(uint64(uid), 10)
}
