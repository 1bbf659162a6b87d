// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Console listens on a console socket and receives the master of a terminal:
// one message with a payload and one descriptor.
type Console struct{ listener *net.UnixListener }

// ListenConsole makes the socket.
func ListenConsole(path string) (*Console, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return &Console{l}, nil
}

// Receive takes the master. Engines accept only after create has returned, so
// it is called then.
func (c *Console) Receive(ctx context.Context) (*os.File, error) {
	defer c.listener.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.listener.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	conn, err := c.listener.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("nobody sent a console: %w", err)
	}
	defer conn.Close()
	data, control := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*8))
	n, controlLen, _, _, err := conn.ReadMsgUnix(data, control)
	if err != nil {
		return nil, err
	}
	if n == 0 || n >= len(data) {
		return nil, fmt.Errorf("the message has %d bytes; receivers want 1 to 4095", n)
	}
	messages, err := unix.ParseSocketControlMessage(control[:controlLen])
	if err != nil {
		return nil, err
	}
	if len(messages) != 1 {
		return nil, fmt.Errorf("%d control messages instead of one", len(messages))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	if len(fds) != 1 {
		return nil, fmt.Errorf("%d descriptors instead of one", len(fds))
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, errors.Join(err, unix.Close(fds[0]))
	}
	return os.NewFile(uintptr(fds[0]), "console"), nil
}
