// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"bulkhead/test/e2e/host"
)

// cost is the processor time of a QEMU: of the threads that run the guest, and of
// all others, which is the main loop that moves the packets. Other than a rate it
// hardly depends on what else the machine does.
type cost struct{ guest, loop time.Duration }

func (c cost) since(before cost) cost { return cost{c.guest - before.guest, c.loop - before.loop} }

// tick is the unit of times in /proc/PID/task/TID/stat (USER_HZ).
const tick = 10 * time.Millisecond

// times are those of the berth's QEMU so far; runc has none.
func (one *berth) times() (c cost, err error) {
	if one.qemu == 0 {
		return c, nil
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", one.qemu))
	if err != nil || len(threads) == 0 {
		return c, fmt.Errorf("%s: its QEMU %d is gone: %w", one.name, one.qemu, err)
	}
	for _, path := range threads {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		name, rest, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(rest) // proc(5): the state is the first, utime the 12th and stime the 13th of these
		if len(fields) < 13 {
			return c, fmt.Errorf("%s holds %q", path, text)
		}
		user, userErr := strconv.ParseInt(fields[11], 10, 64)
		system, systemErr := strconv.ParseInt(fields[12], 10, 64)
		if userErr != nil || systemErr != nil {
			return c, fmt.Errorf("%s holds %q", path, text)
		}
		took := time.Duration(user+system) * tick
		if strings.Contains(name, "(CPU ") {
			c.guest += took
		} else {
			c.loop += took
		}
	}
	return c, nil
}

// qemus are those that run.
func (b *bench) qemus() (map[int]bool, error) {
	found, err := b.ground.Processes()
	if err != nil {
		return nil, err
	}
	pids := map[int]bool{}
	for _, p := range host.Named(found, "qemu-") {
		pids[p.PID] = true
	}
	return pids, nil
}
