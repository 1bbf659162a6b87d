// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"
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
// Two locks: lifecycle is held for the whole of create, start and remove, which
// may hang on a share; mu is held for moments and guards the fields below it.
// Signals and freezing take mu alone, so that what hangs can be killed.
// lifecycle is taken before mu.
type Container struct {
	m      *Manager
	key    string
	log    hclog.Logger
	cgroup cgroup
	rootfs string // written by create before any process runs

	lifecycle chan struct{} // a lock that can be waited for with a deadline

	mu         sync.Mutex
	status     Status
	frozen     bool
	lc         *libcontainer.Container // nil while creating, and for good without a process
	init       *process
	execs      map[string]*process
	undoSysctl func()
}

// lock takes the lifecycle lock.
func (c *Container) lock(ctx context.Context) error {
	select {
	case c.lifecycle <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for another operation on the container: %w", ctx.Err())
	}
}

func (c *Container) unlock() { <-c.lifecycle }

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
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
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

// Pause freezes every process of the container.
func (c *Container) Pause(ctx context.Context) error {
	c.mu.Lock()
	status := c.statusLocked()
	c.mu.Unlock()
	switch status {
	case Paused:
		return nil
	case Running, Created:
	default:
		return stateError(fmt.Sprintf("cannot pause a container that is not running: %s", status))
	}
	if err := c.cgroup.freeze(ctx, true); err != nil {
		return fmt.Errorf("pausing: %w", err)
	}
	c.setFrozen(true)
	return nil
}

// Resume thaws a paused container.
func (c *Container) Resume(ctx context.Context) error {
	c.mu.Lock()
	status := c.statusLocked()
	c.mu.Unlock()
	if status != Paused {
		return stateError("container not paused")
	}
	if err := c.cgroup.freeze(ctx, false); err != nil {
		return fmt.Errorf("resuming: %w", err)
	}
	c.setFrozen(false)
	return nil
}

func (c *Container) setFrozen(frozen bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frozen = frozen
}

// remove kills what runs, waits for it and takes away all that is left.
func (c *Container) remove(ctx context.Context) error {
	// Before the lock: what holds it may hang in a process this kills.
	if err := c.cgroup.kill(); err != nil {
		return fmt.Errorf("killing the container's processes: %w", err)
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
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
	}
	c.mu.Lock()
	undo := c.undoSysctl
	c.undoSysctl = nil
	c.lc = nil
	c.status = Stopped
	c.mu.Unlock()
	if undo != nil {
		undo()
	}
	c.m.forget(c)
	return nil
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
