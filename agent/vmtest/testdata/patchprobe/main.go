// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// patchprobe has the kernel change its own code while another processor runs it: the static
// key of packets' times, which goes on with the first socket that asks for them and off with
// the last, in the path of each packet over loopback. It ends by itself after so many seconds.
package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	seconds, err := strconv.Atoi(os.Args[1])
	if err != nil {
		fail(err)
	}
	end := time.Now().Add(time.Duration(seconds) * time.Second)
	from, err := net.Dial("udp", listen())
	if err != nil {
		fail(err)
	}
	go func() {
		for {
			if _, err := from.Write([]byte{0}); err != nil {
				fail(err)
			}
		}
	}()
	changes := 0
	for ; time.Now().Before(end); changes++ {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			fail(err)
		}
		if err := unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_TIMESTAMP, 1); err != nil {
			fail(err)
		}
		// The kernel makes the change in a worker of its own.
		time.Sleep(200 * time.Microsecond)
		unix.Close(s)
		time.Sleep(200 * time.Microsecond)
	}
	fmt.Println("still there,", changes > 100)
}

// listen is a socket that hears until the process ends.
func listen() string {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		fail(err)
	}
	go func() {
		for b := make([]byte, 8); ; {
			if _, _, err := c.ReadFrom(b); err != nil {
				fail(err)
			}
		}
	}()
	return c.LocalAddr().String()
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
