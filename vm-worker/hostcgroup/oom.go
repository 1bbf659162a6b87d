// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package hostcgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// A victim is a process that is there to be killed by the kernel for using too
// much memory.
const (
	victimName    = "bulkhead-oom-victim" // argv[0], by which Main knows it
	victimRoom    = 8 << 20               // memory left between the usage and the lowered limit
	victimTouches = 1 << 30               // what the victim uses if nothing stops it
	oomTimeout    = 5 * time.Second
)

// Main is to be called first in main, and in TestMain, of every program that
// calls SignalOOM. It returns at once unless this process is a victim.
func Main() {
	called.Store(true)
	if len(os.Args) != 2 || os.Args[0] != victimName {
		return
	}
	victim(os.Args[1])
}

// called tells that Main has run: without it a re-exec would start the whole
// program a second time.
var called atomic.Bool

// victim enters the cgroup whose cgroup.procs is given and uses memory until it
// is killed, or, when the limit turns out not to hold it, ends.
func victim(procs string) {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
		os.Exit(3)
	}
	if err := os.WriteFile(procs, []byte("0"), 0); err != nil {
		os.Exit(4)
	}
	// Entered; now the starter may lower the limit and let it begin.
	_, _ = os.Stdout.WriteString("in\n")
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		os.Exit(5)
	}
	memory, err := unix.Mmap(-1, 0, victimTouches, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		os.Exit(6)
	}
	for i := 0; i < len(memory); i += os.Getpagesize() {
		memory[i] = 1
	}
	os.Exit(0)
}

// SignalOOM makes an OOM kill in the guest visible to engines, which watch the
// container's host cgroup for one (v1: an eventfd on memory.oom_control; v2:
// oom_kill in memory.events) and never see the guest's: a process that was made
// for it is OOM-killed in the cgroup. For that moment the limit is lowered to
// just above the usage; the others in the cgroup are not chosen, because the
// victim's oom_score_adj is 1000. The limit is put back whatever happens.
//
// It is an error when the kernel did not kill, and nothing is changed then.
func (c *Cgroup) SignalOOM(ctx context.Context) error {
	if c.manager == nil {
		return nil // no cgroup, so nobody watches one
	}
	if !called.Load() {
		return errors.New("showing an OOM kill to the engine: this program's main does not call hostcgroup.Main")
	}
	ctx, cancel := context.WithTimeout(ctx, oomTimeout)
	defer cancel()
	limit, err := c.memoryFiles()
	if err != nil {
		return fmt.Errorf("showing an OOM kill to the engine: %w", err)
	}
	c.limits.Lock() // what it puts back must not be an older limit than the last
	defer c.limits.Unlock()
	if err := limit.kill(ctx); err != nil {
		return fmt.Errorf("showing an OOM kill to the engine: %w", err)
	}
	return nil
}

// memoryLimit is the limit of one memory cgroup.
type memoryLimit struct {
	dir   string
	limit string // name of the file
	usage string
	swap  string // the limit of memory and swap together, v1; must not be below limit
}

func (c *Cgroup) memoryFiles() (memoryLimit, error) {
	if dir := c.state.Paths["memory"]; dir != "" {
		return memoryLimit{dir, "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.memsw.limit_in_bytes"}, nil
	}
	if dir := c.state.Paths[""]; dir != "" && cgroups.IsCgroup2UnifiedMode() {
		return memoryLimit{dir: dir, limit: "memory.max", usage: "memory.current"}, nil
	}
	return memoryLimit{}, errors.New("this host has no memory controller")
}

