// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
)

// The kernel puts a new process into the container's cgroup while it forks it
// (CLONE_INTO_CGROUP), and Go forks in a way that stops its thread, without the scheduler's knowledge, until the child has
// executed its program. A child that was born frozen would stop the whole
// agent for good. So nothing is launched into a cgroup that is frozen or is
// about to be, and nothing is frozen while a launch is under way.

// enter waits until a process may be launched; leave must follow.
func (c *Container) enter(ctx context.Context, p *process) error {
	for {
		c.mu.Lock()
		changed := c.changed
		switch {
		case p.doomed:
			c.mu.Unlock()
			return fmt.Errorf("killed before it ran: %w", ErrNotRunning)
		case c.status == Stopped:
			c.mu.Unlock()
			return stateError("cannot exec in a stopped container")
		case !c.frozen && !c.barred:
			c.launching++
			c.mu.Unlock()
			return nil
		}
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the paused container to be resumed: %w", ctx.Err())
		}
	}
}

func (c *Container) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.launching--
	c.notifyLocked()
}

// bar holds launches off and waits for those under way; unbar must follow.
func (c *Container) bar(ctx context.Context) error {
	if err := c.freezing.lock(ctx); err != nil {
		return err
	}
	for {
		c.mu.Lock()
		c.barred = true
		launching, changed := c.launching, c.changed
		c.mu.Unlock()
		if launching == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			c.unbar()
			return fmt.Errorf("waiting for a process that is being started: %w", ctx.Err())
		}
	}
}

func (c *Container) unbar() {
	c.mu.Lock()
	c.barred = false
	c.notifyLocked()
	c.mu.Unlock()
	c.freezing.unlock()
}

func (c *Container) notifyLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// Pause freezes every process of the container.
func (c *Container) Pause(ctx context.Context) error {
	// A start that met a frozen init would wait for the resume.
	if err := c.lifecycle.lock(ctx); err != nil {
		return err
	}
	defer c.lifecycle.unlock()
	if err := c.bar(ctx); err != nil {
		return err
	}
	defer c.unbar()
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
	if err := c.bar(ctx); err != nil {
		return err
	}
	defer c.unbar()
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
	c.frozen = frozen && c.status != Stopped
	c.notifyLocked()
}

// whileFrozen runs fn while no process of the container forks or ends, and so
// no pid means another process.
func (c *Container) whileFrozen(ctx context.Context, fn func() error) (err error) {
	if err := c.bar(ctx); err != nil {
		return err
	}
	defer c.unbar()
	c.mu.Lock()
	status := c.statusLocked()
	c.mu.Unlock()
	switch status {
	case Stopped:
		return nil
	case Paused:
		return fn()
	}
	if err := c.cgroup.freeze(ctx, true); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.cgroup.freeze(context.WithoutCancel(ctx), false)) }()
	return fn()
}
