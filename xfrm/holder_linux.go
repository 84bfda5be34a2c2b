package xfrm

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// holder says which process has a UDP port, as far as we may see: " by NAME (pid N)", or nothing.
func holder(port uint16) string {
	inodes := make(map[string]bool)
	for _, table := range []string{"udp", "udp6"} {
		f, err := os.Open("/proc/thread-self/net/" + table)
		if err != nil {
			continue
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) > 9 && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) {
				inodes["socket:["+fields[9]+"]"] = true
			}
		}
		_ = f.Close()
	}
	if len(inodes) == 0 {
		return ""
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && inodes[to] {
			dir := filepath.Dir(filepath.Dir(l))
			name, _ := os.ReadFile(filepath.Join(dir, "comm"))
			return fmt.Sprintf(" by %s (pid %s)", strings.TrimSpace(string(name)), filepath.Base(dir))
		}
	}
	return ""
}
