package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// daemon is a Handler that answers what it is told.
type daemon struct {
	status Status
	err    error
}

func (d daemon) Status(context.Context) (Status, error) { return d.status, d.err }
func (d daemon) Reload(context.Context) error           { return d.err }

func (d daemon) Events(_ context.Context, after uint64) (Events, error) {
	return Events{Events: []Event{{Seq: after + 1, Kind: SAUp}}, Next: after + 1}, d.err
}

// serve runs a server on a socket of its own until the test ends.
func serve(t *testing.T, h Handler) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "run", "tacit.sock")
	s, err := Listen(path, h)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is left: %v", err)
		}
	})
	return path
}

func example() Status {
	since := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	return Status{
		SchemaVersion: SchemaVersion, Version: "0.1", Since: since, Name: "alice.example",
		Dataplane: Dataplane{"tun", "this kernel has no ESP"},
		DNS: DNS{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")},
			Upstream: []string{"192.0.2.53:53"}, Ways: []Way{{Name: "192.0.2.53:53", Why: "no answer"}}, Validation: "own", Stub: "ok"},
		Peers: []Peer{{Address: netip.MustParseAddr("192.0.2.1"), Local: netip.MustParseAddr("192.0.2.2"), Names: []string{"bob.example"}, State: Protected,
			Assurance: Authenticated, KeyID: "k", Suite: "s", Mode: "transport", Since: since, BytesIn: 1, BytesOut: 2, Why: "w"}},
		Counters: map[string]uint64{"dns_queries": 3},
	}
}

