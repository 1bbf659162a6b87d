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
	return repeatable(ctx, w, "delete", req, func(ctx context.Context, resumed bool) (*vmv1.DeleteReply, error) {
		reply, err := w.removeNow(ctx, req)
		if bus.ReasonOf(err) == bus.NotFound && (req.Force || resumed) {
			return &vmv1.DeleteReply{}, nil // resumed: the worker that died had got so far
		}
		return reply, err
	})
}

func (w *Worker) removeNow(ctx context.Context, req *vmv1.DeleteRequest) (*vmv1.DeleteReply, error) {
	if err := w.endUnderWay(ctx, req); err != nil {
		return nil, err
	}
	c, err := w.acquire(ctx, req.Ref)
	if err != nil {
		return nil, err
	}
	defer c.unlock()
	rec := c.snapshot()
	switch {
	case rec.Status == vmv1.ContainerStatus_CONTAINER_STATUS_STOPPED:
	case rec.Status == vmv1.ContainerStatus_CONTAINER_STATUS_CREATING: // another, made meanwhile
		return nil, errNotStopped(rec)
	case rec.Status == vmv1.ContainerStatus_CONTAINER_STATUS_CREATED, req.Force:
		if err := c.endNow(ctx); err != nil {
			return nil, err
		}
	case c.initEnded(): // its engine has reaped it before we have recorded it
	default:
		return nil, errNotStopped(rec)
	}
	select { // the end of the container cleans up in the guest and ends the VM
	case <-c.ended:
	case <-ctx.Done():
		return nil, bus.Errorf(bus.DeadlineExceeded, "container %s is still ending: %w", rec.Ref.Id, ctx.Err())
	}
	if err := c.releaseVM(ctx); err != nil {
		return nil, err
	}
	last, hooks := c.snapshot(), c.hooks()
	if err := c.remove(ctx); err != nil {
		return nil, fmt.Errorf("delete %s: %w", rec.Ref.Id, err)
	}
	return &vmv1.DeleteReply{Container: last, Existed: true, Hooks: hooks}, nil
}

// initEnded tells that the init's relay has ended, whatever the record says yet.
func (c *container) initEnded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.relay != nil && c.relay.ended()
}

func errNotStopped(rec *vmv1.Container) error {
	return bus.Errorf(bus.FailedPrecondition, "cannot delete container %s that is not stopped: %s", rec.Ref.Id, rec.Status.Word())
}

// endUnderWay ends a create under way, when forced, and waits until it is
// undone. With force it also kills what lives before it queues for the
// container's lock, which a command to a guest that does not answer may hold.
func (w *Worker) endUnderWay(ctx context.Context, req *vmv1.DeleteRequest) error {
	c, err := w.find(req.Ref)
	if err != nil {
		return err
	}
	if !closed(c.created) {
		if !req.Force {
			return errNotStopped(c.snapshot())
		}
		c.mu.Lock()
		cancel := c.cancel
		c.mu.Unlock()
		cancel(errDeleted)
		select {
		case <-c.created:
		case <-ctx.Done():
			return bus.Errorf(bus.DeadlineExceeded, "the creation of container %s is still being undone: %w", c.rec.Ref.Id, ctx.Err())
		}
	}
	if req.Force && live(c.status()) {
		return c.endNow(ctx)
	}
	return nil
}

// releaseVM moves the VM out of the cgroup of the container that it was booted
// for, which is about to go, when others live on in it.
func (c *container) releaseVM(ctx context.Context) error {
	cgroup := c.hostCgroup()
	vm := c.sb.living()
	if c.rec.Channel != firstChannel || cgroup == nil || vm == nil {
		return nil
	}
	if err := c.sb.lockSize(ctx); err != nil { // the size is told to the cgroup that the VM is in
		return err
	}
	defer c.sb.unlockSize()
	if _, err := cgroup.Inherit(c.sb.id, vm.Record().PID, c.sb.cgroupFile()); err != nil {
		if !c.sb.alive() {
			return nil
		}
		return fmt.Errorf("move the VM %s, in which other containers run, out of the cgroup of container %s: %w", c.sb.id, c.rec.Ref.Id, err)
	}
	c.w.event(ctx, "sandbox", c.sb.id, "released", map[string]string{"container": c.rec.Ref.Id})
	return nil
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
	return endProcess(ctx, relay, relayTime)
}

// endRelay ends the relay of a container that never came to be.
func (c *container) endRelay(ctx context.Context) error {
	c.mu.Lock()
	relay := c.relay
	c.mu.Unlock()
	return endProcess(ctx, relay, 0)
}
