package control

import (
	"context"
	"net"
	"os"
)

// Who may connect to the socket may read. To change anything takes root, or the daemon's own user (TRUST.md A-36).

type userKey struct{}

// withUser notes whose process is at the other end of a connection.
func withUser(ctx context.Context, c net.Conn) context.Context {
	if l, ok := c.(*limitedConn); ok {
		c = l.Conn
	}
	if u, ok := c.(*net.UnixConn); ok {
		if uid, err := peerUser(u); err == nil {
			return context.WithValue(ctx, userKey{}, uid)
		}
	}
	return ctx
}

// mayChange reports whether the request's user may do more than read.
func mayChange(ctx context.Context) bool {
	uid, ok := ctx.Value(userKey{}).(int)
	return ok && (uid == 0 || uid == os.Geteuid())
}
