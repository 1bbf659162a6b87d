// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// group is the directory of a cgroup.
type group string

// number reads a file of one number; "max" and what cannot be read are 0.
func (g group) number(file string) uint64 {
	text, err := os.ReadFile(filepath.Join(string(g), file))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// keyed reads one value of a flat keyed file; 0 when there is none.
func (g group) keyed(file, key string) uint64 {
	text, err := os.ReadFile(filepath.Join(string(g), file))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name == key {
			n, _ := strconv.ParseUint(value, 10, 64)
			return n
		}
	}
	return 0
}

func (g group) write(file string, value uint64) error {
	return os.WriteFile(filepath.Join(string(g), file), strconv.AppendUint(nil, value, 10), 0)
}
