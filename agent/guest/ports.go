// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const portClass = "/sys/class/virtio-ports"

// FindPort returns the device of the virtio-serial port with this name. The
// host announces names after the kernel has booted, so it waits for the
// kernel's word that something changed, until the context ends.
func FindPort(ctx context.Context, name string) (string, error) {
	if dev, err := scanPorts(portClass, name); dev != "" || err != nil {
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
		if dev, err := scanPorts(portClass, name); dev != "" || err != nil {
			return dev, err
		}
		if _, err := events.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return "", fmt.Errorf("waiting for the virtio-serial port %q: %w", name, errors.Join(ctx.Err(), err))
		}
	}
}

func scanPorts(class, name string) (string, error) {
	entries, err := os.ReadDir(class)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("listing the virtio-serial ports: %w", err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(class, e.Name(), "name"))
		// A port has no name until the host has told it.
		if err == nil && strings.TrimSpace(string(data)) == name {
			return filepath.Join("/dev", e.Name()), nil
		}
	}
	return "", nil
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
