// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The commands of ethtool, for which no system call has types of its own
// (linux/ethtool.h).
const (
	ethtoolGetTxChecksum = 0x16 // ETHTOOL_GTXCSUM
	ethtoolSetTxChecksum = 0x17 // ETHTOOL_STXCSUM
	ethtoolGetChannels   = 0x3c // ETHTOOL_GCHANNELS
	ethtoolSetChannels   = 0x3d // ETHTOOL_SCHANNELS
)

// ethtoolValue is struct ethtool_value.
type ethtoolValue struct{ command, data uint32 }

// ethtoolChannels is struct ethtool_channels.
type ethtoolChannels struct {
	command                                uint32
	maxRx, maxTx, maxOther, maxCombined    uint32
	rxCount, txCount, otherCount, combined uint32
}

// ethtool asks the driver of a device of the thread's namespace. arg points to one of the types above.
func ethtool(name string, arg unsafe.Pointer) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var request struct { // struct ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	request.data = arg
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	runtime.KeepAlive(&request)
	if errno != 0 {
		return errno
	}
	return nil
}

// setTxChecksum says whether the device, and not the kernel, computes the
// checksums of what is sent. A device that cannot is no error to leave off.
func setTxChecksum(name string, on bool) error {
	now := ethtoolValue{command: ethtoolGetTxChecksum}
	if err := ethtool(name, unsafe.Pointer(&now)); err != nil {
		return err
	}
	if now.data != 0 == on {
		return nil
	}
	set := ethtoolValue{command: ethtoolSetTxChecksum}
	if on {
		set.data = 1
	}
	err := ethtool(name, unsafe.Pointer(&set))
	if on && errors.Is(err, unix.EOPNOTSUPP) {
		return nil // the host's side cannot either
	}
	return err
}

// spread makes a device use as many queue pairs as there are processors, as far as it has them.
func spread(name string, processors int) error {
	channels := ethtoolChannels{command: ethtoolGetChannels}
	err := ethtool(name, unsafe.Pointer(&channels))
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return err
	}
	want := uint32(max(1, min(processors, int(channels.maxCombined))))
	if channels.combined == want {
		return nil
	}
	channels.command, channels.combined = ethtoolSetChannels, want
	if err := ethtool(name, unsafe.Pointer(&channels)); err != nil {
		return fmt.Errorf("%d queues of %d: %w", want, channels.maxCombined, err)
	}
	return nil
}
