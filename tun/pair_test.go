package tun

import (
	"testing"
)

// When the inbound half of the SA in use is retired, the newest that is left is used; when another's is, nothing changes.
func TestReplace(t *testing.T) {
	older, newer := &outbound{order: 1}, &outbound{order: 2}
	pr := &pair{out: older, ins: []*inbound{{spi: 2, next: newer}}}
	pr.replace(older) // the old one is gone before anything came on the new one
	if pr.out != newer {
		t.Error("the SA that the peer has deleted is still used")
	}
	pr = &pair{out: older, ins: []*inbound{{spi: 1, next: older}}}
	pr.replace(newer) // the peer could not install the new one
	if pr.out != older {
		t.Error("the old SA is not used any more")
	}
	pr = &pair{out: newer, ins: []*inbound{{spi: 1, next: older}}}
	pr.replace(newer) // the same, and we used it already
	if pr.out != older {
		t.Error("an SA without an inbound half is used")
	}
}
