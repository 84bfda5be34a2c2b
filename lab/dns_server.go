package lab

import (
	"net"

	"github.com/miekg/dns"
)

// ServeDNS is dns.Handler: answers, tampered with where Tamper is set, cut to what the client's UDP takes.
func (d *DNS) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	a := d.Answer(q)
	d.mu.Lock()
	tamper := d.Tamper
	d.mu.Unlock()
	if tamper != nil {
		if a = tamper(q, a); a == nil {
			return
		}
	}
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size := dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = max(size, int(o.UDPSize()))
		}
		a.Truncate(size)
	}
	_ = w.WriteMsg(a) // a client that has gone is none of our business
}

// SetTamper sets Tamper while the server runs.
func (d *DNS) SetTamper(f func(query, answer *dns.Msg) *dns.Msg) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Tamper = f
}

// serve serves on the sockets until stop is called.
func serve(h dns.Handler, packets []net.PacketConn, listeners []net.Listener) (stop func()) {
	var servers []*dns.Server
	for _, p := range packets {
		servers = append(servers, &dns.Server{PacketConn: p, Handler: h})
	}
	for _, l := range listeners {
		servers = append(servers, &dns.Server{Listener: l, Handler: h})
	}
	for _, s := range servers {
		ready := make(chan struct{})
		s.NotifyStartedFunc = func() { close(ready) }
		go func() { _ = s.ActivateAndServe() }()
		<-ready
	}
	return func() {
		for _, s := range servers {
			_ = s.Shutdown()
		}
	}
}
