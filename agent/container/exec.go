// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/runc/libcontainer"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ExecRequest says what process to add to a container.
type ExecRequest struct {
	ExecID       string
	Process      string // runtime-spec process
	Channel      uint32
	IgnorePaused bool
}

// maxExited bounds the ended execs that Info still tells about; their codes
// travel on the streams in any case.
const maxExited = 64

// Exec starts one more process and returns its pid in the guest. When the
// context ends first, the process is killed.
func (c *Container) Exec(ctx context.Context, req ExecRequest) (int, error) {
	if req.ExecID == "" || len(req.ExecID) > 1024 {
		return 0, fmt.Errorf("%w: exec id of %d bytes: give 1 to 1024", ErrInvalid, len(req.ExecID))
	}
	var spec specs.Process
	if err := json.Unmarshal([]byte(req.Process), &spec); err != nil {
		return 0, fmt.Errorf("%w: decoding process: %w", ErrInvalid, err)
	}
	if err := refuseProcess(&spec); err != nil {
		return 0, err
	}
	if err := checkLabel("process.selinuxLabel", spec.SelinuxLabel, c.m.cfg.Labels); err != nil {
		return 0, err
	}
	lc, p, err := c.reserveExec(req)
	if err != nil {
		return 0, err
	}
	launched := make(chan error, 1)
	c.m.waiters.Go(func() { launched <- c.launchExec(ctx, lc, p, &spec) })
	select {
	case err = <-launched:
	case <-ctx.Done():
		// On a share that hangs, nobody knows when.
	}
	if ctx.Err() != nil {
		// Nobody will hear that it runs.
		if killErr := c.Signal(req.ExecID, unix.SIGKILL); killErr != nil && !errors.Is(killErr, ErrNotRunning) {
			c.log.Warn("cannot kill an exec that came too late", "error", killErr)
		}
		return 0, fmt.Errorf("starting exec %q: %w", req.ExecID, ctx.Err())
	}
	return p.pid, err
}

// launchExec starts the process of an exec, or forgets it.
func (c *Container) launchExec(ctx context.Context, lc *libcontainer.Container, p *process, spec *specs.Process) error {
	err := c.launch(ctx, lc, p, spec, func() {})
	if err != nil {
		c.mu.Lock()
		delete(c.execs, p.execID)
		c.mu.Unlock()
		close(p.done)
	}
	return err
}

// reserveExec checks the state and takes the exec's name.
func (c *Container) reserveExec(req ExecRequest) (*libcontainer.Container, *process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch status := c.statusLocked(); {
	case status == Stopped:
		return nil, nil, stateError("cannot exec in a stopped container")
	case status == Paused && !req.IgnorePaused:
		return nil, nil, stateError("cannot exec in a paused container (use --ignore-paused to override)")
	case status == Creating || c.lc == nil:
		return nil, nil, stateError(fmt.Sprintf("cannot exec in a container that is %s", status))
	}
	if p, taken := c.execs[req.ExecID]; taken && !p.exited {
		return nil, nil, fmt.Errorf("exec %q: %w", req.ExecID, errExecExists)
	}
	p := newProcess(req.ExecID, req.Channel)
	c.execs[req.ExecID] = p
	return c.lc, p, nil
}

// errExecExists is ErrExists in its own words.
var errExecExists = existsError("an exec with this ID already runs")

// dropOldExecs forgets ended execs beyond the bound; any of them, they have no order.
func (c *Container) dropOldExecs() {
	exited := 0
	for id, p := range c.execs {
		if !p.exited {
			continue
		}
		if exited++; exited > maxExited {
			delete(c.execs, id)
		}
	}
}
