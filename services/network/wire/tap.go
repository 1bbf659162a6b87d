// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// tunPath is the one device node of the host that the service opens for taps.
const tunPath = "/dev/net/tun"

// makeTap makes a tap that stays when nobody has it open. It is given its alias
// before that, so that a tap that stays is always known.
func (w *Wire) makeTap() error {
	_, err := w.NS.Netlink().LinkByName(w.NIC.Device)
	if err == nil {
		if _, err := w.device(); err != nil {
			return err
		}
		return nil
	}
	if !absent(err) {
		return err
	}
	tap, err := w.openTap()
	if err != nil {
		return err
	}
	defer tap.Close()
	l, err := w.NS.Netlink().LinkByName(w.NIC.Device)
	if err != nil {
		return fmt.Errorf("find the tap that was made: %w", err)
	}
	if err := w.NS.Netlink().LinkSetAlias(l, w.fullAlias()); err != nil {
		return fmt.Errorf("name the tap's owner: %w", err)
	}
	if err := unix.IoctlSetInt(int(tap.Fd()), unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("keep the tap: %w", err)
	}
	return nil
}

// openTap opens a queue of the tap, which is made if it is not there. Frames
// have a virtio-net header before them: checksums and segmentation are left to
// whoever needs them done.
func (w *Wire) openTap() (*os.File, error) {
	request, err := unix.NewIfreq(w.NIC.Device)
	if err != nil {
		return nil, err
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if w.NIC.Queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	request.SetUint16(flags)
	var tap *os.File
	// The namespace that a tap is looked up in is that of the thread that opened
	// the device node.
	err = w.NS.Do(func() (err error) {
		tap, err = os.OpenFile(tunPath, os.O_RDWR, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", tunPath, err)
	}
	if err := unix.IoctlIfreq(int(tap.Fd()), unix.TUNSETIFF, request); err != nil {
		tap.Close()
		if errors.Is(err, unix.EBUSY) { // it has one queue
			return nil, fmt.Errorf("the tap %s is open already: %w", w.NIC.Device, err)
		}
		return nil, fmt.Errorf("open tap %s: %w", w.NIC.Device, err)
	}
	return tap, nil
}
