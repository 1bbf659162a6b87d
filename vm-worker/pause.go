// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

// pause freezes the container in its guest. The VM runs on: SIGKILL needs no
// thaw and the agent stays there to be asked.
func (w *Worker) pause(ctx context.Context, req *vmv1.PauseRequest) (*vmv1.PauseReply, error) {
	err := w.change(ctx, req.Ref, "paused",
		func(*vmv1.Container) vmv1.ContainerStatus { return vmv1.ContainerStatus_CONTAINER_STATUS_PAUSED },
		func(c *container, status vmv1.ContainerStatus) error {
			switch status {
			case vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING, vmv1.ContainerStatus_CONTAINER_STATUS_CREATED:
				return c.sb.agentPause(ctx, c.key)
			default:
				return bus.Errorf(bus.FailedPrecondition, "container not running")
			}
		})
	return &vmv1.PauseReply{}, err
}

// resume thaws the container.
func (w *Worker) resume(ctx context.Context, req *vmv1.ResumeRequest) (*vmv1.ResumeReply, error) {
	err := w.change(ctx, req.Ref, "resumed", resumedStatus,
		func(c *container, status vmv1.ContainerStatus) error {
			if status != vmv1.ContainerStatus_CONTAINER_STATUS_PAUSED {
				return bus.Errorf(bus.FailedPrecondition, "container not paused")
			}
			return c.sb.agentResume(ctx, c.key)
		})
	return &vmv1.ResumeReply{}, err
}

// resumedStatus is what a paused container was before; runc lets a created one
// be paused too.
func resumedStatus(rec *vmv1.Container) vmv1.ContainerStatus {
	if rec.Started == nil {
		return vmv1.ContainerStatus_CONTAINER_STATUS_CREATED
	}
	return vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING
}

// change takes a container from one state to another by act.
func (w *Worker) change(ctx context.Context, ref *vmv1.ContainerRef, event string, to func(*vmv1.Container) vmv1.ContainerStatus, act func(*container, vmv1.ContainerStatus) error) error {
	c, err := w.acquire(ctx, ref)
	if err != nil {
		return err
	}
	defer c.unlock()
	if err := act(c, c.status()); err != nil {
		return err
	}
	err = c.set(ctx, func(rec *vmv1.Container) {
		if live(rec.Status) { // it may have ended meanwhile
			rec.Status = to(rec)
		}
	})
	if err != nil {
		return err
	}
	w.event(ctx, "container", ref.Id, event, nil)
	return nil
}
