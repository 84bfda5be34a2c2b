package xfrm

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"tacit/ipsec"
)

// kernel is our socket to the kernel's SAD and SPD.
type kernel struct {
	mu    sync.Mutex // a request and its replies are one step; callers are the Plane's methods and its event loops
	conn  *netlink.Conn
	fault func(op string) error // tests make a request fail
}

// dialKernel opens it in the network namespace of the calling thread.
func dialKernel() (*kernel, error) {
	conn, err := netlink.Dial(unix.NETLINK_XFRM, nil)
	if err != nil {
		return nil, hint("open netlink", err)
	}
	_ = conn.SetOption(netlink.ExtendedAcknowledge, true) // kernels before 4.12 say less
	return &kernel{conn: conn}, nil
}

func (k *kernel) close() error { return k.conn.Close() }

// failing is what a test makes of a request.
func (k *kernel) failing(op string) error {
	if k.fault == nil {
		return nil
	}
	return hint(op, k.fault(op))
}

// do sends a request and waits for the acknowledgement.
func (k *kernel) do(op string, kind uint16, flags netlink.HeaderFlags, body []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.failing(op); err != nil {
		return err
	}
	m := netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | netlink.Acknowledge | flags}, Data: body}
	if _, err := k.conn.Execute(m); err != nil {
		return hint(op, err)
	}
	return nil
}

// batchSize is how many requests go in one system call. Their acknowledgements must fit into the socket's buffer.
const batchSize = 64

// batch sends several requests of a kind and waits for all acknowledgements. It returns what went wrong with each, by index.
func (k *kernel) batch(op string, kind uint16, bodies [][]byte) (failed map[int]error) {
	failed = make(map[int]error)
	k.mu.Lock()
	defer k.mu.Unlock()
	for from := 0; from < len(bodies); from += batchSize {
		part := bodies[from:min(from+batchSize, len(bodies))]
		messages := make([]netlink.Message, len(part))
		for i, b := range part {
			messages[i] = netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | netlink.Acknowledge}, Data: b}
		}
		if _, err := k.conn.SendMessages(messages); err != nil {
			for i := range part {
				failed[from+i] = hint(op, err)
			}
			continue
		}
		for i := range part {
			if _, err := k.conn.Receive(); err != nil {
				failed[from+i] = hint(op, err)
			}
		}
	}
	return failed
}

// get sends a request and returns the bodies of the answer.
func (k *kernel) get(op string, kind uint16, flags netlink.HeaderFlags, body []byte) ([][]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.failing(op); err != nil {
		return nil, err
	}
	m := netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags}, Data: body}
	answers, err := k.conn.Execute(m)
	if err != nil {
		return nil, hint(op, err)
	}
	out := make([][]byte, 0, len(answers))
	for _, a := range answers {
		if a.Header.Type >= netlink.HeaderType(msgNewSA) {
			out = append(out, a.Data)
		}
	}
	return out, nil
}

func (k *kernel) addState(s State) error {
	return k.do(fmt.Sprintf("add SA %v to %v", s.SPI, s.Dst), msgNewSA, netlink.Create|netlink.Excl, MarshalState(s))
}

// updateState changes an SA's lifetime and the ports of its encapsulation; the kernel keeps the rest as it is.
func (k *kernel) updateState(s State) error {
	return k.do(fmt.Sprintf("change SA %v to %v", s.SPI, s.Dst), msgUpdSA, 0, MarshalState(s))
}

// delState ends an SA. It is no error if there is none: its lifetime may have ended it.
func (k *kernel) delState(dst netip.Addr, spi ipsec.SPI) error {
	err := k.do(fmt.Sprintf("delete SA %v to %v", spi, dst), msgDelSA, 0, MarshalStateID(dst, spi))
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

func (k *kernel) state(dst netip.Addr, spi ipsec.SPI) (State, error) {
	op := fmt.Sprintf("read SA %v to %v", spi, dst)
	answers, err := k.get(op, msgGetSA, 0, MarshalStateID(dst, spi))
	if err != nil {
		return State{}, err
	}
	if len(answers) != 1 {
		return State{}, fmt.Errorf("xfrm: %s: %d answers", op, len(answers))
	}
	return ParseState(answers[0])
}

// states lists the SAs that are ours.
func (k *kernel) states() (ours []State, err error) {
	answers, err := k.get("list SAs", msgGetSA, netlink.Dump, make([]byte, sizeSAID))
	if err != nil {
		return nil, err
	}
	for _, b := range answers {
		s, err := ParseState(b)
		if errors.Is(err, errUnknown) {
			continue // another daemon's AH or IPComp
		}
		if err != nil {
			return nil, err
		}
		if isOurs(s.ReqID) {
			ours = append(ours, s)
		}
	}
	return ours, nil
}

// setPolicy adds a policy or replaces it.
func (k *kernel) setPolicy(p Policy) error {
	return k.do(fmt.Sprintf("set policy %v %v", p.Way, p.Selector), msgUpdPolicy, 0, MarshalPolicy(p))
}

// delPolicy ends a policy of ours. It is no error if there is none.
func (k *kernel) delPolicy(p Policy) error {
	err := k.do(fmt.Sprintf("delete policy %v %v", p.Way, p.Selector), msgDelPolicy, 0, MarshalPolicyID(p.Selector, p.Way, p.Mark))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// policies lists the SPD: ours, and everybody else's.
func (k *kernel) policies() (ours, foreign []Policy, err error) {
	answers, err := k.get("list policies", msgGetPolicy, netlink.Dump, make([]byte, sizePolicyID))
	if err != nil {
		return nil, nil, err
	}
	for _, b := range answers {
		p, err := ParsePolicy(b)
		switch {
		case err != nil:
			return nil, nil, err
		case p.ours():
			ours = append(ours, p)
		case p.Way <= Forward:
			foreign = append(foreign, p)
		}
	}
	return ours, foreign, nil
}

func (s Selector) String() string {
	name := func(p netip.Prefix) string {
		if !p.IsValid() {
			return "any"
		}
		return p.String()
	}
	return fmt.Sprintf("%s to %s/%d", name(s.Src), name(s.Dst), s.Proto)
}

// hint names an operation, what the kernel said, and what usually helps.
func hint(op string, err error) error {
	if err == nil {
		return nil
	}
	help := ""
	var said string
	if e := (*netlink.OpError)(nil); errors.As(err, &e) {
		said = e.Message
	}
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		help = " (needs CAP_NET_ADMIN)"
	case errors.Is(err, unix.EPROTONOSUPPORT):
		help = " (the kernel has no ESP: modules esp4 and esp6)"
	case errors.Is(err, unix.ENOSYS), strings.Contains(said, "algorithm"):
		help = " (does the kernel have the algorithm? modules gcm, chacha20poly1305, seqiv)"
	case errors.Is(err, unix.EADDRINUSE):
		help = " (another IKE daemon, or another tacit, has it)"
	case errors.Is(err, unix.EAFNOSUPPORT):
		help = " (module xfrm_user, or nfnetlink_queue?)"
	case errors.Is(err, unix.EBUSY):
		help = " (another tacit is running here)"
	}
	return fmt.Errorf("xfrm: %s: %w%s", op, err, help)
}
