package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// ServeDNS serves the world of names on UDP and TCP at the addresses ("192.0.2.53:53") inside the host's namespace,
// from this process. The handler is a *DNS or any other.
func (h *Host) ServeDNS(handler dns.Handler, addrs ...string) (stop func(), err error) {
	var packets []net.PacketConn
	var listeners []net.Listener
	closeAll := func() {
		for _, p := range packets {
			p.Close()
		}
		for _, l := range listeners {
			l.Close()
		}
	}
	for _, a := range addrs {
		p, err := h.ListenPacket("udp", a)
		if err != nil {
			closeAll()
			return nil, fmt.Errorf("host %s: dns: %w", h.Name, err)
		}
		packets = append(packets, p)
		l, err := h.Listen("tcp", a)
		if err != nil {
			closeAll()
			return nil, fmt.Errorf("host %s: dns: %w", h.Name, err)
		}
		listeners = append(listeners, l)
	}
	return serve(handler, packets, listeners), nil
}

// zonesFile holds the zones with their private keys, in the host's own /run.
const zonesFile = "/run/lab-zones"

// StartDNS serves the world as it is now from a process of its own on the host, which outlives this one if survive
// is set (Lab.Keep), otherwise ends with the lab. The context bounds the wait until it serves. Later changes of d do not reach it.
func (h *Host) StartDNS(ctx context.Context, d *DNS, survive bool, addrs ...string) (*Cmd, error) {
	text, err := d.MarshalText()
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(h.File(zonesFile), text, 0o600); err != nil {
		return nil, err
	}
	return h.serve(ctx, task{Do: "dns", Args: append([]string{"lab-dns", zonesFile}, addrs...)}, survive, addrs)
}

// serveZoneFiles is the child of StartDNS.
func serveZoneFiles(args []string) error {
	b, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	d := new(DNS)
	if err := d.UnmarshalText(b); err != nil {
		return err
	}
	var packets []net.PacketConn
	var listeners []net.Listener
	for _, a := range args[1:] {
		p, err := net.ListenPacket("udp", a)
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", a)
		if err != nil {
			return err
		}
		packets, listeners = append(packets, p), append(listeners, l)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, unix.SIGTERM, unix.SIGINT)
	stop := serve(d, packets, listeners)
	<-end
	stop()
	return nil
}
