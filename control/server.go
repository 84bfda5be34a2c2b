package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// The bounds of a connection.
const (
	maxConns    = 64
	maxHeader   = 4 << 10         // octets of a request's line and headers
	maxBody     = 4 << 10         // octets of a request's body
	requestTime = 5 * time.Second // for the request to come in
	answerTime  = 30 * time.Second
	eventWait   = 4 * time.Second // that a request for events waits for one: less than requestTime
)

// Server is the socket of a daemon.
type Server struct {
	listener net.Listener
	http     *http.Server
}

// Serve answers requests on a Unix socket until ctx ends. It makes the directory (0755) and the socket (0660); the socket of a
// dead daemon is replaced, that of a live one is an error.
func Serve(ctx context.Context, path string, h Handler) error {
	s, err := Listen(path, h)
	if err != nil {
		return err
	}
	return s.Serve(ctx)
}

// Listen makes the socket, for callers that must know that it is there before they go on. Serve of the result answers requests.
func Listen(path string, h Handler) (*Server, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l, err := listenPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return &Server{
		listener: limit(l, maxConns),
		http: &http.Server{
			Handler:           http.MaxBytesHandler(routes(h), maxBody),
			MaxHeaderBytes:    maxHeader,
			ReadHeaderTimeout: requestTime,
			ReadTimeout:       requestTime,
			WriteTimeout:      answerTime,
			IdleTimeout:       requestTime,
		},
	}, nil
}

// Serve answers requests until ctx ends, and removes the socket.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.http.Close() })
	defer stop()
	s.http.ConnContext = withUser
	s.http.BaseContext = func(net.Listener) context.Context { return ctx }
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control socket: %w", err)
	}
	return nil
}

// Close ends the server and removes the socket.
func (s *Server) Close() error {
	err := s.listener.Close() // Serve may not have been called: then http knows nothing of it
	s.http.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// removeStale removes a socket that nobody listens on. What is no socket, or answers, is left alone and an error.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return fmt.Errorf("%s: another daemon is running", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// listenPrivate makes the socket 0660. It is bound under another name and renamed when its mode is right, so that who finds it
// under its own name finds it ready.
func listenPrivate(path string) (net.Listener, error) {
	temp := fmt.Sprintf("%s.%d", path, os.Getpid())
	os.Remove(temp)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(temp, 0o660)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		l.Close()
		os.Remove(temp)
		return nil, err
	}
	return &unlinking{l, path}, nil
}

// unlinking removes the socket by the name that it was renamed to.
type unlinking struct {
	net.Listener
	path string
}

func (u *unlinking) Close() error {
	err := u.Listener.Close()
	if err == nil {
		os.Remove(u.path)
	}
	return err
}

// routes are all the requests there are. The version is in the path, so that a later daemon can serve older clients.
func routes(h Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		s, err := h.Status(r.Context())
		s.SchemaVersion = SchemaVersion
		answer(w, s, err)
	})
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) {
		after, err := strconv.ParseUint(cmp.Or(r.URL.Query().Get("after"), "0"), 10, 64)
		if err != nil {
			refuse(w, http.StatusBadRequest, "after: want a number")
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), eventWait)
		defer cancel()
		e, err := h.Events(ctx, after)
		e.SchemaVersion = SchemaVersion
		answer(w, e, err)
	})
	mux.HandleFunc("POST /v1/reload", func(w http.ResponseWriter, r *http.Request) {
		if !mayChange(r.Context()) {
			refuse(w, http.StatusForbidden, "only root may change anything")
			return
		}
		answer(w, struct{}{}, h.Reload(r.Context()))
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, "no such request in this version")
	})
	return mux
}

// problem is the body of every answer that is not 200.
type problem struct {
	Error string `json:"error"`
}

// answer sends a value, or the error that stands in its way.
func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	b, err := json.Marshal(v)
	if err != nil {
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(b, '\n')) // an error is the client's going away
}

// refuse sends a problem.
func refuse(w http.ResponseWriter, code int, why string) {
	b, _ := json.Marshal(problem{why}) // a string always marshals
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(append(b, '\n'))
}
