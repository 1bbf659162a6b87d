// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// settleTime is how long after the last start or end memory is read. It is the same for
// every runtime and every run: a guest gives back what it freed for some seconds more, and a
// longer wait would flatter.
const settleTime = 10 * time.Second

// settledMemory is MemAvailable, in bytes, after settleTime.
func (b *bench) settledMemory(ctx context.Context) (float64, error) {
	if !b.quick {
		if err := pause(ctx, settleTime); err != nil {
			return 0, err
		}
	}
	return field("/proc/meminfo", "MemAvailable:")
}

// pssBytes is the proportional share of a process's memory (proc(5), smaps_rollup).
func pssBytes(pid int) (float64, error) {
	return field(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:")
}

// field reads a line "name value kB" of a file in /proc, in bytes.
func field(path, name string) (float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if words := strings.Fields(lines.Text()); len(words) == 3 && words[0] == name {
			kib, err := strconv.ParseFloat(words[1], 64)
			return kib * 1024, err
		}
	}
	return 0, fmt.Errorf("%s has no %q", path, name)
}

// tick is the unit of processor time in /proc/pid/stat: USER_HZ is 100 on every Linux.
const tick = 10 * time.Millisecond

// cpuTime is the processor time that a process has used (proc(5), /proc/pid/stat).
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is cut short", pid)
	}
	var sum time.Duration
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}

// pause waits, unless ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
