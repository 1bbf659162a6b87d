// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Capture hears the frames that come in by a link, until it is closed.
type Capture struct {
	file  *os.File
	ended chan struct{}

	mu     sync.Mutex
	frames map[string]int // guarded by mu
}

// Capture begins one in the namespace.
func (n *Netns) Capture(link string) (*Capture, error) {
	file, err := inside(n, func() (*os.File, error) { return listenFrames(link) })
	if err != nil {
		return nil, fmt.Errorf("capture frames on %s: %w", link, err)
	}
	c := &Capture{file: file, ended: make(chan struct{}), frames: map[string]int{}}
	go c.listen()
	return c, nil
}

func listenFrames(link string) (*os.File, error) {
	device, err := net.InterfaceByName(link)
	if err != nil {
		return nil, err
	}
	// Of no protocol until it is bound: before, it would hear every link.
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(s), "frames of "+link)
	err = unix.SetsockoptInt(s, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	if err == nil {
		err = unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	}
	if err == nil {
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in the order of the network
		err = unix.Bind(s, &unix.SockaddrLinklayer{Protocol: all, Ifindex: device.Index})
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func (c *Capture) listen() {
	defer close(c.ended)
	buf := make([]byte, 1<<16)
	for {
		n, err := c.file.Read(buf)
		if err != nil {
			return // closed, or the link has gone
		}
		c.mu.Lock()
		c.frames[string(buf[:n])]++
		c.mu.Unlock()
	}
}

// Heard is how often a frame came. One with a VLAN tag the kernel shows without it.
func (c *Capture) Heard(frame []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	heard := c.frames[string(frame)]
	if len(frame) > 18 && frame[12] == 0x81 && frame[13] == 0 {
		heard += c.frames[string(frame[:12])+string(frame[16:])]
	}
	return heard
}

// Close ends it.
func (c *Capture) Close() error {
	err := c.file.Close()
	<-c.ended
	return err
}
