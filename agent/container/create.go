// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	// Registers the device rules of cgroup v2, which are BPF programs.
	_ "github.com/opencontainers/cgroups/devices"
	"github.com/opencontainers/runc/libcontainer"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// CreateRequest says what container to make.
type CreateRequest struct {
	Key     string
	Config  string // runtime-spec config.json
	Channel uint32 // of the init's standard streams
	Rootfs  string // below the share
	Shares  []Share
}

// Create makes a container whose init waits for Start, and returns the init's
// pid in the guest, 0 when the specification has no process. On failure
// nothing is left. When the context ends first, what hangs is killed.
func (m *Manager) Create(ctx context.Context, req CreateRequest) (pid int, err error) {
	c, err := m.reserve(req.Key)
	if err != nil {
		return 0, err
	}
	if err := c.lifecycle.lock(ctx); err != nil {
		m.forget(c)
		return 0, err
	}
	defer c.lifecycle.unlock()
	defer func() {
		if err != nil {
			m.forget(c)
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = c.cgroup.kill() })
	defer stop()
	pid, err = c.create(ctx, req)
	if err != nil && ctx.Err() != nil {
		return 0, fmt.Errorf("creating the container: %w: %w", ctx.Err(), err)
	}
	return pid, err
}

func (c *Container) create(ctx context.Context, req CreateRequest) (pid int, err error) {
	var spec specs.Spec
	if err := json.Unmarshal([]byte(req.Config), &spec); err != nil {
		return 0, fmt.Errorf("%w: decoding config.json: %w", ErrInvalid, err)
	}
	if err := checkLabels(&spec, c.m.cfg.Labels); err != nil {
		return 0, err
	}
	if err := c.m.cfg.Prepare(mountLabel(&spec)); err != nil {
		return 0, err
	}
	t, err := translate(&spec, c.key, layout{share: c.m.cfg.ShareDir, rootfs: req.Rootfs, shares: req.Shares})
	if err != nil {
		return 0, err
	}
	c.rootfs = t.config.Rootfs
	undo, err := applySysctl("/proc/sys", t.sysctl)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			undo()
		}
	}()
	if t.process == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.status, c.undoSysctl = Created, undo
		return 0, nil
	}
	lc, err := libcontainer.Create(c.m.cfg.StateDir, c.key, t.config)
	if err != nil {
		return 0, err
	}
	p := newProcess("", req.Channel)
	err = c.launch(ctx, lc, p, t.process, func() {
		c.lc, c.init, c.undoSysctl, c.status = lc, p, undo, Created
	})
	if err != nil {
		// libcontainer killed its init; the state directory and the cgroup are ours to remove.
		_ = c.cgroup.kill()
		if derr := lc.Destroy(); derr != nil {
			c.log.Warn("cannot remove what a failed create left", "error", derr)
			_ = os.RemoveAll(filepath.Join(c.m.cfg.StateDir, c.key))
		}
		if left := c.leftovers(); len(left) > 0 {
			c.log.Warn("a failed create left something behind", "left", left)
		}
		return 0, err
	}
	return p.pid, nil
}
