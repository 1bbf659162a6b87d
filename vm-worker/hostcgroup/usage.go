// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package hostcgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Anonymous is the memory of no file that the kernel counts to the cgroup, and to those beneath it, in bytes. A page counts to the
// cgroup in which its process was when it was first written to, also after the process has moved: cgroup v2
// never moves a charge (Documentation/admin-guide/cgroup-v2.rst, "Memory Ownership"), and v1 no longer does.
func (c *Cgroup) Anonymous() (uint64, error) {
	if dir, ok := c.state.Paths["memory"]; ok {
		return anonymous(dir, "total_rss")
	}
	if dir, ok := c.state.Paths[""]; ok {
		return anonymous(dir, "anon")
	}
	return 0, nil
}

// AnonymousOf is Anonymous for the cgroup that a process is in.
func AnonymousOf(pid int) (uint64, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return 0, fmt.Errorf("reading the cgroup of process %d: %w", pid, err)
	}
	unified := ""
	for line := range strings.Lines(string(text)) { // "4:memory:/path" of version 1, "0::/path" of version 2
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(fields) != 3:
		case fields[1] == "memory":
			return anonymous(filepath.Join(cgroupRoot, "memory", fields[2]), "total_rss")
		case fields[0] == "0":
			unified = fields[2]
		}
	}
	return anonymous(filepath.Join(cgroupRoot, unified), "anon")
}

// cgroupRoot is where cgroups are mounted, by convention and for the library that makes them.
const cgroupRoot = "/sys/fs/cgroup"

func anonymous(dir, counter string) (uint64, error) {
	text, err := os.ReadFile(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return 0, fmt.Errorf("reading the memory of a cgroup: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), " "); name == counter {
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("reading the memory of a cgroup: %w", err)
			}
			return n, nil
		}
	}
	return 0, fmt.Errorf("the memory of cgroup %s is told without %s", dir, counter)
}
