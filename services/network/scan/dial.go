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

// Dialing is a connection that was begun.
type Dialing struct {
	fd int
	to *netv1.Listener
}

// Dial begins to connect, within the namespace, to a listener on a loopback address of
// it. Wait, which needs the namespace no more, is called once.
func Dial(ns *netspace.Namespace, to *netv1.Listener) (*Dialing, error) {
	ip := net.ParseIP(to.Address)
	kinds := map[string]int{"tcp": unix.SOCK_STREAM, "udp": unix.SOCK_DGRAM}
	kind, known := kinds[to.Protocol]
	if ip == nil || !ip.IsLoopback() || !known || to.Port == 0 || to.Port > 65535 {
		return nil, fmt.Errorf("%s %s port %d is no loopback address to connect to", to.Protocol, to.Address, to.Port)
	}
	d := &Dialing{fd: -1, to: to}
	err := ns.Do(func() (err error) {
		d.fd, err = begin(ip, int(to.Port), kind)
		return err
	})
	if err != nil {
		return nil, d.failed(err)
	}
	return d, nil
}

// Wait returns the socket once it is connected.
func (d *Dialing) Wait() (*os.File, error) {
	if err := connected(d.fd, dialTime); err != nil {
		unix.Close(d.fd)
		return nil, d.failed(err)
	}
	return os.NewFile(uintptr(d.fd), d.to.Protocol), nil
}

func (d *Dialing) failed(err error) error {
	return fmt.Errorf("connect to %s port %d (%s) in the network namespace: %w", d.to.Address, d.to.Port, d.to.Protocol, err)
}

// dial connects on the calling thread, whose namespace it uses.
func dial(ip net.IP, port, kind int, limit time.Duration) (int, error) {
	fd, err := begin(ip, port, kind)
	if err != nil {
		return -1, err
	}
	if err := connected(fd, limit); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// begin begins to connect on the calling thread, whose namespace it uses.
func begin(ip net.IP, port, kind int) (int, error) {
	family, address := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: port, Addr: [16]byte(ip.To16())})
	if v4 := ip.To4(); v4 != nil {
		family, address = unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: [4]byte(v4)}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, address); err != nil && !errors.Is(err, unix.EINPROGRESS) {
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
