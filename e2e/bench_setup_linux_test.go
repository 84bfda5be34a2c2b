package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"tacit/ike"
	"tacit/ipseckey"
	"tacit/lab"
)

// setupSize is how much is measured.
type setupSize struct {
	rounds, each, atOnce int
	sas                  int           // that stand in the end, for the figure of memory
	settles              time.Duration // how long a process may take to give back what a burst has left
}

var setupFull = setupSize{rounds: 9, each: 1000, atOnce: 8, sas: 5000, settles: 30 * time.Second}

// spare is how many set-ups come before any that are measured: what is done once is done then.
func (s setupSize) spare() int { return s.each / 10 }

// responder is a process that answers a load of its own.
type responder struct {
	name  string
	load  *load
	start func() *lab.Cmd
	cmd   *lab.Cmd
	apart *apart

	daemon *tacit // ours

	cpu, rate, many, manyRate, memory, idle samples // us, us, us, us, KiB, us a second
}

// benchSetup measures responders: processor time, wall time and memory of an IKE SA with its Child SA, ours and strongSwan's in turn. Both
// have raw Ed25519 keys and ESP in UDP in user space, and the same initiator.
func benchSetup(t *testing.T) {
	ours, theirs := measureSetups(t, setupFull)
	figure(t, "setup-cpu", "us", ours.cpu, theirs.name, theirs.cpu)
	figure(t, fmt.Sprintf("setup-cpu-%d", setupFull.sas), "us", ours.many, theirs.name, theirs.many)
	figure(t, "setup-rate", "us", ours.rate, theirs.name, theirs.rate)
	figure(t, fmt.Sprintf("setup-rate-%d", setupFull.sas), "us", ours.manyRate, theirs.name, theirs.manyRate)
	figure(t, "sa-memory", "KiB", ours.memory, theirs.name, theirs.memory)
}

// TestSetupLoad runs the benchmark in small, so that it does not rot.
func TestSetupLoad(t *testing.T) {
	measureSetups(t, setupSize{rounds: 2, each: 40, atOnce: 8, sas: 100})
}

// measureSetups starts the responder anew for each round, because strongSwan looks through the routes of all SAs for each new one: what both
// need when there are many is a figure of its own.
func measureSetups(t *testing.T, size setupSize) (ours, theirs *responder) {
	t.Helper()
	needE2E(t, "dnssec-signzone", "charon-systemd", "swanctl")
	hosts := setupLab(t, "ours", "load-ours", "theirs", "load-theirs")
	apart := newApart(t)
	ours = tacitResponder(t, hosts[0], hosts[1], size.spare()+max(size.each, size.sas))
	theirs = swanResponder(t, hosts[2], hosts[3])
	both := []*responder{ours, theirs}
	ours.apart, theirs.apart = apart, apart
	for i := range size.rounds {
		for j := range both {
			both[(i+j)%2].round(t, size)
		}
	}
	for _, r := range both {
		r.fill(t, size)
		t.Logf("%s: set-ups in ms: %s; p99 %.2f; %d messages were sent again", r.name, r.load.took.spread(), r.load.took.at(0.99), r.load.repeated)
	}
	if n := ours.load.took.at(1); n >= float64(patience.Milliseconds()) {
		t.Errorf("a set-up took %.0f ms", n)
	}
	return ours, theirs
}

// begin starts the responder, and has it do what it does but once.
func (r *responder) begin(t *testing.T, size setupSize) {
	t.Helper()
	r.load.forget()
	r.apart.children()
	r.cmd = r.start()
	r.apart.self()
	r.load.setUp(size.spare(), size.atOnce)
}

func (r *responder) end(t *testing.T) {
	t.Helper()
	if err := r.cmd.Stop(5 * time.Second); err != nil {
		t.Fatal(err)
	}
}

// round measures one set of set-ups.
func (r *responder) round(t *testing.T, size setupSize) {
	t.Helper()
	r.begin(t, size)
	cpu := processor(t, r.cmd.Process.Pid)
	took := r.load.setUp(size.each, size.atOnce)
	each := time.Duration(size.each)
	cpu = processor(t, r.cmd.Process.Pid) - cpu
	r.cpu.add(cpu/each, time.Microsecond)
	r.rate.add(took/each, time.Microsecond)
	t.Logf("%s: %d set-ups: %v each, processor %v each, initiators' %v", r.name, size.each, took/each, cpu/each, r.load.own/each)
	r.end(t)
}

// fill measures what SAs take that stand.
func (r *responder) fill(t *testing.T, size setupSize) {
	t.Helper()
	r.begin(t, size)
	pid := r.cmd.Process.Pid
	r.load.idle(size.settles)
	before, cpu := resident(t, pid), processor(t, pid)
	r.manyRate.add(r.load.setUp(size.sas, size.atOnce)/time.Duration(size.sas), time.Microsecond)
	r.many.add((processor(t, pid)-cpu)/time.Duration(size.sas), time.Microsecond)
	r.load.idle(size.settles)
	after := resident(t, pid)
	t.Logf("%s: %d SAs: %d KiB before, %d after %v; processor %.0f us for each", r.name, size.sas, before, after, size.settles, r.many.median())
	r.memory = append(r.memory, float64(after-before)/float64(size.sas))
	r.end(t)
}

