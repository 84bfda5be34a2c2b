package daemon

import (
	"testing"

	"tacit/config"
	"tacit/policy"
)

// the clock may be set by the names that are configured for it, and never in clear by one that a rule wants private.
func TestTimeServer(t *testing.T) {
	f := config.Default()
	f.DNS.TimeServers = []string{"ntp.org.", "time.example."}
	f.Policy = []policy.Rule{{Names: []string{"secret.ntp.org."}, Class: policy.Private}, policy.Default()}
	d := &Daemon{cfg: Config{File: f}}
	d.obey(f)
	for name, want := range map[string]bool{"0.debian.pool.ntp.org.": true, "time.example.": true, "bob.example.": false, "notntp.org.": false, "secret.ntp.org.": false} {
		if got := d.timeServer(name); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}
