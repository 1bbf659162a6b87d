// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Netns is a network namespace of the tests' own, in which engines make bridges
// and rules of the firewall without touching those of the machine. It lives as
// long as this process holds it or something runs in it, and has no name that
// could be left behind.
type Netns struct{ file *os.File }

// NewNetns makes one, with its loopback device up.
func NewNetns() (*Netns, error) {
	file, err := onThread(func() (*os.File, error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return nil, fmt.Errorf("make a network namespace: %w", err)
		}
		if err := loopbackUp(); err != nil {
			return nil, err
		}
		return os.Open("/proc/thread-self/ns/net")
	})
	if err != nil {
		return nil, err
	}
	return &Netns{file: file}, nil
}

// OpenNetns is the network namespace of a process.
func OpenNetns(pid int) (*Netns, error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, err
	}
	return &Netns{file: file}, nil
}

// Close lets go of it.
func (n *Netns) Close() error { return n.file.Close() }

// Path names it to other programs, while this process lives.
func (n *Netns) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// Args is a command line within it. Nothing else differs for the program, which
// keeps its pid.
func (n *Netns) Args(argv ...string) []string {
	return append([]string{"/usr/bin/nsenter", "--net=" + n.Path(), "--"}, argv...)
}

// Dial connects within it to an address that is no name.
func (n *Netns) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return inside(n, func() (net.Conn, error) { return new(net.Dialer).DialContext(ctx, network, address) })
}

// Listen listens within it.
func (n *Netns) Listen(network, address string) (net.Listener, error) {
	return inside(n, func() (net.Listener, error) { return net.Listen(network, address) })
}

// ListenPacket does so for datagrams.
func (n *Netns) ListenPacket(network, address string) (net.PacketConn, error) {
	return inside(n, func() (net.PacketConn, error) { return net.ListenPacket(network, address) })
}

// Links are the network interfaces in it.
func (n *Netns) Links() ([]string, error) { return inside(n, Links) }

// inside does something on a thread that stands in the namespace.
func inside[T any](n *Netns, do func() (T, error)) (T, error) {
	return onThread(func() (T, error) {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			var none T
			return none, fmt.Errorf("enter a network namespace: %w", err)
		}
		return do()
	})
}

// onThread does something on a thread of its own, which ends with it: its
// namespaces are nobody else's.
func onThread[T any](do func() (T, error)) (value T, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		value, err = do()
	}()
	<-done
	return value, err
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("bring the loopback device up: %w", err)
	}
	return nil
}
