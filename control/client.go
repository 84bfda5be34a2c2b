package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"
)

// maxAnswer bounds what a client reads, in octets: as many peers as a daemon has fit.
const maxAnswer = 256 << 20

// ErrNotRunning says that no daemon listens on the socket.
var ErrNotRunning = errors.New("no daemon is running")

// Client is the command line's side.
type Client struct {
	path string
	http *http.Client
}

// Dial returns a client of the socket. It connects at the first request.
func Dial(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{path, &http.Client{
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true, MaxResponseHeaderBytes: 1 << 16},
		Timeout:   answerTime + 2*time.Second,
	}}
}

// Status asks what the daemon does.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.do(ctx, http.MethodGet, "/v1/status", &s)
	if err == nil && s.SchemaVersion != SchemaVersion {
		err = fmt.Errorf("the daemon speaks version %d of the interface, we speak %d", s.SchemaVersion, SchemaVersion)
	}
	return s, err
}

// Events asks what has happened after the event with that Seq, and waits a while for something to happen.
func (c *Client) Events(ctx context.Context, after uint64) (Events, error) {
	var e Events
	err := c.do(ctx, http.MethodGet, "/v1/events?after="+strconv.FormatUint(after, 10), &e)
	return e, err
}

// Reload has the daemon read its configuration again. Who may write to the socket may.
func (c *Client) Reload(ctx context.Context) error {
	return c.do(ctx, http.MethodPost, "/v1/reload", &struct{}{})
}

// do sends a request and reads the answer into v. Errors name the socket.
func (c *Client) do(ctx context.Context, method, path string, v any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://tacit"+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s: %w", c.path, ErrNotRunning)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: %w", c.path, fs.ErrPermission)
	case err != nil:
		return fmt.Errorf("%s: %w", c.path, errors.Unwrap(err)) // without the URL, which is made up
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", c.path, err)
	case len(body) > maxAnswer:
		return fmt.Errorf("%s: the answer is larger than %d bytes", c.path, maxAnswer)
	case resp.StatusCode != http.StatusOK:
		var p problem
		if json.Unmarshal(body, &p) != nil || p.Error == "" {
			p.Error = resp.Status
		}
		return fmt.Errorf("%s: %s", c.path, p.Error)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%s: %w", c.path, err)
	}
	return nil
}
