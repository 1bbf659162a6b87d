// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

package vmworker

import (
	"context"
	"encoding/json"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bulkhead/bus"
	vmv1 "bulkhead/proto/vm/v1"
)

// maxExecs bounds the further processes of one container: each is a relay on
// the host and a process in the guest.
const maxExecs = 1000

// exec runs a further process in a running container. Execs of one container
// run side by side; only the bookkeeping is serial.
func (w *Worker) exec(ctx context.Context, req *vmv1.ExecRequest) (*vmv1.ExecReply, error) {
	c, err := w.find(req.Ref)
	if err != nil {
		return nil, err
	}
	if req.ExecId == "" {
		return nil, bus.Errorf(bus.InvalidArgument, "exec in %s needs an exec id", req.Ref.Id)
	}
	if err := json.Unmarshal([]byte(req.Process), &specs.Process{}); err != nil {
		return nil, bus.Errorf(bus.InvalidArgument, "process of exec %s is not a runtime-spec process: %w", req.ExecId, err)
	}
	if err := c.canExec(req); err != nil {
		return nil, err
	}
	relay, err := openRelay(req.Relay)
	if err != nil {
		return nil, bus.Errorf(bus.FailedPrecondition, "the exec's relay: %w", err)
	}
	x := &execProcess{
		rec:   &vmv1.Exec{Id: req.ExecId, Relay: req.Relay, Channel: c.sb.channel(), Started: timestamppb.Now()},
		relay: relay,
		gone:  make(chan struct{}),
	}
	if replay, err := c.addExec(ctx, x); err != nil || replay != nil {
		relay.close()
		if replay != nil {
			return &vmv1.ExecReply{Channel: replay.rec.Channel}, nil
		}
		return nil, err
	}
	// From here on the end of the relay, however it comes, cleans up.
	w.tasks.Go(func() { c.watchExec(x) })
	if err := c.runExec(ctx, x, req); err != nil {
		_ = relay.signal(unix.SIGKILL)
		return nil, err
	}
	w.event(ctx, "container", req.Ref.Id, "exec_started", map[string]string{"exec": x.rec.Id, "pid": itoa(x.rec.Relay.Pid)})
	return &vmv1.ExecReply{Channel: x.rec.Channel}, nil
}

func (c *container) canExec(req *vmv1.ExecRequest) error {
	switch status := c.status(); {
	case status == vmv1.ContainerStatus_CONTAINER_STATUS_PAUSED && !req.IgnorePaused:
		return bus.Errorf(bus.FailedPrecondition, "cannot exec in a paused container (use --ignore-paused to override)")
	case !live(status):
		return bus.Errorf(bus.FailedPrecondition, "cannot exec in a stopped container")
	}
	return nil
}

// addExec records the exec, or finds the one the same relay already serves: a
// repeated request.
func (c *container) addExec(ctx context.Context, x *execProcess) (replay *execProcess, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.execs[x.rec.Id]; ok {
		if old.rec.Relay.Pid == x.rec.Relay.Pid && old.rec.Relay.StartTime == x.rec.Relay.StartTime {
			return old, nil
		}
		return nil, bus.Errorf(bus.AlreadyExists, "exec %s already exists in container %s", x.rec.Id, c.rec.Ref.Id)
	}
	if len(c.execs) >= maxExecs {
		return nil, bus.Errorf(bus.ResourceExhausted, "container %s already has %d execs", c.rec.Ref.Id, len(c.execs))
	}
	c.execs[x.rec.Id] = x
	c.rec.Execs = append(c.rec.Execs, x.rec)
	return nil, c.w.store.saveContainer(ctx, c.rec)
}

func (c *container) runExec(ctx context.Context, x *execProcess, req *vmv1.ExecRequest) error {
	if err := c.cgroup.Enter(x.relay.pid); err != nil {
		return fmt.Errorf("move the exec's relay into the cgroup: %w", err)
	}
	if err := c.attachRelay(ctx, x.rec.Channel, req.Relay.Socket); err != nil {
		return err
	}
	return c.sb.agentExec(ctx, c.key, x.rec.Channel, req)
}

// watchExec waits for the end of an exec's relay. One that was killed takes its
// process in the guest with it.
func (c *container) watchExec(x *execProcess) {
	if !c.w.waitProcess(x.relay) {
		return
	}
	ctx := context.Background()
	x.relay.close()
	c.w.removeRelaySocket(x.rec.Relay)
	c.sb.router.Detach(x.rec.Channel)
	if c.sb.alive() {
		// For a process that has ended this finds nothing, which is the rule.
		if err := c.sb.agentSignal(ctx, c.key, x.rec.Id, int32(unix.SIGKILL), false); err != nil && bus.ReasonOf(err) != bus.NotFound {
			c.w.log.Debug("ended exec not found in its guest", "container", c.rec.Ref.Id, "exec", x.rec.Id, "error", err)
		}
	}
	c.mu.Lock()
	delete(c.execs, x.rec.Id)
	for i, e := range c.rec.Execs {
		if e.Id == x.rec.Id {
			c.rec.Execs = append(c.rec.Execs[:i], c.rec.Execs[i+1:]...)
			break
		}
	}
	if !c.removing {
		if err := c.w.store.saveContainer(ctx, c.rec); err != nil {
			c.w.log.Debug("end of exec not recorded", "container", c.rec.Ref.Id, "error", err)
		}
	}
	c.mu.Unlock()
	c.w.event(ctx, "container", c.rec.Ref.Id, "exec_exited", map[string]string{"exec": x.rec.Id})
	close(x.gone)
}
