// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	vmv1 "bulkhead/proto/vm/v1"
)

const interfaceClass = "/sys/class/net"

// Interfaces counts what went through the guest's network interfaces; the
// loopback is no way out of a container and not among them.
func Interfaces() ([]vmv1.InterfaceStats, error) {
	entries, err := os.ReadDir(interfaceClass)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listing the network interfaces: %w", err)
	}
	all := []vmv1.InterfaceStats{}
	for _, e := range entries {
		if e.Name() == "lo" {
			continue
		}
		count := func(name string) uint64 {
			text, err := os.ReadFile(filepath.Join(interfaceClass, e.Name(), "statistics", name))
			if err != nil {
				return 0 // it has just gone
			}
			n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
			if err != nil {
				return 0
			}
			return n
		}
		all = append(all, vmv1.InterfaceStats{
			Name:    e.Name(),
			RxBytes: count("rx_bytes"), RxPackets: count("rx_packets"), RxErrors: count("rx_errors"), RxDropped: count("rx_dropped"),
			TxBytes: count("tx_bytes"), TxPackets: count("tx_packets"), TxErrors: count("tx_errors"), TxDropped: count("tx_dropped"),
		})
	}
	return all, nil
}
