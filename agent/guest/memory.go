// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// MemoryAvailable is the memory of the guest, and what of it could be had, in bytes (proc(5), /proc/meminfo).
func MemoryAvailable() (total, available uint64, err error) {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, fmt.Errorf("reading the guest's memory: %w", err)
	}
	for line := range strings.Lines(string(raw)) {
		words := strings.Fields(line)
		if len(words) != 3 {
			continue
		}
		var to *uint64
		switch words[0] {
		case "MemTotal:":
			to = &total
		case "MemAvailable:":
			to = &available
		default:
			continue
		}
		kib, err := strconv.ParseUint(words[1], 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("reading the guest's memory: %w", err)
		}
		*to = kib << 10
	}
	if total == 0 {
		return 0, 0, errors.New("reading the guest's memory: /proc/meminfo has no MemTotal")
	}
	return total, available, nil
}
