// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"
)

// phasePrefix is that of the worker's own measurements of a start.
const phasePrefix = "phase_"

// measureMemory takes what an idle container costs, and from the same containers
// how the worker saw their start.
func measureMemory(ctx context.Context, b *bench) (err error) {
	if b.bulkhead == nil || !b.results.wants("mem_per_vm", "vm_pss", "relay_pss", phasePrefix) {
		return nil
	}
	n := 10
	if b.quick {
		n = 2
	}
	before, err := settledMemory(ctx)
	if err != nil {
		return err
	}
	var containers []*container
	defer func() {
		for _, c := range containers {
			err = errors.Join(err, c.remove(ctx))
		}
	}()
	for i := range n {
		b.progress("memory: container %d/%d", i+1, n)
		c, err := b.bulkhead.launch(ctx, "mem-"+strconv.Itoa(i), b.bundles.sleep, stdio{})
		if err != nil {
			return err
		}
		containers = append(containers, c)
	}
	b.progress("memory: settling")
	after, err := settledMemory(ctx)
	if err != nil {
		return err
	}
	b.results.addMean("mem_per_vm", "MB", (before-after)/1e6, n)
	list, err := b.list(ctx)
	if err != nil {
		return err
	}
	for _, sandbox := range list.Sandboxes {
		pss, err := pssBytes(int(sandbox.Pid))
		if err != nil {
			return err
		}
		b.results.add("vm_pss", "MB", pss/1e6)
		for name, took := range sandbox.Phases {
			b.results.addTime(phasePrefix+name, took.AsDuration())
		}
	}
	for _, c := range containers {
		pss, err := pssBytes(c.pid)
		if err != nil {
			return err
		}
		b.results.add("relay_pss", "MB", pss/1e6)
	}
	return nil
}

// Memory has settled when it moves by less than settledBytes in settleStep; a
// machine that is never that quiet is read after settleTime.
const (
	settledBytes = 1 << 20
	settleStep   = 2 * time.Second
	settleTime   = 40 * time.Second
)

// settledMemory is MemAvailable, in bytes, when it has stopped to move.
func settledMemory(ctx context.Context) (float64, error) {
	tick := time.NewTicker(settleStep)
	defer tick.Stop()
	last, err := field("/proc/meminfo", "MemAvailable:")
	for began := time.Now(); err == nil && time.Since(began) < settleTime; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
		var now float64
		now, err = field("/proc/meminfo", "MemAvailable:")
		if math.Abs(now-last) < settledBytes {
			return now, err
		}
		last = now
	}
	return last, err
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
