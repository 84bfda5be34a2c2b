package upstream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// secretServer is a server that is asked over TLS.
type secretServer struct {
	addr  netip.AddrPort
	pin   string // of its key
	roots *x509.CertPool
	conns atomic.Int32
	sizes chan int // of queries
	// reply is what comes back for a question; "" ends the connection, "-" is silence.
	reply atomic.Pointer[func(q *dns.Msg) []byte]
}

// newSecretServer serves with a certificate for dns.example and its address, signed by an authority of the test's own.
func newSecretServer(t *testing.T, change func(c *x509.Certificate)) *secretServer {
	t.Helper()
	caKey, key := newKey(t), newKey(t)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	if ca, err = x509.ParseCertificate(caDER); err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{"dns.example"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: time.Now().Add(time.Hour)}
	if change != nil {
		change(leaf)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(spki)
	s := &secretServer{pin: pinPrefix + base64.StdEncoding.EncodeToString(digest[:]), roots: x509.NewCertPool(), sizes: make(chan int, 1000)}
	s.roots.AddCert(ca)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{NextProtos: []string{"dot"}, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().(*net.TCPAddr).AddrPort()
	s.set(func(q *dns.Msg) []byte { return reply(q, good, nil) })
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { s.serve(c) })
		}
	})
	return s
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (s *secretServer) set(f func(q *dns.Msg) []byte) { s.reply.Store(&f) }

func (s *secretServer) serve(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	var write sync.Mutex
	var wg sync.WaitGroup
	defer wg.Wait()
	for first := true; ; first = false {
		b, err := readFrame(c)
		if err != nil {
			return
		}
		if first {
			s.conns.Add(1)
		}
		s.sizes <- len(b)
		q := new(dns.Msg)
		if q.Unpack(b) != nil {
			return
		}
		wg.Go(func() {
			p := (*s.reply.Load())(q)
			write.Lock()
			defer write.Unlock()
			switch string(p) {
			case "":
				c.Close()
			case "-":
			default:
				_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...))
			}
		})
	}
}

