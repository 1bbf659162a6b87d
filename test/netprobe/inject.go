// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// inject sends frames as they are, past all that the kernel would say of addresses:
// lines of hexadecimal digits on standard input, by the interface that the address names.
func inject(_ context.Context, _ settings, address string) (any, error) {
	link, err := net.InterfaceByName(address)
	if err != nil {
		return nil, err
	}
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(s)
	sent := 0
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); sent++ {
		frame, err := hex.DecodeString(lines.Text())
		if err != nil {
			return nil, err
		}
		if err := unix.Sendto(s, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index}); err != nil {
			return nil, fmt.Errorf("frame %d: %w", sent, err)
		}
	}
	return sent, nil
}
