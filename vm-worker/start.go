// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

// start lets the container's process run. Repeating the operation that started
// it is harmless; another start of a running container is refused.
func (w *Worker) start(ctx context.Context, req *vmv1.StartRequest) (*vmv1.StartReply, error) {
	reply, err := repeatable(ctx, w, "start", req, func(ctx context.Context, _ bool) (*vmv1.StartReply, error) {
		return w.startNow(ctx, req)
	})
	if err != nil {
		return nil, err
	}
	// The hooks are no part of what is recorded and published of an operation: they
	// hold environments. A repeat finds them where the first did.
	reply = proto.CloneOf(reply)
	if c, err := w.find(req.Ref); err == nil {
		reply.Hooks = c.hooks()
	}
	return reply, nil
}

func (w *Worker) startNow(ctx context.Context, req *vmv1.StartRequest) (*vmv1.StartReply, error) {
	c, err := w.acquire(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	defer c.unlock()
	op := bus.OperationFrom(ctx)
	rec := c.snapshot()
	if op != "" && rec.StartOperationId == op && rec.Started != nil {
		return &vmv1.StartReply{Container: rec, Sandbox: c.sb.record()}, nil
	}
	switch rec.Status {
	case vmv1.ContainerStatus_CONTAINER_STATUS_CREATED:
	case vmv1.ContainerStatus_CONTAINER_STATUS_STOPPED:
		return nil, bus.Errorf(bus.FailedPrecondition, "cannot start a container that has stopped")
	case vmv1.ContainerStatus_CONTAINER_STATUS_CREATING:
		return nil, bus.Errorf(bus.FailedPrecondition, "cannot start container %s: it is still being created", rec.Ref.Id)
	case vmv1.ContainerStatus_CONTAINER_STATUS_PAUSED:
		return nil, bus.Errorf(bus.FailedPrecondition, "cannot start a container in the paused state")
	default:
		return nil, bus.Errorf(bus.FailedPrecondition, "cannot start an already running container")
	}
	if err := c.refreshNetwork(ctx); err != nil {
		return nil, err
	}
	began := time.Now()
	// Recorded before the act: a worker that dies in between finds who started it.
	if err := c.set(ctx, func(rec *vmv1.Container) { rec.StartOperationId = op }); err != nil {
		return nil, err
	}
	told := make(chan struct{})
	defer close(told)
	c.mu.Lock()
	c.signalled = true // from here on an end is the container's own
	c.starting = told
	c.mu.Unlock()
	if err := c.sb.agentStart(ctx, c.key); err != nil {
		return nil, err
	}
	c.sb.phase("container_start", began)
	err = c.set(ctx, func(rec *vmv1.Container) {
		rec.Started = timestamppb.Now()
		if rec.Status == vmv1.ContainerStatus_CONTAINER_STATUS_CREATED { // it may have ended already
			rec.Status = vmv1.ContainerStatus_CONTAINER_STATUS_RUNNING
		}
	})
	if err != nil {
		return nil, err
	}
	if err := c.sb.update(ctx, func(*vmv1.Sandbox) {}); err != nil { // publishes the phase
		return nil, err
	}
	w.event(ctx, "container", rec.Ref.Id, "started", map[string]string{"sandbox": c.sb.id})
	return &vmv1.StartReply{Container: c.snapshot(), Sandbox: c.sb.record()}, nil
}