// setupLab makes hosts without a tap on the cable: what it keeps of thousands of messages would take the time of those who send them.
func setupLab(t *testing.T, names ...string) (hosts []*lab.Host) {
	t.Helper()
	l, err := lab.New("setup")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("remove the lab: %v", err)
		}
	})
	for i, name := range names {
		h, err := l.Host(name, lab.Prefixes(fmt.Sprintf("192.0.2.%d/24", i+1), fmt.Sprintf("2001:db8::%d/64", i+1))...)
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, h)
	}
	return hosts
}

// route sends the initiators' addresses to the load.
func route(t *testing.T, responder, load *lab.Host) {
	t.Helper()
	output(t, responder, "ip", "route", "add", "10.0.0.0/8", "via", load.Addr4().String())
	output(t, load, "ip", "route", "add", "local", "10.0.0.0/8", "dev", "lo")
}

// tacitResponder is our daemon, with each of n initiators pinned at its address.
func tacitResponder(t *testing.T, h, from *lab.Host, n int) *responder {
	t.Helper()
	route(t, h, from)
	own, peer := newIdentity(t), newIdentity(t)
	key, err := ipseckey.ParseIdentity([]byte(peer.pem))
	if err != nil {
		t.Fatal(err)
	}
	name := func(i int) string { return fmt.Sprintf("from%d.example", i) }
	var peers strings.Builder
	for i := range n {
		fmt.Fprintf(&peers, "[[peer]]\nname = %q\naddress = %q\npin = [%q]\n", name(i), initiatorAddr(i), ipseckey.Fingerprint(key.Public()))
	}
	_, anchor := signZones(t)
	r := &responder{name: "tacit", load: newLoad(t, from, peer, name, loadPeer(t, h, own))}
	r.start = func() *lab.Cmd {
		if r.daemon == nil {
			r.daemon = startTacit(t, h, anchor, options{name: "to.example", identity: own.pem, upstream: from.Addr4().String(), policy: peers.String()})
		} else {
			r.daemon.start(false)
		}
		return r.daemon.cmd
	}
	return r
}

// publicResponder is our daemon, which lets anybody in: pins for more than some thousand would not fit into its configuration.
func publicResponder(t *testing.T, h, from *lab.Host) *responder {
	t.Helper()
	route(t, h, from)
	own := newIdentity(t)
	_, anchor := signZones(t)
	r := &responder{name: "tacit", load: newLoad(t, from, newIdentity(t), func(int) string { return "" }, loadPeer(t, h, own))}
	r.load.peer.LocalID = ike.ID{Kind: ike.IDNull}
	r.load.speaks = true
	r.start = func() *lab.Cmd {
		r.daemon = startTacit(t, h, anchor, options{name: "to.example", identity: own.pem, upstream: from.Addr4().String(), top: "max-peers = 200000\n"})
		return r.daemon.cmd
	}
	return r
}

// swanResponder is strongSwan with the initiators' key pinned. It logs what it logs as it comes, as ours does, and its table of SAs is made for
// thousands.
func swanResponder(t *testing.T, h, from *lab.Host) *responder {
	t.Helper()
	route(t, h, from)
	own, peer := newIdentity(t), newIdentity(t)
	daemon := strings.NewReplacer("			ike = 2\n			cfg = 2\n			flush_line = yes\n", "",
		"	load =", "	ikesa_table_size = 8192\n	ikesa_table_segments = 16\n	load =").Replace(strongswanConf)
	files := map[string]string{
		"private/own.pem": own.pem, "pubkey/own.pem": publicPEM(t, own), "pubkey/peer.pem": publicPEM(t, peer),
		"swanctl.conf": fmt.Sprintf(`connections {
	all {
		version = 2
		local_addrs = %s
		remote_addrs = 10.0.0.0/8
		mobike = no
		encap = yes
		send_certreq = no
		unique = never
		proposals = chacha20poly1305-prfsha256-x25519
		local {
			auth = pubkey
			pubkeys = own.pem
			id = to.example
		}
		remote {
			auth = pubkey
			pubkeys = peer.pem
			id = from.example
		}
		children {
			host {
				mode = tunnel
				esp_proposals = aes128gcm16
			}
		}
	}
}
`, h.Addr4()),
	}
	return &responder{
		name:  "strongswan",
		load:  newLoad(t, from, peer, func(int) string { return "from.example" }, loadPeer(t, h, own)),
		start: func() *lab.Cmd { return runSwan(t, h, daemon, files).cmd },
	}
}

// resident is the memory of a process that is its own, in KiB.
func resident(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[0] == "RssAnon:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("process %d has no RssAnon", pid)
	return 0
}
