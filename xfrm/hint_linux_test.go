package xfrm

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// An error names the operation, the kernel's words and what usually helps, and stays the kernel's.
func TestHint(t *testing.T) {
	for _, tt := range []struct {
		err  error
		said string // by the extended acknowledgement
		want string
	}{
		{unix.EPERM, "", "needs CAP_NET_ADMIN"},
		{unix.EACCES, "", "needs CAP_NET_ADMIN"},
		{unix.EPROTONOSUPPORT, "", "modules esp4 and esp6"},
		{unix.ENOSYS, "", "modules gcm, chacha20poly1305"},
		{unix.EINVAL, "Requested AEAD algorithm not found", "does the kernel have the algorithm?"},
		{unix.EADDRINUSE, "", "another IKE daemon"},
		{unix.EAFNOSUPPORT, "", "xfrm_user"},
		{unix.EBUSY, "", "another tacit is running"},
		{unix.ENOMEM, "", "cannot allocate memory"},
	} {
		var err error = &netlink.OpError{Op: "receive", Err: tt.err, Message: tt.said}
		got := hint("add SA 00001000 to 192.0.2.1", fmt.Errorf("sent: %w", err))
		for _, want := range []string{"xfrm: add SA 00001000 to 192.0.2.1: ", tt.said, tt.want} {
			if !strings.Contains(got.Error(), want) {
				t.Errorf("%v: got %q, want %q in it", tt.err, got, want)
			}
		}
		if !errors.Is(got, tt.err) {
			t.Errorf("%v: got another error: %v", tt.err, got)
		}
	}
	if hint("nothing", nil) != nil {
		t.Error("no error became one")
	}
}

// A kernel under lockdown shows zeros in place of keys: an SA must not be made again with them.
func TestRedacted(t *testing.T) {
	zero, key := make([]byte, 36), append(make([]byte, 35), 1)
	for _, tt := range []struct {
		alg  Algorithm
		want bool
	}{
		{Algorithm{AEAD: "rfc4106(gcm(aes))", Key: zero}, true},
		{Algorithm{AEAD: "rfc4106(gcm(aes))", Key: key}, false},
		{Algorithm{Cipher: "cbc(aes)", Key: zero, Auth: "hmac(sha256)", AuthKey: zero}, true},
		{Algorithm{Cipher: "cbc(aes)", Key: zero, Auth: "hmac(sha256)", AuthKey: key}, false},
	} {
		if got := tt.alg.Redacted(); got != tt.want {
			t.Errorf("%s%s: got %v, want %v", tt.alg.AEAD, tt.alg.Cipher, got, tt.want)
		}
	}
}
