package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	maxPackets = 200_000 // remembered by a tap; later ones are counted only
	headLength = 128     // bytes kept of a packet; IKE and DNS are kept whole up to frameBuffer
	// frameBuffer holds every frame of a cable with an MTU of 1500; of longer ones (offload on) the head.
	frameBuffer = 2048
	tapBuffer   = 128 << 20
)

// Tap sees every frame once, as it enters the switch.
type Tap struct {
	lab  *Lab
	file *os.File
	raw  syscall.RawConn
	br   int

	mu       sync.Mutex    // the reader goroutine writes, tests read
	changed  chan struct{} // closed by the next frame, if waited
	waited   bool
	packets  []Packet
	counts   map[flow]Counts
	frags    map[fragKey]Class
	marked   uint32 // by Sync
	reached  uint32
	missed   int
	dropped  int
	finished chan struct{}
}

type flow struct{ src, dst netip.Addr }

type fragKey struct {
	flow
	proto uint8
	id    uint32
}

// Tap opens a tap on the switch. It ends with the lab.
func (l *Lab) Tap() (*Tap, error) {
	t := &Tap{lab: l, br: l.br.Attrs().Index, changed: make(chan struct{}), counts: map[flow]Counts{},
		frags: map[fragKey]Class{}, finished: make(chan struct{})}
	if err := l.cable.do(t.open); err != nil {
		return nil, fmt.Errorf("tap: %w", err)
	}
	l.mu.Lock()
	l.taps = append(l.taps, t)
	l.mu.Unlock()
	go t.read()
	return t, nil
}

func (t *Tap) open() error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	t.file = os.NewFile(uintptr(fd), "tap")
	for _, o := range []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, tapBuffer},
		{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1},
		{unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("option %d: %w", o.name, err)
		}
	}
	all := uint16(unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all}); err != nil {
		return err
	}
	t.raw, err = t.file.SyscallConn()
	return err
}

// read takes frames until the tap is closed.
func (t *Tap) read() {
	defer close(t.finished)
	buf := make([]byte, frameBuffer)
	oob := make([]byte, 256)
	for {
		var n, oobn int
		var from unix.Sockaddr
		var err error
		stop := t.raw.Read(func(fd uintptr) bool {
			n, oobn, _, from, err = unix.Recvmsg(int(fd), buf, oob, unix.MSG_TRUNC|unix.MSG_DONTWAIT)
			return err != unix.EAGAIN
		})
		if stop != nil {
			return
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if err != nil || !ok || ll.Ifindex == t.br || ll.Pkttype == unix.PACKET_OUTGOING {
			continue // what the switch hands to itself was seen at its port
		}
		t.add(buf[:min(n, len(buf))], n, stamp(oob[:oobn]))
	}
}

func stamp(oob []byte) time.Time {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Now()
	}
	for _, m := range list {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})) {
			ts := *(*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
			return time.Unix(ts.Unix())
		}
	}
	return time.Now()
}

func (t *Tap) add(b []byte, length int, at time.Time) {
	f := ParseFrame(b)
	keep := headLength
	if f.Class == ClassIKE || f.Class == ClassDNS {
		keep = len(b)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.marker(b) {
		t.wake()
		return
	}
	key := fragKey{flow{f.Src, f.Dst}, f.Proto, f.FragmentID}
	if f.Fragment {
		if c, ok := t.frags[key]; ok {
			f.Class = c
		}
	} else if f.FirstFragment {
		if len(t.frags) > 4096 {
			clear(t.frags)
		}
		t.frags[key] = f.Class
	}
	c := t.counts[key.flow]
	c.add(f.Class, length)
	t.counts[key.flow] = c
	if len(t.packets) < maxPackets {
		p := Packet{Time: at, Length: length, Frame: f, Head: append([]byte(nil), b[:min(keep, len(b))]...)}
		p.Payload = ParseFrame(p.Head).Payload
		t.packets = append(t.packets, p)
	} else {
		t.missed++
	}
	t.wake()
}

// wake tells those who wait that something has changed.
func (t *Tap) wake() {
	if t.waited {
		close(t.changed)
		t.changed, t.waited = make(chan struct{}), false
	}
}

// Between counts the frames between two addresses, both ways.
func (t *Tap) Between(a, b netip.Addr) Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.counts[flow{a, b}].plus(t.counts[flow{b, a}])
}

