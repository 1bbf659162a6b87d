// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// awaitDevice looks for a device until scan finds it, after each word of the
// kernel that something has changed, or until the context ends.
func awaitDevice(ctx context.Context, scan func() (string, error)) (string, error) {
	if dev, err := scan(); dev != "" || err != nil {
		return dev, err
	}
	events, err := openUevents()
	if err != nil {
		return "", err
	}
	defer events.Close()
	stop := context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 16<<10)
	for {
		// After the socket was opened, or an event would be missed between.
		if dev, err := scan(); dev != "" || err != nil {
			return dev, err
		}
		if _, err := events.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return "", errors.Join(ctx.Err(), err)
		}
	}
}

// openUevents listens to the kernel's device events.
func openUevents() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listening to device events: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listening to device events: %w", err)
	}
	return os.NewFile(uintptr(fd), "uevents"), nil
}
