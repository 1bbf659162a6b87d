// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// headroom is kept for the kernel and the agent: the descriptors of the next
	// block, the set-up of a further container. The kernel's own reserve comes to it.
	headroom = 12 * mib
	// slack is what the cgroup of all containers may use beyond their limits: the
	// limit that a container meets first shall be its own.
	slack = 16 * mib
)

// draw sets the border to what the machine has beside the kernel and the agent.
func (g *Governor) draw() error {
	m := g.machine
	total, free, err := g.meminfo()
	if err != nil {
		return err
	}
	if err := g.setReserve(reserve(total)); err != nil {
		return err
	}
	// Below one and a half of its reserve the kernel reclaims, and near it, it kills.
	border := g.group.number("memory.current") + free - min(free, headroom+2*reserve(total))
	has := g.online(total)
	shrinks := g.offered != 0 && g.offered < has
	if shrinks {
		border -= min(border, has-g.offered) // about to go
	}
	grows := has < m.Limit || shrinks
	if !grows {
		border = max(border, m.Containers+slack)
	}
	wait := uint64(0)
	if grows && g.refused.IsZero() && !g.silent {
		wait = uint64(waitTime / time.Millisecond)
	}
	type file struct {
		name  string
		value uint64
	}
	files := []file{{"memory.max.later", m.Containers}, {"memory.max.wait", wait}, {"memory.max", border}}
	if wait == 0 { // who waits at the old border would be killed for it
		slices.Reverse(files)
	}
	for _, f := range files {
		if err := g.group.write(f.name, f.value); err != nil {
			return fmt.Errorf("moving the border of the containers' memory: %w", err)
		}
	}
	return nil
}

// online is what the machine has by its kernel's word. A host takes memory away bit by bit and tells when it is done, or
// never, if it dies meanwhile; and it tells of what it has added a moment before the kernel uses it.
func (g *Governor) online(total uint64) uint64 { return min(g.machine.Has, total+g.unseen) }

// redraw is draw where nobody can be told of an error.
func (g *Governor) redraw() {
	if err := g.draw(); err != nil {
		g.cfg.Log.Error("the memory of the containers is not followed", "error", err)
	}
}

// reserve is what the kernel keeps for what cannot wait (init_per_zone_wmark_min, in mm/page_alloc.c).
func reserve(total uint64) uint64 { return 4 * uint64(math.Sqrt(float64(total>>10))) << 10 }

// setReserve has the kernel keep no more: for transparent huge pages it would take a twentieth of the
// machine, each time that memory is added.
func (g *Governor) setReserve(bytes uint64) error {
	file := filepath.Join(g.cfg.Proc, "sys/vm/min_free_kbytes")
	want := strconv.FormatUint(bytes>>10, 10)
	if now, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(now)) == want {
		return nil
	}
	return os.WriteFile(file, []byte(want), 0)
}

// meminfo is the machine's memory and what of it is free, in bytes.
func (g *Governor) meminfo() (total, free uint64, err error) {
	text, err := os.ReadFile(filepath.Join(g.cfg.Proc, "meminfo"))
	if err != nil {
		return 0, 0, err
	}
	for _, f := range []struct {
		name string
		to   *uint64
	}{{"MemTotal:", &total}, {"MemFree:", &free}} {
		_, rest, _ := strings.Cut(string(text), f.name)
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			return 0, 0, fmt.Errorf("/proc/meminfo has no %s", f.name)
		}
		kib, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/meminfo, %s: %w", f.name, err)
		}
		*f.to = kib << 10
	}
	return total, free, nil
}
