package e2e

import (
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tacit/lab"
)

// dnsBench is hosts that each have a server under load, an authoritative server of their own beneath it and dnsperf beside it: nothing
// crosses a cable, so both sides of a figure cost the same but for the server.
type dnsBench struct {
	t      *testing.T
	lab    *lab.Lab
	dir    string
	anchor string
	files  int
}

// newDNSBench makes the zone bench.example. with that many names: h0.bench.example. and so on, each with an address and no key.
func newDNSBench(t *testing.T, names int, by signer) *dnsBench {
	t.Helper()
	needE2E(t, "nsd", "unbound", "dnssec-signzone", "dnsperf")
	l, err := lab.New("bench")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("remove the lab: %v", err)
		}
	})
	records := make([]string, names)
	for i := range names {
		records[i] = fmt.Sprintf("h%d.bench.example. 86400 IN A 198.51.%d.%d", i, i>>8&255, i&255)
	}
	b := &dnsBench{t: t, lab: l}
	b.dir, b.anchor = signZones(t, zoneFile{"bench.example.", by, records})
	return b
}

// host makes one with the zones on its own address.
func (b *dnsBench) host(name string, n int) *lab.Host {
	b.t.Helper()
	h, err := b.lab.Host(name, lab.Prefixes(fmt.Sprintf("192.0.2.%d/24", n), fmt.Sprintf("2001:db8::%d/64", n))...)
	if err != nil {
		b.t.Fatal(err)
	}
	startNSD(b.t, h, b.dir)
	return h
}

// tacit starts one on a host of its own, on so many processors.
func (b *dnsBench) tacit(name string, n, processors int, policy string) *tacit {
	b.t.Helper()
	h := b.host(name, n)
	return startTacit(b.t, h, b.anchor, options{upstream: h.Addr4().String(), policy: policy,
		env: []string{fmt.Sprintf("GOMAXPROCS=%d", processors)}})
}

// unbound starts one as a validating forwarder, on a host of its own, with so many threads.
func (b *dnsBench) unbound(name string, n, threads int) (*lab.Host, *lab.Cmd) {
	b.t.Helper()
	h := b.host(name, n)
	put(b.t, h, "/run/root.key", b.anchor)
	put(b.t, h, "/run/unbound.conf", fmt.Sprintf(`server:
	interface: 127.0.0.1
	username: ""
	chroot: ""
	directory: "/run"
	pidfile: "/run/unbound.pid"
	use-syslog: no
	num-threads: %d
	so-reuseport: yes
	module-config: "validator iterator"
	trust-anchor-file: "/run/root.key"
	msg-cache-size: 64m
	rrset-cache-size: 128m
	minimal-responses: yes
	prefetch: no
remote-control:
	control-enable: no
forward-zone:
	name: "."
	forward-addr: %s
`, threads, h.Addr4()))
	c := start(b.t, h, "unbound", "-d", "-c", "/run/unbound.conf")
	if err := h.AwaitTCP(b.t.Context(), c, "127.0.0.1:53"); err != nil {
		b.t.Fatal(err)
	}
	return h, c
}

// questions writes dnsperf's input for names h(from).bench.example. to before h(to) and returns its name on all hosts.
func (b *dnsBench) questions(from, to int) string {
	b.t.Helper()
	var text strings.Builder
	for i := from; i < to; i++ {
		fmt.Fprintf(&text, "h%d.bench.example A\n", i)
	}
	b.files++
	file := fmt.Sprintf("%s/questions%d", b.dir, b.files)
	if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
		b.t.Fatal(err)
	}
	return file
}

var perfLines = regexp.MustCompile(`Queries sent:\s+(\d+)|Queries completed:\s+(\d+)|Response codes:\s+(.*)|Queries per second:\s+([\d.]+)|Average Latency \(s\):\s+([\d.]+)|^> NOERROR \S+ A ([\d.]+)`)

// perf is what one run of dnsperf saw.
type perf struct {
	rate    float64 // answers a second
	latency float64 // on average, in microseconds
	each    samples // microseconds, with -v
}