// kill runs a victim to its death under a lowered limit.
func (m memoryLimit) kill(ctx context.Context) (err error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{victimName, filepath.Join(m.dir, "cgroup.procs")}
	cmd.Env = []string{"GOMAXPROCS=1"}
	in, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("making a victim: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("making a victim: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("making a victim: %w", err)
	}
	// The pipes close with cmd's end; a victim that waits sees it.
	entered := make([]byte, 3)
	if n, readErr := out.Read(entered); readErr != nil || n == 0 {
		in.Close()
		return fmt.Errorf("a victim did not enter the cgroup: %w", cmd.Wait())
	}
	restore, err := m.lower()
	if err != nil {
		in.Close()
		_ = cmd.Wait()
		return err
	}
	_, writeErr := in.Write([]byte{1})
	waitErr := cmd.Wait()
	if err := errors.Join(writeErr, restore()); err != nil {
		return err
	}
	var exit *exec.ExitError
	if ctx.Err() == nil && errors.As(waitErr, &exit) {
		if status := exit.Sys().(syscall.WaitStatus); status.Signaled() && status.Signal() == syscall.SIGKILL {
			return nil
		}
	}
	if waitErr == nil {
		return errors.New("the kernel did not kill the victim: it had all the memory it asked for")
	}
	return fmt.Errorf("the kernel did not kill the victim: %w", waitErr)
}

// largest is the resident memory of the largest process in the cgroup, shared
// memory included, in bytes.
func (m memoryLimit) largest() int64 {
	pids, err := cgroups.GetAllPids(m.dir)
	if err != nil {
		return 0 // it is about to be removed
	}
	var most int64
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid)) // proc(5): size resident shared ..., in pages
		fields := strings.Fields(string(text))
		if err != nil || len(fields) < 2 {
			continue // it has just ended
		}
		pages, err := strconv.ParseInt(fields[1], 10, 64)
		if err == nil {
			most = max(most, pages*int64(os.Getpagesize()))
		}
	}
	return most
}

// lower sets the limit just above the usage and the largest process, unless it is
// lower already.
func (m memoryLimit) lower() (restore func() error, err error) {
	before, err := cgroups.ReadFile(m.dir, m.limit)
	if err != nil {
		return nil, fmt.Errorf("reading the memory limit: %w", err)
	}
	before = strings.TrimSpace(before)
	text, err := cgroups.ReadFile(m.dir, m.usage)
	if err != nil {
		return nil, fmt.Errorf("reading the memory usage: %w", err)
	}
	usage, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("reading the memory usage: %w", err)
	}
	// The kernel kills the process of which its memory and its oom_score_adj, in
	// thousandths of the limit, are the largest sum (oom_badness in mm/oom_kill.c). Memory
	// that a process shares and another cgroup pays for counts too: QEMU's program
	// and the guest's image. So the limit itself must outweigh the largest process.
	low := max(usage, m.largest()) + victimRoom
	if now, err := strconv.ParseInt(before, 10, 64); err == nil && now <= low {
		return func() error { return nil }, nil
	}
	var beforeSwap string
	if m.swap != "" {
		if text, err := cgroups.ReadFile(m.dir, m.swap); err == nil {
			beforeSwap = strings.TrimSpace(text)
		}
	}
	restore = func() error {
		// The wider one first: memory and swap together is never below memory.
		var errs []error
		if beforeSwap != "" {
			errs = append(errs, cgroups.WriteFile(m.dir, m.swap, beforeSwap))
		}
		errs = append(errs, cgroups.WriteFile(m.dir, m.limit, before))
		if err := errors.Join(errs...); err != nil {
			return fmt.Errorf("putting the memory limit back to %s: %w", before, err)
		}
		return nil
	}
	value := strconv.FormatInt(low, 10)
	if err := cgroups.WriteFile(m.dir, m.limit, value); err != nil {
		return nil, errors.Join(fmt.Errorf("lowering the memory limit: %w", err), restore())
	}
	if beforeSwap != "" { // else the victim would be swapped out instead
		if err := cgroups.WriteFile(m.dir, m.swap, value); err != nil {
			return nil, errors.Join(fmt.Errorf("lowering the memory limit: %w", err), restore())
		}
	}
	return restore, nil
}
