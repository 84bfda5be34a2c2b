package e2e

import "testing"

// TestBurst: a thousand programs ask at once, each for a name that nobody knows yet. All are answered.
func TestBurst(t *testing.T) {
	const names = 1000
	b := newDNSBench(t, names, bindNSEC)
	for i, rules := range []string{"", clearAll} {
		h := b.tacit("tacit"+[]string{"on", "off"}[i], 10+i, 2, rules).host
		p := b.dnsperf(h, b.questions(0, names), "-n", "1", "-c", "20", "-q", "1000")
		t.Logf("%.0f a second, %.0f us on average", p.rate, p.latency)
	}
}