// From counts the frames one way.
func (t *Tap) From(src, dst netip.Addr) Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.counts[flow{src, dst}]
}

// BetweenHosts counts the frames between any addresses of two hosts, both ways, IPv4 and IPv6.
func (t *Tap) BetweenHosts(a, b *Host) Counts {
	var sum Counts
	for _, x := range a.Addrs() {
		for _, y := range b.Addrs() {
			sum = sum.plus(t.Between(x.Addr(), y.Addr()))
		}
	}
	return sum
}

// Packets are the remembered packets in the order of their arrival; at most 200,000.
func (t *Tap) Packets() []Packet {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.packets[:len(t.packets):len(t.packets)]
}

// Select are the remembered packets that match.
func (t *Tap) Select(match func(Packet) bool) []Packet {
	var out []Packet
	for _, p := range t.Packets() {
		if match(p) {
			out = append(out, p)
		}
	}
	return out
}

// Reset forgets all counts and packets.
func (t *Tap) Reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.packets, t.missed = nil, 0
	clear(t.counts)
}

// Wait waits until cond holds; it is called again whenever a frame has come.
func (t *Tap) Wait(ctx context.Context, cond func() bool) error {
	for {
		t.mu.Lock()
		next := t.changed
		t.waited = true
		t.mu.Unlock()
		if cond() {
			return nil
		}
		select {
		case <-next:
		case <-t.finished:
			return fmt.Errorf("tap is closed")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// markerType is an EtherType for local experiments (IEEE 802, 9.2.4).
const markerType = 0x88b5

// Sync returns when the tap has seen everything that entered the switch before the call.
func (t *Tap) Sync(ctx context.Context) error {
	hosts := t.lab.Hosts()
	if len(hosts) == 0 {
		return nil
	}
	t.mu.Lock()
	t.marked++
	mark := t.marked
	t.mu.Unlock()
	frame := make([]byte, 60)
	copy(frame, hosts[0].mac) // to itself: the switch keeps it on its port
	copy(frame[6:], hosts[0].mac)
	binary.BigEndian.PutUint16(frame[12:], markerType)
	binary.BigEndian.PutUint32(frame[14:], mark)
	if err := hosts[0].InjectFrame(frame); err != nil {
		return err
	}
	return t.Wait(ctx, func() bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.reached >= mark
	})
}

// marker takes the frames of Sync out of the record.
func (t *Tap) marker(b []byte) bool {
	if len(b) < 18 || binary.BigEndian.Uint16(b[12:]) != markerType {
		return false
	}
	t.reached = binary.BigEndian.Uint32(b[14:])
	return true
}

// Dropped is the number of frames that the kernel could not hand to the tap because it was too slow. A test that says
// "nothing in clear" must see 0 here. Frames of all this tap's life count, Reset does not change it.
func (t *Tap) Dropped() (n int, err error) {
	ctrl := t.raw.Control(func(fd uintptr) {
		var st *unix.TpacketStats
		if st, err = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			t.mu.Lock()
			t.dropped += int(st.Drops) // the kernel's count starts again at each call
			n = t.dropped
			t.mu.Unlock()
		}
	})
	if ctrl != nil {
		return 0, ctrl
	}
	return n, err
}

// Close ends the tap; what it saw can still be read.
func (t *Tap) Close() {
	_ = t.file.Close()
	<-t.finished
}

// WritePcap writes the remembered packets to a file that tcpdump and wireshark read.
func (t *Tap) WritePcap(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := writePcap(f, t.Packets()); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
