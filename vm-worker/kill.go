// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

// muteAgentTime is how long SIGKILL waits for an agent before it takes the VM:
// what must die dies, whatever the guest does.
const muteAgentTime = 2 * time.Second

// kill sends a signal, at most once per operation.
func (w *Worker) kill(ctx context.Context, req *vmv1.KillRequest) (*vmv1.KillReply, error) {
	if req.Signal < 0 || req.Signal > 64 {
		return nil, bus.Errorf(bus.InvalidArgument, "signal %d does not exist: signals are 1 to 64", req.Signal)
	}
	return bus.Once(ctx, w.ops, "kill", req, func(ctx context.Context) (*vmv1.KillReply, error) {
		return w.killNow(ctx, req)
	})
}

func (w *Worker) killNow(ctx context.Context, req *vmv1.KillRequest) (*vmv1.KillReply, error) {
	c, err := w.find(req.Ref)
	if err != nil {
		return nil, err
	}
	status := c.status()
	if status == vmv1.ContainerStatus_CONTAINER_STATUS_CREATING {
		return nil, bus.Errorf(bus.FailedPrecondition, "container %s is still being created; delete --force ends that", req.Ref.Id)
	}
	if !live(status) {
		if req.All { // engines sweep shared pid namespaces after the end
			return &vmv1.KillReply{}, nil
		}
		return nil, bus.Errorf(bus.FailedPrecondition, "container not running")
	}
	if req.Signal != 0 {
		c.mu.Lock()
		c.signalled = true
		c.mu.Unlock()
	}
	if err := c.signal(ctx, req.Signal, req.All); err != nil {
		if !live(c.status()) { // it ended under our hands, which is what was wanted
			return &vmv1.KillReply{}, nil
		}
		return nil, err
	}
	w.event(ctx, "container", req.Ref.Id, "signalled", map[string]string{"signal": itoa(req.Signal)})
	return &vmv1.KillReply{}, nil
}

// signal delivers through the agent; SIGKILL needs no agent to be obeyed.
func (c *container) signal(ctx context.Context, signal int32, all bool) error {
	if signal != int32(unix.SIGKILL) {
		return c.sb.agentSignal(ctx, c.key, "", signal, all)
	}
	c.mu.Lock()
	exited, relay := c.exit != nil, c.relay
	c.mu.Unlock()
	if exited && relay != nil && !all {
		// The process is dead, and its relay waits for a reader of its output that
		// does not read. SIGTERM has it end now, with the process's own code.
		return relay.signal(unix.SIGTERM)
	}
	short, cancel := context.WithTimeout(ctx, muteAgentTime)
	defer cancel()
	err := c.sb.agentSignal(short, c.key, "", signal, all)
	switch bus.ReasonOf(err) {
	case "", bus.NotFound, bus.FailedPrecondition: // killed, or dead already
		return err
	}
	c.sb.mu.Lock()
	alone := len(c.sb.members) == 1
	c.sb.mu.Unlock()
	if !alone {
		return err
	}
	return c.sb.kill(ctx, "killed; its agent did not obey")
}