// dnsperf runs on the host. All must be answered with NOERROR. It has the last processor, and no other: left to itself, the scheduler puts one of
// dnsperf's two threads beside the server for seconds, or does not, and that decides more than the server.
func (b *dnsBench) dnsperf(h *lab.Host, file string, args ...string) (p perf) {
	b.t.Helper()
	last := strconv.Itoa(runtime.NumCPU() - 1)
	c := h.Command(b.t.Context(), "taskset", append([]string{"-c", last, "dnsperf", "-s", "127.0.0.1", "-d", file, "-e"}, args...)...)
	out, err := c.Output()
	if err != nil {
		b.t.Fatal(err)
	}
	sent, completed := "", ""
	number := func(s string) float64 {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			b.t.Fatal(err)
		}
		return f
	}
	for line := range strings.Lines(string(out)) {
		m := perfLines.FindStringSubmatch(strings.TrimSpace(line))
		switch {
		case m == nil:
		case m[1] != "":
			sent = m[1]
		case m[2] != "":
			completed = m[2]
		case m[3] != "":
			if !strings.HasPrefix(m[3], "NOERROR") || !strings.Contains(m[3], "(100.00%)") {
				b.t.Fatalf("%s: answers %s", h.Name, m[3])
			}
		case m[4] != "":
			p.rate = number(m[4])
		case m[5] != "":
			p.latency = 1e6 * number(m[5])
		case m[6] != "":
			p.each = append(p.each, 1e6*number(m[6]))
		}
	}
	if sent != completed || p.rate == 0 {
		b.t.Fatalf("%s: %s of %s queries answered\n%s", h.Name, completed, sent, tail(string(out), 20))
	}
	return p
}

// oneByOne asks each question once, 300 a second. Left to itself, dnsperf 2.10 asks the next when an answer is there, but misses that, and rests for 20
// to 45 ms, when its two threads run at the same time while one prints: how often depends on where the scheduler puts them, and idle processors
// answer several times as late after such a rest.
func (b *dnsBench) oneByOne(h *lab.Host, file string) perf {
	b.t.Helper()
	return b.dnsperf(h, file, "-n", "1", "-q", "1", "-v", "-Q", "300")
}

// place has all threads that a process has, and those that they make, run on the first processors.
func place(t *testing.T, pid, processors int) {
	t.Helper()
	var set unix.CPUSet
	for i := range processors {
		set.Set(i)
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		id, err := strconv.Atoi(task.Name())
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.SchedSetaffinity(id, &set); err != nil {
			t.Fatal(err)
		}
	}
}

// benchDNSCached times an answer from the cache at full load, and how long a client waits for it then, with one thread each and with two. Both servers
// have the same processors, as many as threads.
func benchDNSCached(t *testing.T) {
	names, rounds := shorter(1000), shorter(9)
	b := newDNSBench(t, names, bindNSEC)
	file := b.questions(0, names)
	for _, n := range []int{1, 2} {
		if n > runtime.NumCPU() {
			continue
		}
		server := b.tacit(fmt.Sprint("tacit", n), 10*n, n, "")
		ours := server.host
		theirs, unbound := b.unbound(fmt.Sprint("unbound", n), 10*n+1, n)
		place(t, server.cmd.Process.Pid, n)
		place(t, unbound.Process.Pid, n)
		var rate, latency [2]samples
		for i := range rounds + 1 {
			for k, h := range []*lab.Host{ours, theirs} {
				if i == 0 {
					b.dnsperf(h, file, "-n", "1") // fills the cache
					continue
				}
				p := b.dnsperf(h, file, "-l", "1", "-c", "20", "-q", "100")
				rate[k], latency[k] = append(rate[k], 1e6/p.rate), append(latency[k], p.latency)
			}
		}
		figure(t, fmt.Sprint("dns-cached-", n), "us", rate[0], "unbound", rate[1])
		figure(t, fmt.Sprint("dns-cached-latency-", n), "us", latency[0], "unbound", latency[1])
	}
}

