// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"
)

// Status is a container's state, in the words of the runtime-spec (runtime.md#state).
type Status string

// The states of a container.
const (
	Creating Status = "creating"
	Created  Status = "created"
	Running  Status = "running"
	Paused   Status = "paused"
	Stopped  Status = "stopped"
)

// Container is one container of the guest.
//
// Three locks, taken in this order: lifecycle is held for the whole of create,
// start, pause and remove, which may hang on a share; freezing is held while the cgroup is frozen or thawed
// (freezer.go); mu is held for moments and guards the fields below it. SIGKILL
// takes mu alone, so that what hangs can be killed.
type Container struct {
	m      *Manager
	key    string
	log    hclog.Logger
	cgroup cgroup
	rootfs string // written by create before any process runs, as are the three below
	share  string // where the share with its files is
	disks  disks
	mounts *os.File // the mount namespace, held for the disks; nil without any

	memories []string // shared ones that it has; written under lifecycle

	lifecycle gate
	freezing  gate

	mu         sync.Mutex
	status     Status
	frozen     bool                    // paused
	barred     bool                    // to be frozen in a moment
	launching  int                     // processes on their way into the cgroup
	changed    chan struct{}           // closed and replaced when one of the four above has changed
	lc         *libcontainer.Container // nil while creating, and for good without a process
	init       *process
	execs      map[string]*process
	undoSysctl func()

	// kills is locked alone, while somebody is told.
	kills struct {
		sync.Mutex
		told uint64 // processes that the kernel killed for want of memory
	}
}

// gate is a lock that can be waited for with a deadline.
type gate chan struct{}

func newGate() gate { return make(gate, 1) }

func (g gate) lock(ctx context.Context) error {
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for another operation on the container: %w", ctx.Err())
	}
}

func (g gate) unlock() { <-g }

// Info describes a container and its processes, the init first.
type Info struct {
	Key       string
	Status    Status
	Processes []ProcessInfo
}

// Info is a snapshot.
func (c *Container) Info() Info {
	c.mu.Lock()
	defer c.mu.Unlock()
	info := Info{Key: c.key, Status: c.statusLocked()}
	if c.init != nil {
		info.Processes = append(info.Processes, c.init.info())
	}
	execs := make([]ProcessInfo, 0, len(c.execs))
	for _, p := range c.execs {
		execs = append(execs, p.info())
	}
	slices.SortFunc(execs, func(a, b ProcessInfo) int { return strings.Compare(a.ExecID, b.ExecID) })
	info.Processes = append(info.Processes, execs...)
	return info
}

func (c *Container) statusLocked() Status {
	if c.frozen && (c.status == Running || c.status == Created) {
		return Paused
	}
	return c.status
}

// Start lets the created container's program run.
func (c *Container) Start(ctx context.Context) error {
	if err := c.lifecycle.lock(ctx); err != nil {
		return err
	}
	defer c.lifecycle.unlock()
	c.mu.Lock()
	status, lc := c.statusLocked(), c.lc
	c.mu.Unlock()
	switch {
	case status == Stopped:
		return stateError("cannot start a container that has stopped")
	case status == Paused:
		return stateError("cannot start a paused container")
	case status != Created:
		return stateError("cannot start an already running container")
	case lc == nil:
		return stateError("cannot start a container without a process: config.json has no process")
	}
	if err := lc.Exec(); err != nil {
		return fmt.Errorf("starting the container's program: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// A short program may have ended already.
	if c.status == Created {
		c.status = Running
	}
	return nil
}

// remove kills what runs, waits for it and takes away all that is left.
func (c *Container) remove(ctx context.Context) error {
	// Before the lock: what holds it may hang in a process this kills.
	if err := c.cgroup.kill(); err != nil {
		return fmt.Errorf("killing the container's processes: %w", err)
	}
	if err := c.lifecycle.lock(ctx); err != nil {
		return err
	}
	defer c.lifecycle.unlock()
	if err := c.cgroup.kill(); err != nil {
		return fmt.Errorf("killing the container's processes: %w", err)
	}
	// An exec may still begin until the init's end is known: wait for those who are left.
	for p := c.unsettled(); p != nil; p = c.unsettled() {
		select {
		case <-p.done:
		case <-ctx.Done():
			return fmt.Errorf("waiting for a process of the container to end: %w", ctx.Err())
		}
	}
	c.mu.Lock()
	lc := c.lc
	c.mu.Unlock()
	if lc != nil {
		if err := lc.Destroy(); err != nil && !errors.Is(err, libcontainer.ErrNotExist) {
			return fmt.Errorf("removing what the container left: %w", err)
		}
		if err := os.Remove(c.stateDir()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing what the container left: %w", err)
		}
	}
	c.mu.Lock()
	undo := c.undoSysctl
	c.undoSysctl = nil
	c.lc = nil
	c.status = Stopped
	c.notifyLocked()
	c.mu.Unlock()
	if undo != nil {
		undo()
	}
	c.dropMemories()
	c.m.forget(c)
	if left := c.leftovers(); len(left) > 0 {
		c.log.Warn("the removed container left something behind", "left", left)
	}
	return nil
}

// leftovers names what should have gone with the container and is still there.
// It is a check of libcontainer's work and ours, not a way to clean up.
func (c *Container) leftovers() []string {
	var left []string
	for _, path := range []string{string(c.cgroup), c.stateDir()} {
		if _, err := os.Lstat(path); err == nil {
			left = append(left, path)
		}
	}
	// The agent's mount table must not have changed: the container's mounts are in a namespace of its own.
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return append(left, err.Error())
	}
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4]+"/", filepath.Join(c.share, c.key)+"/") {
			left = append(left, fields[4])
		}
	}
	return left
}

// unsettled returns a process that has not ended, the init first.
func (c *Container) unsettled() *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.init != nil && !c.init.settled() {
		return c.init
	}
	for _, p := range c.execs {
		if !p.settled() {
			return p
		}
	}
	return nil
}

// flush writes what the container's programs left in the page cache to the
// host, so that who sees the exit sees the files.
func (c *Container) flush() {
	c.letGoOfDisks()
	dir, err := os.Open(c.rootfs)
	if err != nil {
		c.log.Warn("cannot flush the root file system", "error", err)
		return
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		c.log.Warn("cannot flush the root file system", "error", err)
	}
}