func TestStatus(t *testing.T) {
	want := example()
	got, err := Dial(serve(t, daemon{status: want})).Status(t.Context())
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

// The names of the fields are an interface: this test changes only when SchemaVersion does.
func TestSchema(t *testing.T) {
	b, err := json.Marshal(example())
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"schema_version":1,"version":"0.1","since":"2030-01-02T03:04:05Z","name":"alice.example",` +
		`"dataplane":{"kind":"tun","why":"this kernel has no ESP"},` +
		`"dns":{"listen":["127.0.0.1:53"],"upstream":["192.0.2.53:53"],"ways":[{"name":"192.0.2.53:53","ok":false,"why":"no answer"}],"validation":"own","stub":"ok"},` +
		`"peers":[{"address":"192.0.2.1","local":"192.0.2.2","names":["bob.example"],"state":"protected","assurance":"authenticated","key_id":"k",` +
		`"suite":"s","mode":"transport","since":"2030-01-02T03:04:05Z","bytes_in":1,"bytes_out":2,"why":"w"}],` +
		`"counters":{"dns_queries":3}}`
	if string(b) != want {
		t.Errorf("got\n%s\nwant\n%s", b, want)
	}
}

func TestErrorsComeThrough(t *testing.T) {
	c := Dial(serve(t, daemon{err: errors.New("the loop is gone")}))
	if _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "the loop is gone") {
		t.Errorf("got %v", err)
	}
}

// The same holds for the events, which are the log's keys too.
func TestEventSchema(t *testing.T) {
	b, err := json.Marshal(Event{Seq: 1, Time: time.Unix(1e9, 0).UTC(), Kind: SAUp, Address: netip.MustParseAddr("192.0.2.1"), Name: "n", Assurance: Anonymous, Why: "w", LeftOut: 2})
	const want = `{"seq":1,"time":"2001-09-09T01:46:40Z","event":"sa-up","address":"192.0.2.1","local":"","name":"n","assurance":"anonymous",` +
		`"key_id":"","suite":"","why":"w","left_out":2}`
	if err != nil || string(b) != want {
		t.Errorf("got  %s (%v)\nwant %s", b, err, want)
	}
}

// Events are asked for by the number of the last one, and nothing else is a number.
func TestEvents(t *testing.T) {
	path := serve(t, daemon{})
	e, err := Dial(path).Events(t.Context(), 6)
	if err != nil || e.SchemaVersion != SchemaVersion || len(e.Events) != 1 || e.Events[0].Seq != 7 || e.Next != 7 {
		t.Errorf("got %+v, %v", e, err)
	}
	if err := Dial(path).do(t.Context(), "GET", "/v1/events?after=-1", &e); err == nil || !strings.Contains(err.Error(), "want a number") {
		t.Errorf("got %v", err)
	}
}

func TestOtherSchema(t *testing.T) {
	var s Status
	c := Dial(serve(t, daemon{}))
	if err := c.do(t.Context(), "GET", "/v2/status", &s); err == nil || !strings.Contains(err.Error(), "no such request") {
		t.Errorf("got %v", err)
	}
}

func TestModes(t *testing.T) {
	path := serve(t, daemon{})
	for p, want := range map[string]fs.FileMode{path: 0o660, filepath.Dir(path): 0o755} {
		if st, err := os.Stat(p); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", p, st.Mode(), err, want)
		}
	}
	if left, _ := filepath.Glob(path + ".*"); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestNotRunning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tacit.sock")
	if _, err := Dial(path).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no socket: %v", err)
	}
	stale(t, path)
	if _, err := Dial(path).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a dead daemon's socket: %v", err)
	}
}

// stale leaves a socket as a daemon does that was killed.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestListenReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tacit.sock")
	stale(t, path)
	s, err := Listen(path, daemon{})
	if err != nil {
		t.Fatalf("a dead daemon's socket: %v", err)
	}
	if _, err := Listen(path, daemon{}); err == nil || !strings.Contains(err.Error(), "another daemon is running") {
		t.Errorf("a live daemon's socket: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, daemon{}); err == nil {
		t.Error("a file was replaced by a socket")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file: %q, %v", b, err)
	}
}

// TestBounds: what is oversize, partial or nonsense gets an error or the end of the connection; and the server goes on.
func TestBounds(t *testing.T) {
	path := serve(t, daemon{status: example()})
	for _, request := range []string{
		"GET /v1/status HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 4*maxHeader+1<<16) + "\r\n\r\n",
		"POST /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n{",
		"\x00\x01\x02\r\n\r\n",
		"GET /v1/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET / HTTP/1.1\r\n",
	} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(2 * time.Second))
		fmt.Fprint(c, request)
		c.(*net.UnixConn).CloseWrite()
		if b, _ := io.ReadAll(io.LimitReader(c, 1<<20)); strings.HasPrefix(string(b), "HTTP/1.1 200") {
			t.Errorf("%.40q: %.40q", request, b)
		}
		c.Close()
	}
	if _, err := Dial(path).Status(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// Connections that say nothing keep others waiting only until their places are free again.
func TestIdleConnections(t *testing.T) {
	path := serve(t, daemon{status: example()})
	var idle []net.Conn
	for range maxConns {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	got := make(chan error)
	go func() {
		_, err := Dial(path).Status(context.Background())
		got <- err
	}()
	time.Sleep(20 * time.Millisecond)
	for _, c := range idle {
		c.Close()
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// The peers of a host that has as many as max-peers allows fit into an answer, with long addresses and a name each.
func TestAllPeersFit(t *testing.T) {
	p := Peer{
		Address: netip.MustParseAddr("2001:db8:1111:2222:3333:4444:5555:6666"), Local: netip.MustParseAddr("2001:db8:1111:2222:3333:4444:5555:7777"),
		Names: []string{"a-host-with-a-name-of-its-own.example.net"}, State: "protected", Assurance: Authenticated, KeyID: strings.Repeat("k", 64),
		Suite: "chacha20-poly1305 prf-sha256 x25519+mlkem768", Mode: "transport-udp", Since: time.Unix(1e9, 123456789), BytesIn: 1e12, BytesOut: 1e12,
		Why: "its key is proven: the key of a-host-with-a-name-of-its-own.example.net",
	}
	b, err := json.Marshal(p)
	if err != nil || 200_000*(len(b)+1) > maxAnswer {
		t.Errorf("200,000 peers of %d bytes are more than %d (%v)", len(b), maxAnswer, err)
	}
}
