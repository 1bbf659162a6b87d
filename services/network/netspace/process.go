// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package netspace

import (
	"context"
	"os"

	"golang.org/x/sys/unix"
)

// Ended waits until the process by which the namespace was found has ended, and
// tells whether it has: false when ctx ended first. It holds no thread.
func (n *Namespace) Ended(ctx context.Context) bool {
	if n.process == nil {
		return true
	}
	raw, err := n.process.SyscallConn()
	if err != nil {
		return ctx.Err() == nil
	}
	stop := context.AfterFunc(ctx, func() { _ = n.process.SetReadDeadline(past) })
	defer stop()
	gone := false
	_ = raw.Read(func(fd uintptr) bool {
		gone = readable(int(fd))
		return gone
	})
	return gone
}

func ended(process *os.File) bool {
	raw, err := process.SyscallConn()
	if err != nil {
		return true
	}
	gone := true
	_ = raw.Control(func(fd uintptr) { gone = readable(int(fd)) })
	return gone
}

// readable tells whether a pidfd says that its process has ended.
func readable(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1 && fds[0].Revents&unix.POLLIN != 0
}
