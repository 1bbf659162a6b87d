// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	// Registers the device rules of cgroup v2, which are BPF programs.
	_ "github.com/opencontainers/cgroups/devices"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// CreateRequest says what container to make.
type CreateRequest struct {
	Key     string
	Config  string // runtime-spec config.json
	Channel uint32 // of the init's standard streams
	Share   string // tag of the share with the container's files; empty: the one that every VM has
	Rootfs  string // below the share
	Shares  []Share
	Joins   []Join
	ID      string // the container's on the host, and its bundle there: hooks read them
	Bundle  string
	Disks   []Disk
	// OwnNetwork gives it a network namespace with nothing in it: the guest's network is that of others.
	OwnNetwork bool
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
	share, err := c.m.cfg.Prepare(ctx, req.Share, mountLabel(&spec))
	if err != nil {
		return 0, err
	}
	joined, err := c.m.openJoins(req.Joins)
	if err != nil {
		return 0, err
	}
	defer joined.close()
	found, err := c.m.findDisks(ctx, req.Disks)
	if err != nil {
		return 0, err
	}
	t, err := translate(&spec, c.key, layout{
		share: share, rootfs: req.Rootfs, shares: req.Shares, disks: found, memory: c.m.cfg.MemoryDir, ownNetwork: req.OwnNetwork,
	}, joined)
	if err != nil {
		return 0, err
	}
	if err := c.holdMemories(req.Shares, t.config.MountLabel); err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			c.dropMemories()
		}
	}()
	labelBundle(t.config, req.Bundle)
	c.rootfs, c.share, c.disks = t.config.Rootfs, share, found
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
	lc, err := libcontainer.Create(c.stateDir(), cmp.Or(req.ID, c.key), t.config)
	if err != nil {
		_ = os.Remove(c.stateDir()) // made before the configuration was looked at
		return 0, err
	}
	p := newProcess("", req.Channel)
	var holdErr error
	err = c.launch(ctx, lc, p, t.process, func() {
		c.lc, c.init, c.undoSysctl, c.status = lc, p, undo, Created
		c.mounts, holdErr = c.holdMounts(p.pid)
	})
	if err == nil {
		err = errors.Join(holdErr, c.weighDisks(t.weights))
		if err == nil && t.takesNetwork {
			err = c.m.cfg.MoveNetwork(ctx, p.pid, t.linkSysctl)
		}
		if err != nil {
			_ = c.cgroup.kill()
			select { // its exit is collected before what it left is removed
			case <-p.done:
			case <-ctx.Done(): // on a share that hangs, nobody knows when
			}
		}
	}
	if err != nil {
		// libcontainer killed its init; the state directory and the cgroup are ours to remove.
		_ = c.cgroup.kill()
		if derr := lc.Destroy(); derr != nil {
			c.log.Warn("cannot remove what a failed create left", "error", derr)
		}
		_ = os.RemoveAll(c.stateDir())
		if left := c.leftovers(); len(left) > 0 {
			c.log.Warn("a failed create left something behind", "left", left)
		}
		return 0, err
	}
	if err := c.watchOOM(p); err != nil {
		c.log.Warn("kills for want of memory are not told", "error", err)
	}
	return p.pid, nil
}

// stateDir holds libcontainer's state: a directory for each container, as two of a guest may
// have one id under different roots.
func (c *Container) stateDir() string { return filepath.Join(c.m.cfg.StateDir, c.key) }

// labelBundle puts the bundle's place on the host where libcontainer has the agent's
// working directory: it is what hooks read as the bundle.
func labelBundle(config *configs.Config, bundle string) {
	config.Labels = slices.DeleteFunc(config.Labels, func(l string) bool { return strings.HasPrefix(l, "bundle=") })
	if bundle != "" {
		config.Labels = append(config.Labels, "bundle="+bundle)
	}
}
