// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"
)

// Signal sends a signal to the init, or to the exec named. SIGKILL reaches what is
// frozen and what is still being created or started.
func (c *Container) Signal(execID string, sig unix.Signal) error {
	if sig < 0 || sig > 64 {
		return fmt.Errorf("%w: signal %d is not between 0 and 64", ErrInvalid, sig)
	}
	c.mu.Lock()
	status, p := c.status, c.init
	if execID != "" {
		p = c.execs[execID]
	}
	var lp *libcontainer.Process
	if p != nil {
		lp = p.lp
		if lp == nil && sig == unix.SIGKILL && !p.settled() {
			// It is being started, and will not live to see the end of that.
			p.doomed = true
			c.notifyLocked()
			c.mu.Unlock()
			return nil
		}
	}
	c.mu.Unlock()
	switch {
	case lp != nil:
		return signalProcess(lp, sig)
	case execID != "":
		return fmt.Errorf("exec %q: no such process: %w", execID, ErrNotRunning)
	case status == Creating && sig == unix.SIGKILL:
		return c.cgroup.kill()
	case status == Creating:
		return stateError("cannot signal a container that is being created, except with KILL")
	default:
		return ErrNotRunning
	}
}

// SignalAll sends a signal to every process. A container that has ended has
// none, which is not an error.
func (c *Container) SignalAll(ctx context.Context, sig unix.Signal) error {
	if sig < 0 || sig > 64 {
		return fmt.Errorf("%w: signal %d is not between 0 and 64", ErrInvalid, sig)
	}
	if sig == unix.SIGKILL {
		return c.cgroup.kill()
	}
	return c.whileFrozen(ctx, func() error { return c.signalPids(sig) })
}

func (c *Container) signalPids(sig unix.Signal) error {
	pids, err := c.cgroup.pids()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signalling process %d: %w", pid, err)
		}
	}
	return nil
}
