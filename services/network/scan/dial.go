// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package scan

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	netv1 "bulkhead/proto/net/v1"
	"bulkhead/services/network/netspace"
)

// dialTime bounds a connection within the machine.
const dialTime = 2 * time.Second

// Dial connects, within the namespace, to a listener on a loopback address of
// it.
func Dial(ns *netspace.Namespace, to *netv1.Listener) (*os.File, error) {
	ip := net.ParseIP(to.Address)
	kinds := map[string]int{"tcp": unix.SOCK_STREAM, "udp": unix.SOCK_DGRAM}
	kind, known := kinds[to.Protocol]
	if ip == nil || !ip.IsLoopback() || !known || to.Port == 0 || to.Port > 65535 {
		return nil, fmt.Errorf("%s %s port %d is no loopback address to connect to", to.Protocol, to.Address, to.Port)
	}
	fd := -1
	err := ns.Do(func() (err error) {
		fd, err = dial(ip, int(to.Port), kind, dialTime)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connect to %s port %d (%s) in the network namespace: %w", to.Address, to.Port, to.Protocol, err)
	}
	return os.NewFile(uintptr(fd), to.Protocol), nil
}

// dial connects on the calling thread, whose namespace it uses.
func dial(ip net.IP, port, kind int, limit time.Duration) (int, error) {
	family, address := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: port, Addr: [16]byte(ip.To16())})
	if v4 := ip.To4(); v4 != nil {
		family, address = unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: [4]byte(v4)}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	err = unix.Connect(fd, address)
	if errors.Is(err, unix.EINPROGRESS) {
		err = connected(fd, limit)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// connected waits for the outcome of a connection.
func connected(fd int, limit time.Duration) error {
	end := time.Now().Add(limit)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(fds, int(max(0, time.Until(end).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return unix.ETIMEDOUT
		}
		code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = syscall.Errno(code)
		}
		return err
	}
}
