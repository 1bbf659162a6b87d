// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// Package idle reads from connections of which a host has thousands, nearly all of them silent: a
// read that waits holds no buffer.
//
// It imports nothing of ours. The invariant: between two reads of a silent connection its buffer is somebody else's.
package idle

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Read is conn.Read into the buffer that take returns. It is taken when there is something to
// read, and given back by give when there proves to be nothing. A connection without a descriptor, as those within a
// process are, is read in the ordinary way.
func Read(conn net.Conn, take func() []byte, give func()) (int, error) {
	described, ok := conn.(syscall.Conn)
	if !ok {
		return conn.Read(take())
	}
	raw, err := described.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var fault error
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, fault = unix.Read(int(fd), take())
			switch {
			case errors.Is(fault, unix.EINTR):
			case errors.Is(fault, unix.EAGAIN):
				give()
				return false
			default:
				return true
			}
		}
	})
	switch {
	case err != nil:
		return 0, err // closed, or its deadline has passed
	case fault != nil:
		return 0, os.NewSyscallError("read", fault)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}
