// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxSocketPath is what fits into sockaddr_un, unix(7).
const maxSocketPath = 107

// listen makes the socket name.sock in dir and returns it as a descriptor to
// give away. The name stays when the descriptor is closed; that of an earlier VM of
// the directory is replaced.
func listen(dir, name string) (*os.File, error) {
	var f *os.File
	err := withAddress(dir, name, func(address string) error {
		if err := os.Remove(address); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"})
		if err != nil {
			return err
		}
		defer l.Close()
		l.SetUnlinkOnClose(false)
		f, err = l.File()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making socket %s of the vm: %w", name, err)
	}
	return f, nil
}

// dial connects to the socket name.sock in dir.
func dial(ctx context.Context, dir, name string) (net.Conn, error) {
	var conn net.Conn
	err := withAddress(dir, name, func(address string) error {
		var d net.Dialer
		var err error
		conn, err = d.DialContext(ctx, "unix", address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connecting to socket %s of the vm: %w", name, err)
	}
	return conn, nil
}

// withAddress calls use with a path of the socket that fits into an address:
// through the descriptor of its directory when the plain one is too long.
func withAddress(dir, name string, use func(address string) error) error {
	file := name + ".sock"
	if path := filepath.Join(dir, file); len(path) <= maxSocketPath {
		return use(path)
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %s: %w", dir, err)
	}
	defer unix.Close(fd)
	return use(fmt.Sprintf("/proc/self/fd/%d/%s", fd, file))
}
