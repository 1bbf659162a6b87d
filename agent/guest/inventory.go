// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Inventory is what programs can have left in the guest: mounts, cgroups, files, processes, network devices,
// the host name, and descriptors of this process by what they are of.
type Inventory []string

// TakeInventory looks.
func TakeInventory() (Inventory, error) {
	var all Inventory
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("looking at what there is: %w", err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			all = append(all, "mount "+fields[4])
		}
	}
	for _, dir := range []string{cgroupMount, "/run", "/tmp", "/dev"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if dir != cgroupMount || err == nil && d.IsDir() {
				all = append(all, "file "+path)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it went meanwhile
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("looking at what there is: %w", err)
		}
	}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("looking at what there is: %w", err)
	}
	for _, p := range processes {
		stat, err := os.ReadFile(filepath.Join("/proc", p.Name(), "stat"))
		if _, convErr := strconv.Atoi(p.Name()); convErr != nil || err != nil {
			continue
		}
		// The kernel's own threads are children of kthreadd, and come and go.
		if fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])); len(fields) > 1 && fields[1] != "2" {
			all = append(all, "process "+p.Name())
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("looking at what there is: %w", err)
	}
	for _, l := range links {
		all = append(all, "network device "+l.Name)
	}
	hostname, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("looking at what there is: %w", err)
	}
	all = append(all, "host name "+hostname)
	open, err := descriptors()
	if err != nil {
		return nil, fmt.Errorf("looking at what there is: %w", err)
	}
	return append(all, open...), nil
}

// descriptors are those of this process. One that is closed meanwhile is not among them.
func descriptors() (all []string, err error) {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	for _, d := range open {
		if of, err := os.Readlink(filepath.Join("/proc/self/fd", d.Name())); err == nil {
			all = append(all, "descriptor of "+of)
		}
	}
	return all, nil
}

// Since names what is not as it was.
func (i Inventory) Since(before Inventory) (left, gone []string) {
	count := map[string]int{}
	for _, is := range i {
		count[is]++
	}
	for _, was := range before {
		count[was]--
	}
	for _, what := range slices.Sorted(maps.Keys(count)) {
		switch n := count[what]; {
		case n > 0:
			left = append(left, what)
		case n < 0:
			gone = append(gone, what)
		}
	}
	return left, gone
}
