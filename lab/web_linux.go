package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// Fetch is the command of a program like any other: it gets a page with net/http's client and Go's own resolver and
// writes it to its standard output. Names are looked up as the host's /etc/resolv.conf says. The network is tcp, tcp4
// or tcp6, as curl has -4 and -6.
func (h *Host) Fetch(ctx context.Context, network, url string) *Cmd {
	return h.command(ctx, task{Do: "fetch", Args: []string{"lab-fetch", network, url}})
}

// StartWeb serves a page over HTTP from a process of its own on the host, at addresses such as "192.0.2.2:80". Each
// answer ends with a line that says who asked. The process outlives this one if survive is
// set (Lab.Keep); otherwise it ends with the lab. The context bounds the wait until it serves.
func (h *Host) StartWeb(ctx context.Context, page string, survive bool, addrs ...string) (*Cmd, error) {
	return h.serve(ctx, task{Do: "web", Args: append([]string{"lab-web", page}, addrs...)}, survive, addrs)
}

// serve starts a server, and waits until it accepts connections at its addresses.
func (h *Host) serve(ctx context.Context, t task, survive bool, addrs []string) (*Cmd, error) {
	c := h.command(context.WithoutCancel(ctx), t)
	c.Survive = survive
	if err := c.Start(); err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if err := h.AwaitTCP(ctx, c, a); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// AwaitTCP waits, at most twenty seconds, until the process on the host accepts connections at the address.
func (h *Host) AwaitTCP(ctx context.Context, c *Cmd, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		conn, err := h.Dial(ctx, "tcp", addr)
		if err == nil {
			conn.Close()
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("host %s: nobody at %s: %w", h.Name, addr, err)
		case <-c.Done():
			return fmt.Errorf("host %s: %s has ended: %w: %s", h.Name, c.task.Args[0], c.Wait(), &c.said)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// fetch is the child of Fetch.
func fetch(network, url string) error {
	c := http.Client{Timeout: 10 * time.Second}
	if network != "tcp" {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.DialContext = func(ctx context.Context, _, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
		c.Transport = t
	}
	r, err := c.Get(url)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, r.Status)
	}
	_, err = io.Copy(os.Stdout, r.Body)
	return err
}

// web is the child of StartWeb.
func web(page string, addrs []string) error {
	failed := make(chan error, len(addrs))
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s\nyou are %s\n", page, r.RemoteAddr)
	})
	for _, a := range addrs {
		l, err := net.Listen("tcp", a)
		if err != nil {
			return err
		}
		go func() { failed <- http.Serve(l, handler) }()
	}
	return <-failed
}
