package xfrm

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"tacit/guard"
	"tacit/ipsec"
)

// ErrUnavailable is the reason why this kernel cannot be driven: it has no ESP, or not what holds packets.
var ErrUnavailable = errors.New("xfrm: not available")

// ErrRunning is returned by Cleanup while a process reads the queue.
var ErrRunning = errors.New("xfrm: a tacit is running here")

// probeSPI is that of an SA which is added and deleted at once.
const probeSPI ipsec.SPI = 0x7ac17ac1

// Available reports whether the kernel has ESP with AES-GCM for both families. Otherwise the error is ErrUnavailable, or says
// that we may not ask.
func Available() error {
	k, err := dialKernel()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer func() { _ = k.close() }()
	for _, a := range []string{"127.0.0.1", "::1"} {
		at := netip.MustParseAddr(a)
		s := State{Src: at, Dst: at, SPI: probeSPI, Selector: selectorOf(at, at), ReqID: reqIDs, Lifetime: NoLimit,
			Alg: Algorithm{AEAD: "rfc4106(gcm(aes))", Key: make([]byte, 20), ICV: 16}, Replay: Replay{Window: replayWindow, ESN: true}}
		s.Lifetime.HardSeconds = 1
		err := k.addState(s)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			if errors.Is(err, unix.EPERM) {
				return err
			}
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if err := k.delState(at, probeSPI); err != nil {
			return err
		}
	}
	return nil
}

// sweep ends every SA and policy that is ours: policies first, so that no packet looks for an SA that is gone.
func (k *kernel) sweep() error {
	policies, _, err := k.policies()
	if err != nil {
		return err
	}
	var errs []error
	gather := func(failed map[int]error, none error) {
		for _, err := range failed {
			if !errors.Is(err, none) {
				errs = append(errs, err)
			}
		}
	}
	var bodies [][]byte
	for _, p := range policies {
		bodies = append(bodies, MarshalPolicyID(p.Selector, p.Way, p.Mark))
	}
	gather(k.batch("delete policy", msgDelPolicy, bodies), unix.ENOENT)
	states, err := k.states()
	errs = append(errs, err)
	bodies = nil
	for _, s := range states {
		bodies = append(bodies, MarshalStateID(s.Dst, s.SPI))
	}
	gather(k.batch("delete SA", msgDelSA, bodies), unix.ESRCH)
	return errors.Join(errs...)
}

// Cleanup removes what a dead process left in the network namespace of the calling thread: SAs, policies and the table of
// nftables. Afterwards all three are as they were before that process started.
func Cleanup(cfg Config) error {
	cfg = cfg.withDefaults()
	k, err := dialKernel()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer func() { _ = k.close() }()
	if _, _, err := k.policies(); err != nil { // may we at all?
		return err
	}
	queue, _, err := openQueue(cfg.Queue)
	if errors.Is(err, ErrRunning) {
		return err
	}
	if err == nil {
		defer func() { _ = queue.Close() }()
	}
	return errors.Join(guard.Cleanup(), k.sweep())
}

// maxQueued bounds the packets that the kernel keeps for us, held and about to be.
const maxQueued = 8192

func openQueue(number uint16) (conn *netlink.Conn, early []netlink.Message, err error) {
	conn, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrUnavailable, hint("open nfnetlink", err))
	}
	_ = conn.SetReadBuffer(8 << 20)
	_ = conn.SetOption(netlink.NoENOBUFS, true) // a packet too many is dropped, and no reason to stop
	m := netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(msgQueueConfig), Flags: netlink.Request | netlink.Acknowledge},
		Data: marshalQueue(number, maxQueued)}
	if early, err = bind(conn, m); err != nil {
		_ = conn.Close()
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EBUSY) { // another socket's; who may not was told so before
			return nil, nil, fmt.Errorf("%w: queue %d is read", ErrRunning, number)
		}
		return nil, nil, hint(fmt.Sprintf("read queue %d", number), err)
	}
	return conn, early, nil
}

// bind sends the request and waits for its acknowledgement. Where a dead process's rules stand, packets may come before that.
func bind(conn *netlink.Conn, m netlink.Message) (early []netlink.Message, err error) {
	if _, err := conn.Send(m); err != nil {
		return nil, err
	}
	for {
		messages, err := conn.Receive()
		if err != nil {
			return nil, err
		}
		for i, m := range messages {
			if m.Header.Type == netlink.Error {
				return append(early, messages[i+1:]...), nil
			}
			early = append(early, m)
		}
	}
}
