// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/runc/libcontainer/specconv"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Update sets the limits of the container's cgroup; text is a runtime-spec
// linux.resources that tells all that are in force. When it fails, some may be set.
// A container without a process has no cgroup yet, and nothing to limit.
func (c *Container) Update(ctx context.Context, text string) error {
	var resources specs.LinuxResources
	if err := json.Unmarshal([]byte(text), &resources); err != nil {
		return fmt.Errorf("%w: decoding the resources: %w", ErrInvalid, err)
	}
	resources.BlockIO = nil // the weight is the host's to hold, and limits of single devices are not changed
	if err := refuseResources(&resources); err != nil {
		return err
	}
	r, err := cgroupResources(&resources)
	if err != nil {
		return err
	}
	if err := c.lifecycle.lock(ctx); err != nil {
		return err
	}
	defer c.lifecycle.unlock()
	c.mu.Lock()
	status, lc := c.statusLocked(), c.lc
	c.mu.Unlock()
	switch {
	case status == Stopped || status == Creating:
		return ErrNotRunning
	case lc == nil:
		return nil
	}
	// Not by libcontainer, whose lock a hanging start holds (cgroup.go).
	manager, err := fs2.NewManager(&cgroups.Cgroup{Resources: &cgroups.Resources{}}, string(c.cgroup))
	if err != nil {
		return fmt.Errorf("changing the limits: %w", err)
	}
	if err := manager.Set(r); err != nil {
		return fmt.Errorf("changing the limits: %w", err)
	}
	return nil
}

// cgroupResources translates limits for the guest's cgroups. Device rules are
// never changed after the create.
func cgroupResources(resources *specs.LinuxResources) (*cgroups.Resources, error) {
	resources.Devices = nil
	guestResources(resources)
	config, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{
		CgroupName: "update", Spec: &specs.Spec{Linux: &specs.Linux{Resources: resources}},
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	r := config.Resources
	r.SkipDevices = true
	return r, nil
}
