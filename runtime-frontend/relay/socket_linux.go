// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package relay

import (
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

func uintptrOf(b *byte) uintptr { return uintptr(unsafe.Pointer(b)) }

// listen makes the socket the worker connects to, readable by root alone.
func listen(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	old := unix.Umask(0o177)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(RelayDirFD) + "/" + name})
	unix.Umask(old)
	if err == nil {
		err = unix.Listen(fd, 4)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// accept takes a connection of root; -1 for none.
func accept(listener int) int {
	fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		return -1
	}
	// The pid is not looked at: in another PID namespace it reads as 0.
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || cred.Uid != 0 {
		unix.Close(fd)
		return -1
	}
	return fd
}

// receive reads one packet without waiting, and at most one descriptor with it.
func receive(fd int, b []byte) (n, passed int, err error) {
	passed = -1
	var oob [64]byte
	n, oobn, _, _, err := unix.Recvmsg(fd, b, oob[:], unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return 0, -1, err
	}
	if oobn > 0 {
		messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
		for i := range messages {
			fds, _ := unix.ParseUnixRights(&messages[i])
			for _, got := range fds {
				if passed >= 0 {
					unix.Close(passed)
				}
				passed = got
			}
		}
	}
	return n, passed, nil
}

// transmit sends one packet, waiting for room.
func transmit(fd int, b []byte) error {
	for {
		err := unix.Sendmsg(fd, b, nil, nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return err
		}
	}
}

// poll waits for events; a negative timeout waits for ever. It reports whether any came.
func poll(fds []unix.PollFd, timeoutMs int) bool {
	n, err := unix.Poll(fds, timeoutMs)
	if err != nil || n <= 0 {
		for i := range fds {
			fds[i].Revents = 0
		}
		return false
	}
	return true
}
