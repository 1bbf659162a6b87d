// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

// relayTime is how long a relay gets to end by itself, with its output
// delivered, once its process or VM is gone.
const relayTime = 2 * time.Second

// remove deletes a container and everything that belongs to it. With force it
// kills what lives, ends a create under way, and finds it no error that there is
// nothing to delete. A repeat of the same operation gets the first one's answer.
func (w *Worker) remove(ctx context.Context, req *vmv1.DeleteRequest) (*vmv1.DeleteReply, error) {
	op, err := w.ops.Begin(ctx, "delete", req)
	if err != nil {
		return nil, err
	}
	if op.State == bus.OperationDone {
		reply := &vmv1.DeleteReply{}
		return reply, op.Reply(reply)
	}
	reply, err := w.removeNow(ctx, req)
	if finishErr := op.Finish(ctx, reply, err); finishErr != nil {
		w.log.Warn("delete not recorded as done", "container", req.GetRef().GetId(), "error", finishErr)
	}
	return reply, err
}

func (w *Worker) removeNow(ctx context.Context, req *vmv1.DeleteRequest) (*vmv1.DeleteReply, error) {
	c, err := w.find(req.Ref)
	if err != nil {
		if req.Force && bus.ReasonOf(err) == bus.NotFound {
			return &vmv1.DeleteReply{}, nil
		}
		return nil, err
	}
	if err := c.endCreate(ctx, req.Force); err != nil {
		return nil, err
	}
	if err := c.lock(ctx); err != nil {
		return nil, err
	}
	defer c.unlock()
	if w.forgotten(c) { // rolled back, or deleted by another command meanwhile
		return w.removeNow(ctx, req)
	}
	rec := c.snapshot()
	switch {
	case rec.Status == vmv1.ContainerStatus_CONTAINER_STATUS_STOPPED:
	case rec.Status == vmv1.ContainerStatus_CONTAINER_STATUS_CREATED, req.Force:
		if err := c.endNow(ctx); err != nil {
			return nil, err
		}
	default:
		return nil, bus.Errorf(bus.FailedPrecondition, "cannot delete container %s that is not stopped: %s", rec.Ref.Id, statusText(rec.Status))
	}
	select { // the end of the container cleans up in the guest and ends the VM
	case <-c.ended:
	case <-ctx.Done():
		return nil, bus.Errorf(bus.DeadlineExceeded, "container %s is still ending: %w", rec.Ref.Id, ctx.Err())
	}
	last, hooks := c.snapshot(), c.hooks()
	if err := c.remove(ctx); err != nil {
		return nil, fmt.Errorf("delete %s: %w", rec.Ref.Id, err)
	}
	return &vmv1.DeleteReply{Container: last, Existed: true, Hooks: hooks}, nil
}

// endCreate ends a create under way when forced, and waits for its end.
func (c *container) endCreate(ctx context.Context, force bool) error {
	select {
	case <-c.created:
		return nil
	default:
	}
	if !force {
		return bus.Errorf(bus.FailedPrecondition, "cannot delete container %s that is not stopped: creating", c.rec.Ref.Id)
	}
	c.mu.Lock()
	cancel := c.cancel
	c.mu.Unlock()
	cancel(errDeleted)
	select {
	case <-c.created:
		return nil
	case <-ctx.Done():
		return bus.Errorf(bus.DeadlineExceeded, "the creation of container %s is still being undone: %w", c.rec.Ref.Id, ctx.Err())
	}
}

// endNow kills the container, with its VM when it is alone in it, and makes
// sure of its relay.
func (c *container) endNow(ctx context.Context) error {
	c.mu.Lock()
	c.signalled = true
	relay := c.relay
	c.mu.Unlock()
	if err := c.signal(ctx, int32(unix.SIGKILL), true); err != nil {
		c.w.log.Warn("container not killed in its guest", "container", c.rec.Ref.Id, "error", err)
	}
	return endProcess(ctx, relay)
}

// endRelay ends the relay of a container that never came to be.
func (c *container) endRelay(ctx context.Context) error {
	c.mu.Lock()
	relay := c.relay
	c.mu.Unlock()
	return endProcess(ctx, relay)
}

// endProcess gives a relay a moment to end by itself, then kills it.
func endProcess(ctx context.Context, p *hostProcess) error {
	if p == nil {
		return nil
	}
	done := make(chan struct{})
	go func() { p.wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-time.After(relayTime):
	case <-ctx.Done():
	}
	if err := p.signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("kill relay %d: %w", p.pid, err)
	}
	select {
	case <-done:
		return nil
	case <-time.After(relayTime):
		return fmt.Errorf("relay %d does not die", p.pid)
	}
}
