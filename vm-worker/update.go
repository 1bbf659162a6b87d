// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
	"bulkhead/vm-worker/hypervisor"
)

// update changes the limits of a container: in its host cgroup, where QEMU is, in
// the guest's, and the size of the VM with them. When one of them refuses, all are
// as before.
func (w *Worker) update(ctx context.Context, req *vmv1.UpdateRequest) (*vmv1.UpdateReply, error) {
	return repeatable(ctx, w, "update", req, func(ctx context.Context, _ bool) (*vmv1.UpdateReply, error) {
		// A repeat after a worker's death does all again: each step sets, and adds nothing.
		return w.updateNow(ctx, req)
	})
}

func (w *Worker) updateNow(ctx context.Context, req *vmv1.UpdateRequest) (*vmv1.UpdateReply, error) {
	patch, err := parseResources(req.Resources)
	if err != nil {
		return nil, err
	}
	c, err := w.acquire(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	defer c.unlock()
	rec := c.snapshot()
	if !live(rec.Status) {
		return nil, bus.Errorf(bus.FailedPrecondition, "container not running")
	}
	old, err := parseResources(rec.Resources)
	if err != nil {
		return nil, fmt.Errorf("the record of container %s: %w", rec.Ref.Id, err)
	}
	next, err := merged(old, patch)
	if err != nil {
		return nil, err
	}
	if err := c.sb.lockSize(ctx); err != nil {
		return nil, err
	}
	defer c.sb.unlockSize()
	var undo saga
	if err := c.setLimits(ctx, old, next, &undo); err != nil {
		if left := undo.rollback(ctx); left != nil {
			w.log.Error("limits not wholly put back; update the container again", "container", rec.Ref.Id, "error", left)
		}
		return nil, err
	}
	w.event(ctx, "container", rec.Ref.Id, "updated", nil)
	return &vmv1.UpdateReply{Container: c.snapshot(), Sandbox: c.sb.record()}, nil
}

// setLimits takes a container from old to next, and its VM with it. What grows
// does so from the outside in (host, VM, guest), and what shrinks from the
// inside out: what is around a container never holds less than it may use. The
// caller holds the lock of the VM's size.
func (c *container) setLimits(ctx context.Context, old, next *specs.LinuxResources, undo *saga) error {
	s := c.sb
	before, after := s.size(), s.wanted(with(c, next))
	most := larger(before, after)
	host := func(r *specs.LinuxResources, vm hypervisor.Size) error {
		if err := c.limitHost(with(c, r), vm); err != nil {
			return err
		}
		if c.owns() {
			return nil
		}
		return s.limitOwner(with(c, r), vm)
	}
	undo.did("limit the host cgroup", func(context.Context) error { return host(explicit(old, next), before) })
	if err := host(wider(old, next), most); err != nil {
		return err
	}
	undo.did("change the size of VM "+s.id, func(ctx context.Context) error { return s.resize(ctx, before) })
	if err := s.resize(ctx, most); err != nil {
		return err
	}
	undo.did("limit the container in its guest", func(ctx context.Context) error { return c.limitGuest(ctx, explicit(old, next)) })
	if err := c.limitGuest(ctx, next); err != nil {
		return err
	}
	if after != most {
		if err := s.resize(ctx, after); err != nil {
			return err
		}
	}
	if err := host(next, s.size()); err != nil {
		return err
	}
	text, err := resourcesText(next)
	if err != nil {
		return err
	}
	return c.set(ctx, func(rec *vmv1.Container) { rec.Resources = text })
}

func (c *container) limitGuest(ctx context.Context, r *specs.LinuxResources) error {
	text, err := resourcesText(r)
	if err != nil {
		return err
	}
	return c.sb.agentUpdate(ctx, c.key, text)
}
