package daemon

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

// A list that changes while it is read is read again; one that never stands still, or fails, is an error.
func TestWholeList(t *testing.T) {
	failed := errors.New("no socket")
	for _, c := range []struct {
		answers []error
		want    error
		calls   int
	}{
		{[]error{nil}, nil, 1},
		{[]error{netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted, nil}, nil, 3},
		{[]error{netlink.ErrDumpInterrupted, failed}, failed, 2},
		{[]error{netlink.ErrDumpInterrupted}, netlink.ErrDumpInterrupted, listings},
	} {
		calls := 0
		list, err := whole(func() ([]int, error) {
			calls++
			return []int{calls}, c.answers[min(calls, len(c.answers))-1]
		})
		if !errors.Is(err, c.want) || calls != c.calls || len(list) != 1 || list[0] != calls {
			t.Errorf("%v: got %v, %v after %d calls; want %v after %d", c.answers, list, err, calls, c.want, c.calls)
		}
	}
}
