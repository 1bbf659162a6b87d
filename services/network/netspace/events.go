// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package netspace

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// past is a deadline that has passed: it ends a read that waits.
var past = time.Unix(1, 0)

// eventBuffer holds several hundred of the kernel's messages; more than that
// within one moment is told as an overrun, which costs a look at everything.
const eventBuffer = 256 << 10

// Events is a subscription to changes of links, addresses, routes, rules and
// static neighbours of a namespace.
type Events struct {
	// Overruns counts how often the kernel had more to tell than it could keep.
	// Only the caller of Wait reads it.
	Overruns int

	socket *os.File
}

// Subscribe begins to listen. It holds a descriptor and no thread.
func (n *Namespace) Subscribe() (*Events, error) {
	fd := -1
	err := n.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to changes of a network namespace: %w", err)
	}
	var groups uint32
	for _, g := range []int{
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
	} {
		groups |= 1 << (g - 1)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, eventBuffer) // the default does, too
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to changes of a network namespace: %w", err)
	}
	return &Events{socket: os.NewFile(uintptr(fd), "netlink")}, nil
}

// Close ends the subscription.
func (e *Events) Close() { e.socket.Close() }

// Wait returns when something changed that a guest could see, or the kernel had
// more to tell than it could keep: either way, look at everything.
func (e *Events) Wait(ctx context.Context) error {
	raw, err := e.socket.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = e.socket.SetReadDeadline(past) })
	defer stop()
	for {
		var size int
		var fault error
		var buf *batch // nil while nothing happens, which is nearly always
		err := raw.Read(func(fd uintptr) bool {
			if buf == nil {
				buf = batches.Get().(*batch)
			}
			size, _, fault = unix.Recvfrom(int(fd), buf[:], 0)
			if errors.Is(fault, unix.EAGAIN) || errors.Is(fault, unix.EINTR) {
				batches.Put(buf)
				buf = nil
				return false
			}
			return true
		})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("wait for changes of a network namespace: %w", err)
		case errors.Is(fault, unix.ENOBUFS):
			e.Overruns++
			return nil
		case fault != nil:
			return fmt.Errorf("wait for changes of a network namespace: %w", fault)
		}
		news := matters(buf[:size])
		batches.Put(buf)
		if news {
			return nil
		}
	}
}

// batch is as much as is read of changes at once.
type batch [32 << 10]byte

var batches = sync.Pool{New: func() any { return new(batch) }}

// matters leaves out what the kernel learns about neighbours by itself.
func matters(batch []byte) bool {
	messages, err := syscall.ParseNetlinkMessage(batch)
	if err != nil {
		return true
	}
	for _, m := range messages {
		if m.Header.Type != unix.RTM_NEWNEIGH {
			return true
		}
		if len(m.Data) < unix.SizeofNdMsg || state(m.Data)&unix.NUD_PERMANENT != 0 {
			return true
		}
	}
	return false
}

// state is ndm_state of a struct ndmsg (rtnetlink(7)).
func state(ndmsg []byte) uint16 { return binary.NativeEndian.Uint16(ndmsg[8:10]) }