// server is the configuration's word for it, with what it has to prove.
func (s *secretServer) server(t *testing.T, proof string) Server {
	t.Helper()
	text := "tls://" + s.addr.String()
	if proof != "" {
		text += "#" + proof
	}
	u, err := ParseServer(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// Strict (RFC 8310, 5): the server proves its name, its address or its key, or is asked nothing at all.
func TestTLSIsStrict(t *testing.T) {
	s := newSecretServer(t, nil)
	late := newSecretServer(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	unnamed := newSecretServer(t, func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, nil })
	wrongPin := pinPrefix + base64.StdEncoding.EncodeToString(make([]byte, sha256.Size))
	for _, c := range []struct {
		what  string
		at    *secretServer
		proof string
		roots *x509.CertPool
		fails string // in the error; empty: it is asked
	}{
		{"name", s, "dns.example", s.roots, ""},
		{"address", s, "", s.roots, ""},
		{"pin", s, s.pin, x509.NewCertPool(), ""},
		{"one of two pins", s, wrongPin + "," + s.pin, x509.NewCertPool(), ""},
		{"name and pin", s, "dns.example," + s.pin, s.roots, ""},
		{"pin of a certificate that names nobody", unnamed, unnamed.pin, x509.NewCertPool(), ""},
		{"wrong name", s, "other.example", s.roots, "other.example"},
		{"wrong pin", s, wrongPin, s.roots, "pinned"},
		{"name, and a wrong pin", s, "dns.example," + wrongPin, s.roots, "pinned"},
		{"a wrong name, and the pin", s, "other.example," + s.pin, s.roots, "other.example"},
		{"unknown authority", s, "dns.example", x509.NewCertPool(), "unknown authority"},
		{"unknown authority, though the pin is right", s, "dns.example," + s.pin, x509.NewCertPool(), "unknown authority"},
		{"address that is not in the certificate", unnamed, "", unnamed.roots, "127.0.0.1"},
		{"expired", late, "dns.example", late.roots, "expired"},
	} {
		t.Run(c.what, func(t *testing.T) {
			r, err := New(Config{Servers: []Server{c.at.server(t, c.proof)}, Roots: c.roots})
			if err != nil {
				t.Fatal(err)
			}
			before := len(c.at.sizes)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			m, err := r.Exchange(ctx, validatorQuery("bob.example."))
			if c.fails == "" {
				if err != nil || len(m.Answer) != 1 || m.Id != 4711 {
					t.Errorf("got %v, %v", m, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("got %v, %v, want an error with %q", m, err, c.fails)
			}
			if n := len(c.at.sizes) - before; n > 0 {
				t.Errorf("%d queries were sent", n)
			}
		})
	}
}

// One connection serves many questions at once, in any order; every query is padded (RFC 8467); a connection that ended while idle is made anew.
func TestTLSConnections(t *testing.T) {
	s := newSecretServer(t, nil)
	r, err := New(Config{Servers: []Server{s.server(t, "dns.example")}, Roots: s.roots})
	if err != nil {
		t.Fatal(err)
	}
	s.set(func(q *dns.Msg) []byte {
		if strings.HasPrefix(q.Question[0].Name, "slow") {
			time.Sleep(300 * time.Millisecond)
		}
		return reply(q, good, nil)
	})
	many := func() {
		var wg sync.WaitGroup
		for i := range 40 {
			name := strings.Repeat("x", i+1) + ".example."
			if i%10 == 0 {
				name = "slow." + name
			}
			wg.Go(func() {
				q := validatorQuery(name)
				m, err := r.Exchange(t.Context(), q)
				if err != nil || m.Question[0].Name != name || len(m.Answer) != 1 || len(q.IsEdns0().Option) != 0 {
					t.Errorf("%s: %v, %v", name, m, err)
				}
			})
		}
		wg.Wait()
	}
	many()
	if n := s.conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	way := r.ways[0].carrier.(*secret)
	is := way.current(nil)
	if c, err := way.establish(); c != is || err != nil {
		t.Errorf("who looked before it was up is given %p, %v; want %p", c, err, is)
	}
	for len(s.sizes) > 0 {
		if n := <-s.sizes; n%paddedTo != 0 {
			t.Errorf("a query of %d octets", n)
		}
	}
	r.ways[0].renew() // as when it was idle for long
	many()
	s.set(func(q *dns.Msg) []byte { return nil }) // it ends the connection for every question
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if m, err := r.Exchange(ctx, validatorQuery("bob.example.")); err == nil {
		t.Errorf("got %v", m)
	}
	s.set(func(q *dns.Msg) []byte { return reply(q, good, nil) })
	many()
}

// A server that does not prove itself is not waited for: the next one is asked at once, and without one there is no answer, at once.
func TestTLSUntrustedIsNotWaitedFor(t *testing.T) {
	s := newSecretServer(t, nil)
	f := newForwarder(t, func(q *dns.Msg, _ bool) [][]byte { return [][]byte{reply(q, good, nil)} })
	plain := Server{Addr: f.addr, Port: f.addr.Port()}
	wrongPin := pinPrefix + base64.StdEncoding.EncodeToString(make([]byte, sha256.Size))
	for _, c := range []struct {
		what    string
		servers []Server
		fails   bool
	}{
		{"another name, alone", []Server{s.server(t, "other.example")}, true},
		{"another key, alone", []Server{s.server(t, wrongPin)}, true},
		{"another name, then a second server", []Server{s.server(t, "other.example"), plain}, false},
	} {
		u, err := New(Config{Servers: c.servers, Roots: s.roots})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, err = u.Exchange(t.Context(), validatorQuery("bob.example."))
		if took := time.Since(start); (err != nil) != c.fails || took >= firstTimeout {
			t.Errorf("%s: %v after %v", c.what, err, took)
		}
	}
}

// What comes over TLS is no more believed than what comes over UDP: another id or question, a broken message or silence costs its question only.
func TestTLSAnswers(t *testing.T) {
	s := newSecretServer(t, nil)
	r, err := New(Config{Servers: []Server{s.server(t, "dns.example")}, Roots: s.roots})
	if err != nil {
		t.Fatal(err)
	}
	for what, f := range map[string]func(q *dns.Msg) []byte{
		"another id":       func(q *dns.Msg) []byte { return reply(q, good, func(m *dns.Msg) { m.Id++ }) },
		"another question": func(q *dns.Msg) []byte { return reply(q, good, func(m *dns.Msg) { m.Question[0].Name = "y.example." }) },
		"truncated":        func(q *dns.Msg) []byte { return reply(q, good, func(m *dns.Msg) { m.Truncated = true }) },
		"silence":          func(q *dns.Msg) []byte { return []byte("-") },
		"no message":       func(q *dns.Msg) []byte { b := reply(q, good, nil); return b[:len(b)-20] },
	} {
		s.set(func(q *dns.Msg) []byte {
			if strings.HasPrefix(q.Question[0].Name, "bad") {
				return f(q)
			}
			time.Sleep(20 * time.Millisecond)
			return reply(q, good, nil)
		})
		var wg sync.WaitGroup
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if m, err := r.Exchange(ctx, validatorQuery("bad.example.")); err == nil {
				t.Errorf("%s: got %v", what, m)
			}
		})
		for range 5 {
			wg.Go(func() {
				if _, err := r.Exchange(t.Context(), validatorQuery("bob.example.")); err != nil {
					t.Errorf("%s: another question: %v", what, err)
				}
			})
		}
		wg.Wait()
	}
	// A busy machine may take one for dead; if bad answers cost their connection there were as many as those.
	if n := s.conns.Load(); n > 2 {
		t.Errorf("%d connections", n)
	}
}

// A server that is given by name is looked up by the other ways, whose word on its address is all that is taken: it proves its name.
func TestTLSByName(t *testing.T) {
	s := newSecretServer(t, nil)
	var lies atomic.Bool
	plain := newForwarder(t, func(q *dns.Msg, _ bool) [][]byte {
		if !strings.EqualFold(q.Question[0].Name, "dns.example.") || q.Question[0].Qtype != dns.TypeA {
			return [][]byte{reply(q, "", func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure })}
		}
		if lies.Load() {
			return [][]byte{reply(q, "x. 60 IN A 127.0.0.2", nil)}
		}
		return [][]byte{reply(q, "x. 60 IN A 127.0.0.1", nil)}
	})
	named, err := ParseServer("tls://dns.example:" + s.addr.String()[len("127.0.0.1:"):])
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var learned []netip.Addr
	r, err := New(Config{Servers: []Server{named, {Addr: plain.addr, Port: plain.addr.Port()}}, Roots: s.roots, Learned: func(a netip.Addr) {
		mu.Lock()
		defer mu.Unlock()
		learned = append(learned, a)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := r.Exchange(t.Context(), validatorQuery("bob.example.")); err != nil || len(m.Answer) != 1 {
		t.Errorf("got %v, %v", m, err)
	}
	lies.Store(true)
	r.Renew()
	if m, err := r.Exchange(t.Context(), validatorQuery("bob.example.")); err != nil || m.Rcode != dns.RcodeServerFailure {
		t.Errorf("with a forged address: got %v, %v", m, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(learned) != 1 || learned[0] != loop {
		t.Errorf("learned %v, want where it has proven its name, and no more", learned)
	}
}
