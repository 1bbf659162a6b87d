// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Port is an open virtio-serial port of a guest.
type Port struct {
	file *os.File
	raw  syscall.RawConn
}

// OpenPort opens a guest's virtio-serial port for Listen.
//
// While the host end is not connected, the kernel answers read with 0, write
// with EAGAIN and poll with POLLIN|POLLHUP (virtio_console.c: will_read_block,
// port_fops_poll). A level-triggered poller would spin. The runtime's poller is
// edge-triggered: the port wakes it when the host connects, disconnects or
// sends, so waiting for the next edge after a read of 0 neither spins nor
// misses the host.
func OpenPort(path string) (*Port, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the virtio-serial port %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	if err := f.SetDeadline(time.Time{}); err != nil {
		f.Close()
		return nil, fmt.Errorf("the port %s cannot be polled: %w", path, err)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("the port %s: %w", path, err)
	}
	return &Port{file: f, raw: raw}, nil
}

// Read waits until the host has sent something. It does not return io.EOF.
func (p *Port) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	var n int
	var readErr error
	err := p.raw.Read(func(fd uintptr) bool {
		for {
			n, readErr = unix.Read(int(fd), b)
			if readErr != unix.EINTR {
				break
			}
		}
		return n > 0 || (readErr != nil && readErr != unix.EAGAIN)
	})
	if err != nil {
		return 0, err
	}
	if readErr != nil {
		return 0, readErr
	}
	return n, nil
}

// Write writes all of b, waiting for the host as long as it takes or until the
// write deadline.
func (p *Port) Write(b []byte) (int, error) { return p.file.Write(b) }

// SetWriteDeadline bounds Write.
func (p *Port) SetWriteDeadline(t time.Time) error { return p.file.SetWriteDeadline(t) }

// Close closes the port and ends a Read in progress.
func (p *Port) Close() error { return p.file.Close() }

var _ io.ReadWriteCloser = (*Port)(nil)
