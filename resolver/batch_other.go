//go:build !linux

package resolver

import (
	"net"
	"net/netip"
	"time"
)

// batch is a UDP socket that queries are read from and answers written to, here one at a time.
type batch struct {
	conn    *net.UDPConn
	file    int // none
	oob     []byte
	packet  [maxUDPReply]byte
	made    [maxUDPReply]byte
	n       int // octets of the query
	from    client
	waiting []byte
}

// newBatch takes the socket of u.
func newBatch(u *net.UDPConn, wildcard bool) (*batch, error) {
	b := &batch{conn: u, file: -1}
	if wildcard {
		b.oob = make([]byte, oobSize)
	}
	return b, nil
}

// read waits for a query. After stop it waits no more.
func (b *batch) read() (int, error) {
	n, oobn, _, from, err := b.conn.ReadMsgUDPAddrPort(b.packet[:], b.oob)
	if err != nil {
		return 0, err
	}
	b.n, b.from, b.waiting = n, client{from, sourceOf(b.oob[:oobn])}, nil
	return 1, nil
}

// query is the query that was read. It is valid until the next read, as is where its answer is to be made.
func (b *batch) query(int) (packet, answer []byte) { return b.packet[:b.n], b.made[:0] }

// answered has the answer sent by flush.
func (b *batch) answered(_ int, answer []byte) { b.waiting = answer }

// flush sends what is answered.
func (b *batch) flush() {
	if b.waiting != nil {
		b.write(b.from, b.waiting)
	}
}

// client is where a query came from, and how its answer leaves from where the query came to.
type client struct {
	addr   netip.AddrPort
	source []byte // a control message, where the socket listens on every address
}

// client is where the query came from.
func (b *batch) client(int) client { return b.from }

// at is its address.
func (c client) at() netip.AddrPort { return c.addr }

// keep is the client for after the next read.
func (c client) keep() client { return c }

// write sends one answer. A client that is gone asks again.
func (b *batch) write(to client, answer []byte) {
	_, _, _ = b.conn.WriteMsgUDPAddrPort(answer, to.source, to.addr)
}

// stop ends the reading, and leaves the socket open for the last answers.
func (b *batch) stop() { _ = b.conn.SetReadDeadline(time.Unix(1, 0)) }

// close closes the socket.
func (b *batch) close() { b.conn.Close() }
