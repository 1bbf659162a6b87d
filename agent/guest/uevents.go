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

// await looks until it sees enough, after each word of the kernel that something
// about devices has changed, or until the context ends. It returns what it saw last.
func await[T any](ctx context.Context, look func() (seen T, enough bool, err error)) (T, error) {
	seen, enough, err := look()
	if enough || err != nil {
		return seen, err
	}
	events, err := openUevents()
	if err != nil {
		return seen, err
	}
	defer events.Close()
	stop := context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 16<<10)
	for {
		// After the socket was opened, or an event would be missed between.
		seen, enough, err = look()
		if enough || err != nil {
			return seen, err
		}
		if _, err := events.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return seen, errors.Join(ctx.Err(), err)
		}
	}
}

// awaitDevice waits for the device of a directory of sysfs that has this value in
// an attribute, and returns where its node is, if it is of a kind that has one.
func awaitDevice(ctx context.Context, dir, attribute, value string) (string, error) {
	return await(ctx, func() (string, bool, error) {
		dev, err := findDevice(dir, attribute, value)
		return dev, dev != "", err
	})
}

// findDevice returns nothing when there is none, or no such directory. A device that is just
// coming or going, or that the host has not said all about, has no attribute to read.
func findDevice(dir, attribute, value string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("listing devices: %w", err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name(), attribute))
		if err == nil && strings.Trim(string(data), "\x00 \t\r\n") == value {
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
