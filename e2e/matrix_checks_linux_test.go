package e2e

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

// What a row is judged by beside its columns: who has proved what, the mode that the kernel has, and what a cell that stays empty is empty for.

// proven waits until tacit knows both addresses of the peer by what it is to prove: its key, or nothing.
func (r *matrixRun) proven(t *testing.T) {
	t.Helper()
	assurance, key := "anonymous", ""
	if r.theirs != null {
		assurance, key = "authenticated", r.keys[[2]string{"bob", r.theirs}].fingerprint(t)
	}
	d := *r.tacit
	d.t = t
	var at []peerStatus
	end := time.Now().Add(slower(5 * time.Second))
	for {
		at = d.peers(r.bob)
		n := 0
		for _, p := range at {
			if p.State == "protected" && p.Assurance == assurance && (key == "" || p.KeyID == key) {
				n++
			}
		}
		if n == 2 {
			return
		}
		if time.Now().After(end) {
			t.Errorf("want both addresses of the peer %s %s, have %+v", assurance, key, at)
			return
		}
		time.Sleep(slower(100 * time.Millisecond))
	}
}

var kernelSA = regexp.MustCompile(`(?m)^src \S+ dst \S+\n\s+proto esp spi (0x[0-9a-f]+) reqid \d+ mode (\S+)`)

// inMode wants all that the peer's kernel has in the row's mode, where its kernel has the ESP.
func (r *matrixRun) inMode(t *testing.T) {
	t.Helper()
	if r.plane != "xfrm" {
		return
	}
	n := 0
	for _, sa := range kernelSA.FindAllStringSubmatch(output(t, r.bob, "ip", "xfrm", "state"), -1) {
		if sa[1] == "0x00000000" { // the kernel asks for one
			continue
		}
		if n++; sa[2] != r.mode {
			t.Errorf("the peer's kernel has SA %s in mode %s, want %s", sa[1], sa[2], r.mode)
		}
	}
	if n < 4 {
		t.Errorf("the peer's kernel has %d SAs of ESP, want two in each family at least", n)
	}
}

// matrixRefuser is a peer that refuses tacit in some rows.
type matrixRefuser interface {
	// refuses reports whether it does.
	refuses(row matrixRow) bool
	// refusal looks tacit's attempt up, and says in a sentence why it failed: the peer's own reason.
	refusal(t *testing.T, r *matrixRun) (why string)
}

// refused has tacit try, and keeps in the test's log how the peer refuses. Nothing may come up, nor leave in clear.
func (m *matrix) refused(t *testing.T, row matrixRow, p matrixRefuser) (why string) {
	r := m.start(t, row, matrixGroup{raw: true})
	if addrs, err := getaddrinfo(t, r.alice, "ahosts", r.endName("bob")); err == nil {
		t.Errorf("tacit gives out %v of a peer that refuses it", addrs)
	}
	if n := r.requests(r.alice, ikeAuth, 0); n < 2 {
		t.Errorf("%d IKE_AUTH requests of tacit, want one in each family", n)
	}
	r.counts(t, 0, 0)
	why = p.refusal(t, r)
	t.Logf("the cable:\n%s\n%s", r.timeline(0), r.timeline(1))
	for _, line := range strings.Split(r.log(), "\n") {
		if strings.Contains(line, "msg=audit") || strings.Contains(line, "level=WARN") {
			t.Logf("tacit: %s", line)
		}
	}
	r.sync()
	if c := r.tap.BetweenHosts(r.alice, r.bob); c.Clear()+c.ESP() != 0 {
		t.Errorf("between the two: %v, want IKE alone", c)
	}
	return why
}
