// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// consoleTime bounds the wait for a terminal after create has returned.
const consoleTime = 10 * time.Second

// withConsole creates and starts a container with a terminal and returns the
// pty's master.
func (b *bench) withConsole(ctx context.Context, rt *runtime, id string) (_ *container, _ *os.File, err error) {
	path := filepath.Join(b.dir, "console.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, nil, fmt.Errorf("listen for the terminal: %w", err)
	}
	defer listener.Close() // removes the socket
	c, err := rt.create(ctx, id, b.bundles.tty, stdio{console: path})
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.remove(ctx))
		}
	}()
	// As a shim does: accept only when create has returned.
	master, err := receiveMaster(listener)
	if err != nil {
		return nil, nil, err
	}
	if err := c.start(ctx); err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return c, master, nil
}

// receiveMaster takes the one descriptor of the one message that a runtime sends.
func receiveMaster(listener *net.UnixListener) (*os.File, error) {
	if err := listener.SetDeadline(time.Now().Add(consoleTime)); err != nil {
		return nil, err
	}
	conn, err := listener.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("wait for the terminal: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(consoleTime)); err != nil {
		return nil, err
	}
	name, control := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(name, control)
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("the console socket got %d control messages instead of one: %w", len(messages), errors.Join(err))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("the console socket got %d descriptors instead of one: %w", len(fds), errors.Join(err))
	}
	// Without blocking, so that reads can have deadlines.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, errors.Join(err, unix.Close(fds[0]))
	}
	return os.NewFile(uintptr(fds[0]), "pty master"), nil
}
