package lab

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ETHTOOL_S* commands that switch an offload (linux/ethtool.h). Checksums go last: switching them off takes
// scatter-gather and segmentation with them, switching them on does not bring those back.
var offloads = []uint32{
	0x1f, // TSO
	0x24, // GSO
	0x2c, // GRO
	0x17, // TX checksum
}

// Offload switches segmentation and checksum offloads of the host's link, at both ends of the cable. They are off in a
// new lab: the tap then sees what a wire would carry. A measurement of speed switches them on.
func (h *Host) Offload(on bool) error {
	if err := h.lab.cable.do(func() error { return setOffload(h.Name, on) }); err != nil {
		return err
	}
	return h.Do(func() error { return setOffload(linkName, on) })
}

func setOffload(link string, on bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	order := append([]uint32(nil), offloads...)
	if on {
		order[0], order[len(order)-1] = order[len(order)-1], order[0]
	}
	for _, cmd := range order {
		if err := ethtoolSet(fd, link, cmd, on); err != nil {
			return fmt.Errorf("%s: ethtool 0x%x: %w", link, cmd, err)
		}
	}
	return nil
}

func ethtoolSet(fd int, link string, cmd uint32, on bool) error {
	value := struct{ cmd, data uint32 }{cmd: cmd}
	if on {
		value.data = 1
	}
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // struct ifreq is a union; the kernel copies all of it
	}
	copy(req.name[:unix.IFNAMSIZ-1], link)
	req.data = unsafe.Pointer(&value)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	if errno != 0 {
		return errno
	}
	return nil
}