// clearAll is a rule that has the trigger off: no name is asked for a key.
const clearAll = "[[policy]]\nmatch = [\"0.0.0.0/0\", \"::/0\"]\nclass = \"clear\"\n"

// benchDNSValidated times a lookup of a name that nobody knows yet, in a zone whose keys are known: one client, one question at a time. Both servers
// do the same: the trigger is off.
func benchDNSValidated(t *testing.T) {
	names, rounds := shorter(100), shorter(10)
	for _, z := range []struct {
		name string
		by   signer
	}{{"dns-validated", bindNSEC}, {"dns-validated-rsa", bindRSA}} {
		t.Run(z.name, func(t *testing.T) {
			b := newDNSBench(t, names*(rounds+1), z.by)
			ours := b.tacit("tacit", 10, runtime.NumCPU(), clearAll).host
			theirs, _ := b.unbound("unbound", 11, 1)
			var took [2]samples
			for i := range rounds + 1 {
				file := b.questions(i*names, (i+1)*names)
				for k, h := range []*lab.Host{ours, theirs} {
					p := b.oneByOne(h, file)
					if i > 0 {
						took[k] = append(took[k], p.each...)
					}
				}
			}
			figure(t, z.name, "us", took[0], "unbound", took[1])
		})
	}
}

// benchDNSTrigger times lookups of names without a key, with the trigger and with class clear for all names: at full load from the cache, and
// for the first time.
func benchDNSTrigger(t *testing.T) {
	names, rounds := shorter(100), shorter(10)
	b := newDNSBench(t, names*(rounds+1), bindNSEC)
	on := b.tacit("on", 10, runtime.NumCPU(), "").host
	off := b.tacit("off", 11, runtime.NumCPU(), clearAll).host
	var cold, warm [2]samples
	for i := range rounds + 1 {
		file := b.questions(i*names, (i+1)*names)
		for k, h := range []*lab.Host{on, off} {
			p := b.oneByOne(h, file)
			w := b.dnsperf(h, file, "-l", "1", "-c", "20", "-q", "100")
			if i > 0 {
				cold[k], warm[k] = append(cold[k], p.each...), append(warm[k], 1e6/w.rate)
			}
		}
	}
	figure(t, "dns-trigger", "us", warm[0], "off", warm[1])
	figure(t, "dns-trigger-first", "us", cold[0], "off", cold[1])
}

// benchDNSMemory is how much a hundred thousand names in the cache take.
func benchDNSMemory(t *testing.T) {
	names := shorter(100_000)
	b := newDNSBench(t, names, bindNSEC)
	file := b.questions(0, names)
	ours := b.tacit("tacit", 10, runtime.NumCPU(), "")
	theirs, unbound := b.unbound("unbound", 11, 1)
	var grown [2]samples
	for i, s := range []struct {
		host *lab.Host
		pid  int
	}{{ours.host, ours.cmd.Process.Pid}, {theirs, unbound.Process.Pid}} {
		before := resident(t, s.pid)
		first := b.dnsperf(s.host, file, "-n", "1", "-q", "20")
		grown[i] = append(grown[i], float64(resident(t, s.pid)-before)*1024/1e6)
		again := b.dnsperf(s.host, file, "-n", "1", "-q", "20")
		t.Logf("%s: %d names at %.0f a second, from the cache at %.0f", s.host.Name, names, first.rate, again.rate)
	}
	figure(t, "dns-memory", "MB", grown[0], "unbound", grown[1])
}

// shorter is n where figures are wanted, and enough to try the benchmark where they are not.
func shorter(n int) int {
	if os.Getenv("TACIT_BENCH") != "" {
		return n
	}
	return max(1, n/50)
}

// TestDNSBenchmarks tries the resolver's benchmarks at a small size, so that they do not rot.
func TestDNSBenchmarks(t *testing.T) {
	needE2E(t)
	for _, b := range benchmarks {
		if strings.HasPrefix(b.name, "dns-") {
			t.Run(b.name, b.run)
		}
	}
}
